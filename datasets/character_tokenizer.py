"""Unicode characters as tokens, as SpikeGPT reads enwik8 and BookCorpus (R.-J. Zhu et al., arXiv 2302.13939).

The vocabulary is the sorted list of a text's distinct characters (by code point); an id is a rank in it. The official
code writes it as JSON, `{"0": "\\n", "1": " ", ...}`, in UTF-16 with a byte order mark; `from_vocabulary` and
`write_vocabulary` read and write that file.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from pathlib import Path
from typing import Any, Self

import numpy as np

from spikeloom.datasets.token_ids import Ids, Tokens, as_ids, token_dtype, unknown_characters, utf8, write_description

_PIECE = 1 << 20  # characters encoded together, four bytes each


class CharacterTokenizer:
    """Ids are positions in `characters`.

    Args:
        characters: the vocabulary, each character once, in the order of the ids.
        unknown: the character of the vocabulary that stands for those outside it, as the official BookCorpus prompt
            does with a space; None (default): they are an error.

    Raises:
        ValueError: no characters, one twice, a lone surrogate, or an `unknown` that is none of them.
    """

    kind = "characters"

    def __init__(self, characters: str, unknown: str | None = None) -> None:
        if not characters:
            raise ValueError("characters is empty; expected a vocabulary of one character or more.")
        utf8(characters)  # says where a lone surrogate is
        twice = sorted(one for one, times in Counter(characters).items() if times > 1)
        if twice:
            raise ValueError(
                f"characters holds {twice[:10]} more than once; each character has one id: the vocabulary of a text is "
                "CharacterTokenizer.from_text(text)."
            )
        if unknown is not None and (len(unknown) != 1 or unknown not in characters):
            raise ValueError(f"unknown is {unknown!r}; expected one character of the vocabulary, or None.")
        self.characters = characters
        self.unknown = unknown
        self._points = _code_points(characters)
        self._ids = np.full(int(self._points.max()) + 2, -1, dtype=np.int32)  # the last entry: code points above all
        self._ids[self._points] = np.arange(len(characters))

    @classmethod
    def from_text(cls, text: str, unknown: str | None = None) -> Self:
        """The vocabulary of a text: its distinct characters in the order of their code points."""
        if not text:
            raise ValueError("The text is empty; its characters are the vocabulary, so it must have some.")
        return cls("".join(sorted(set(text))), unknown)

    @classmethod
    def from_vocabulary(cls, path: str | Path, unknown: str | None = None) -> Self:
        """Read a vocabulary as the official code writes it: a JSON object of id to character, in UTF-16 or UTF-8.

        Raises:
            ValueError: not such a file; the ids are not 0 to V - 1, each once; an entry is not one character.
        """
        path = Path(path)
        raw = path.read_bytes()
        utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        try:
            table = json.loads(raw.decode("utf-16" if utf16 else "utf-8-sig"), object_pairs_hook=_each_once)
        except ValueError as error:
            raise ValueError(
                f"{path} is not a vocabulary ({error}). Expected JSON such as "
                '{"0": "\\n", "1": " "}, in UTF-16 with a byte order mark or in UTF-8.'
            ) from error
        if not isinstance(table, dict) or not table:
            raise ValueError(f"{path} holds a JSON {type(table).__name__}; expected an object of id to character.")
        absent = [number for number in range(len(table)) if str(number) not in table]
        if absent:
            raise ValueError(f"{path} has {len(table)} entries, but none for id {absent[0]}; expected ids from 0 on.")
        characters = [table[str(number)] for number in range(len(table))]
        for number, character in enumerate(characters):
            if not isinstance(character, str) or len(character) != 1:
                raise ValueError(f"{path} has {character!r} for id {number}; expected one character.")
        return cls("".join(characters), unknown)

    def write_vocabulary(self, path: str | Path) -> None:
        """Write the vocabulary as the official code does: JSON, UTF-16 with a byte order mark."""
        table = {str(number): character for number, character in enumerate(self.characters)}
        Path(path).write_bytes(json.dumps(table, ensure_ascii=False).encode("utf-16"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CharacterTokenizer):
            return NotImplemented
        return (self.characters, self.unknown) == (other.characters, other.unknown)

    def __hash__(self) -> int:
        return hash((self.characters, self.unknown))

    @property
    def vocab_size(self) -> int:
        """Number of characters V."""
        return len(self.characters)

    def encode(self, text: str) -> Tokens:
        """Ids `[N]` of the N characters of a text.

        Raises:
            ValueError: characters outside the vocabulary, and `unknown` is None.
        """
        ids = np.empty(len(text), dtype=token_dtype(self.vocab_size))
        instead = None if self.unknown is None else self.characters.index(self.unknown)
        for start in range(0, len(text), _PIECE):
            found = self._ids[np.minimum(_code_points(text[start : start + _PIECE]), len(self._ids) - 1)]
            if found.min() < 0:
                if instead is None:
                    raise self._unknown(text)
                found[found < 0] = instead
            ids[start : start + _PIECE] = found
        return ids

    def decode(self, ids: Ids) -> str:
        """The text of ids `[N]`.

        Raises:
            ValueError: an id is not from 0 to V - 1.
        """
        return self._points[as_ids(ids, self.vocab_size)].tobytes().decode("utf-32-le")

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into a folder, for `load_tokenizer`; returns the file."""
        described = {"kind": self.kind, "characters": self.characters, "unknown": self.unknown}
        return write_description(folder, described)

    def _unknown(self, text: str) -> ValueError:
        known = set(self.characters)
        advice = (
            f"The vocabulary has {self.vocab_size} characters. Remove or replace these, make the vocabulary of a text "
            "that has them (from_text), or name a character that stands for them (unknown=' ')."
        )
        return unknown_characters(text, (at for at, one in enumerate(text) if one not in known), advice)


def clean_prompt(text: str) -> str:
    """A prompt as the official character models want it: stripped lines, no empty ones, after a first line end."""
    lines = (line.strip() for line in text.split("\n"))
    return "\n" + "\n".join(line for line in lines if line)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a name that is there twice, JSON's own reader would take the last entry without a word."""
    twice = sorted(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
    if twice:
        raise ValueError(f"it has {twice[:10]} more than once; each id has one character")
    return dict(pairs)


def _code_points(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")
