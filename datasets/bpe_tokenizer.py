"""Byte-level BPE tokens, by the `tokenizers` library (`pip install 'spikeloom[text]'`).

SpikeGPT's 216M model (R.-J. Zhu et al., arXiv 2302.13939) was trained with the tokenizer of GPT-NeoX-20B (S. Black et
al., arXiv 2204.06745): 50,277 ids, file `20B_tokenizer.json`. It is not part of this package; `check_neox_20b` tells
whether a file is it.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any, Self

import numpy as np

from spikeloom.datasets.token_ids import Ids, Tokenizer, Tokens, as_ids, token_dtype, utf8, write_description

_NEOX_SIZE = 50277
_NEOX_IDS: dict[str, list[int]] = {
    "\n": [187],
    "Hello world": [12092, 1533],
    "The quick brown fox\n": [510, 3158, 8516, 30013, 187],
    "def f(x):\n    return x": [1545, 269, 9, 89, 2262, 187, 50274, 2309, 1269],
    "        8 spaces": [50270, 25, 8470],
}
_PROBE = " a \n\tb \n"  # begins and ends with white space, which some files strip


class BPETokenizer:
    """A byte-level BPE of a `tokenizer.json` as the Hugging Face libraries write it; every text has ids.

    Padding, truncation and special tokens that such a file may ask for are not applied: ids are those of the text. Two
    tokenizers are equal if the library writes them alike.

    Args:
        description: the text of the file.
        name: what messages call it.

    Raises:
        ValueError: not such a file; not byte-level, or one that loses white space, so that a text would not come back;
            or one with dropout, so that a text would not always have the same ids.
        ModuleNotFoundError: `tokenizers` is not installed.
    """

    kind = "bpe"

    def __init__(self, description: str, name: str = "The tokenizer") -> None:
        library = _library()
        _check_byte_level(description, library, name)
        try:
            self._tokenizer = library.Tokenizer.from_str(description)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{name} cannot be read by tokenizers {library.__version__}: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size: int = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        back = self.decode(self.encode(_PROBE))
        if back != _PROBE:
            raise ValueError(
                f"{name} reads {_PROBE!r} and gives back {back!r}; expected the same text. Its normalizer, "
                "pre_tokenizer, model or decoder loses or adds white space: take a byte-level file such as GPT-2's."
            )

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a file such as GPT-NeoX's `20B_tokenizer.json`."""
        path = Path(path)
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not JSON in UTF-8 ({error}). Is it another file under this name?") from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BPETokenizer):
            return NotImplemented
        return self._written() == other._written()

    def __hash__(self) -> int:
        return hash(self._written())

    def encode(self, text: str) -> Tokens:
        """Ids `[N]` of a text. How one part is cut depends on its neighbours, so give whole documents.

        Raises:
            ValueError: the text has lone surrogates, which UTF-8 cannot hold.
        """
        utf8(text)  # the library's own message does not say where
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=token_dtype(self.vocab_size))

    def decode(self, ids: Ids) -> str:
        """The text of ids `[N]`, special tokens included; half a character becomes U+FFFD.

        Raises:
            ValueError: an id is not from 0 to vocab_size - 1.
        """
        return str(self._tokenizer.decode(as_ids(ids, self.vocab_size).tolist(), skip_special_tokens=False))

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into a folder, for `load_tokenizer`; returns the file."""
        return write_description(folder, {"kind": self.kind, "tokenizer": json.loads(self._written())})

    def _written(self) -> str:
        return str(self._tokenizer.to_str())


def check_neox_20b(tokenizer: Tokenizer) -> None:
    """Check that a tokenizer gives the ids of GPT-NeoX-20B, on five texts.

    Raises:
        ValueError: it does not; says the size or the first text that differs.
    """
    if tokenizer.vocab_size != _NEOX_SIZE:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocab_size} ids; that of GPT-NeoX-20B has {_NEOX_SIZE}. "
            "Its file is called 20B_tokenizer.json."
        )
    for text, expected in _NEOX_IDS.items():
        found = tokenizer.encode(text).tolist()
        if found != expected:
            raise ValueError(f"The tokenizer reads {text!r} as {found}; that of GPT-NeoX-20B as {expected}.")


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The package tokenizers is not installed, so BPE cannot run. Install it with "
            "`pip install 'spikeloom[text]'`, or use ByteTokenizer or CharacterTokenizer.",
            name="tokenizers",
        ) from error


def _check_byte_level(description: str, library: Any, name: str) -> None:
    try:
        table = json.loads(description)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error}). Expected a file such as 20B_tokenizer.json.") from error
    model = table.get("model") if isinstance(table, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise ValueError(f"{name} has no 'model' with a 'vocab'. Expected a file such as 20B_tokenizer.json.")
    if model.get("type") not in ("BPE", None):
        raise ValueError(f"{name} is a {model['type']} tokenizer; expected BPE.")
    if model.get("dropout"):
        raise ValueError(
            f"{name} has a model with dropout {model['dropout']}, so a text has other ids each time; expected none. "
            'Write "dropout": null into the file.'
        )
    for part in ("pre_tokenizer", "decoder"):
        if '"ByteLevel"' not in json.dumps(table.get(part)):  # alone, or one of a sequence
            raise ValueError(
                f"{name} is not byte-level, so texts may not come back from their ids: it has no {part} of type "
                "ByteLevel. Expected a byte-level BPE such as GPT-2's or GPT-NeoX's."
            )
    absent = sorted(_utf8_symbols(library) - set(model["vocab"]))
    if absent:
        raise ValueError(
            f"{name} lacks ids for {len(absent)} of the 243 bytes that UTF-8 has, written {absent[:10]}; expected all."
        )


def _utf8_symbols(library: Any) -> set[str]:
    """How byte-level BPE writes the bytes that occur in UTF-8: GPT-NeoX's file lacks the 13 others."""
    # all first bytes: of one or two, then of three (E0 to EF), then of four (F0 to F4)
    points = [*range(0x800), 0x800, *range(0x1000, 0x10000, 0x1000), *range(0x10000, 0x110000, 0x10000)]
    words = library.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("".join(map(chr, points)))
    return set().union(*(word for word, _ in words))
