"""Texts for language models: what a recipe reads, its two parts, and batches of token ids `[T, B]`, time first.

The first nine tenths of a text are for training, in windows drawn at random; the last tenth is the test part, read in
windows `stride` apart so that every token but the first is predicted once (`datasets/text_windows.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeloom.datasets.bible_text import king_james
from spikeloom.datasets.bpe_tokenizer import BPETokenizer
from spikeloom.datasets.byte_tokenizer import ByteTokenizer
from spikeloom.datasets.character_tokenizer import CharacterTokenizer
from spikeloom.datasets.indexed import IndexedTokens
from spikeloom.datasets.text import read_text, read_tokens, split_tokens
from spikeloom.datasets.text_windows import TextWindows
from spikeloom.datasets.token_ids import CHUNK, FILE, Tokenizer, Tokens, check_tokens
from spikeloom.datasets.tokenizer_folder import load_tokenizer
from spikeloom.training.one_copy import sent
from spikeloom.training.recipe import Data
from spikeloom.training.split import WHOLE, Split

FIELDS = ("context", "tokenizer", "windows", "stride")
"""Fields of `Data` that are of texts alone."""
_SHARED = ("name", "root", "validation", "limit")


@dataclass(frozen=True)
class Text:
    """A part of a text, tokens `[N]`, and the tokenizer that they are of."""

    tokens: Tokens
    tokenizer: Tokenizer

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    def first(self, windows: int | None, data: Data) -> Text:
        """The tokens of so many contexts from the beginning on, whatever the stride; None: all."""
        if windows is None:
            return self
        end = max(windows * data.context + 1, data.context + 2)
        return replace(self, tokens=self.tokens[:end])

    @property
    def characters(self) -> int:
        """Unicode characters of all tokens but the first, which nothing predicts; counted in pieces."""
        targets = self.tokens[1:]
        pieces = (targets[start : start + CHUNK] for start in range(0, len(targets), CHUNK))
        if isinstance(self.tokenizer, CharacterTokenizer):
            return len(targets)
        if isinstance(self.tokenizer, ByteTokenizer):  # all bytes but those that continue a character
            return sum(int(((piece & 0xC0) != 0x80).sum()) for piece in pieces)
        return sum(len(self.tokenizer.decode(piece)) for piece in pieces)


class TextBatches:
    """Ids `[T, B]` int64 and the ids that follow each, batch by batch; T is the context.

    Raises:
        ValueError: the text is shorter than a window, or a stride that skips tokens.
    """

    def __init__(self, text: Text, data: Data, batch_size: int, device: torch.device, split: Split = WHOLE) -> None:
        self.split = split
        self.text, self.data, self.batch_size, self.device = text, data, batch_size, device
        self.tokenizer = text.tokenizer
        self.stride = stride_of(data)
        self._windows = TextWindows(text.tokens, data.context)
        self._windows.sliding_count(self.stride)  # refuses a stride now, not after an epoch of training

    @property
    def recordings(self) -> int:
        """The number of tokens."""
        return len(self.text)

    @cached_property
    def tokens_per_character(self) -> float:
        """Predicted tokens per Unicode character of the text."""
        return (len(self.text) - 1) / max(self.text.characters, 1)

    def __len__(self) -> int:
        """The number of batches of an epoch of training; all are whole."""
        return self.data.windows // self.batch_size

    def count(self, batch: int) -> int:
        """Windows in a batch of training."""
        return self.batch_size

    def samples(self, batch: int) -> int:
        """Tokens in a batch of training."""
        return self.batch_size * self.data.context

    def in_order(self, first: int = 0, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole text for evaluation; targets that an earlier window has had are `IGNORED`.

        Or of every so many batches one, from `first` on.
        """
        return map(self._sent, islice(self._windows.sliding(self.stride, self.batch_size), first, None, step))

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The random windows of an epoch from batch `start` on; of a batch that is divided this process's parts."""
        for batch in range(start, len(self)):
            whole = self._windows.random(self.batch_size, seed, epoch, batch)
            if self.split.whole:
                yield self._sent(whole)
                continue
            for part in self.split.own:
                rows = self.split.rows(self.batch_size, part)
                yield self._sent((whole[0][rows], whole[1][rows]))

    def _sent(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """`[B, T]` to `[T, B]`, on the device."""
        inputs, targets = sent([part.t().contiguous() for part in pair], self.device)
        return inputs, targets


def stride_of(data: Data) -> int:
    """Tokens from one window of evaluation to the next."""
    return max(data.context // 2, 1) if data.stride is None else data.stride


def load_text(data: Data, part: str) -> Text:
    """The "train" or "test" part of a text, whole.

    Raises:
        ValueError: no file, a file that cannot be read, a tokenizer that does not fit.
    """
    whole = _read(data)
    train, test = split_tokens(whole.tokens)
    tokens = train if part == "train" else test
    if data.name == "indexed_text":  # ids that somebody else made
        check_tokens(tokens, whole.tokenizer.vocab_size)
    return replace(whole, tokens=tokens)


def vocabulary_of(data: Data) -> int:
    """The number of ids of a recipe's tokenizer."""
    return _tokenizer(data, lambda: _text(data)).vocab_size


def check_text(data: Data, of_text: bool) -> None:
    """Refuse settings of a text for other data, and the other way round.

    Raises:
        ValueError: they would change nothing.
    """
    plain = Data()
    foreign = [name for name in vars(plain) if name not in (*FIELDS, *_SHARED)] if of_text else FIELDS
    idle = [name for name in foreign if getattr(data, name) != getattr(plain, name)]
    if idle:
        what = "a text" if of_text else "no text"
        raise ValueError(
            f"{data.name} is {what}, and Data.{', '.join(idle)} changes nothing there; expected the defaults: "
            f"{', '.join(f'{name}={getattr(plain, name)!r}' for name in idle)}. Texts have {', '.join(FIELDS)}."
        )


def check_tokenizer(checkpoint: Path, text: object) -> None:
    """Refuse a text whose ids mean something else than those that a checkpoint's network has learned.

    Raises:
        ValueError: the tokenizers differ.
    """
    if not isinstance(text, Text) or not (checkpoint / FILE).is_file():
        return
    learned = load_tokenizer(checkpoint)
    if learned != text.tokenizer:
        raise ValueError(
            f"{checkpoint} was trained with another tokenizer ({type(learned).__name__}, {learned.vocab_size} ids) "
            f"than that of the text now ({type(text.tokenizer).__name__}, {text.tokenizer.vocab_size} ids), whose ids "
            f"mean something else. Restore the text (--root), or read it with that one: --data.tokenizer {checkpoint}."
        )


def _read(data: Data) -> Text:
    if data.name == "indexed_text":
        prefix = Path(_root(data, "the files <prefix>.bin and <prefix>.idx of a tokenised text: --root PREFIX"))
        prefix = prefix.with_suffix("") if prefix.suffix in (".bin", ".idx") else prefix
        return Text(IndexedTokens(prefix).tokens, _tokenizer(data, lambda: _text(data)))
    if data.tokenizer == "characters":
        text = _text(data)
        characters = CharacterTokenizer.from_text(text)
        return Text(characters.encode(text), characters)
    tokenizer = _tokenizer(data, lambda: _text(data))
    if isinstance(tokenizer, ByteTokenizer) and data.name == "text_file":  # bytes as they are, UTF-8 or not
        parts = [read_tokens(path, tokenizer) for path in _files(data)]
        return Text(parts[0] if len(parts) == 1 else np.concatenate(parts), tokenizer)
    return Text(tokenizer.encode(_text(data)), tokenizer)


def _text(data: Data) -> str:
    """All of a text whose ids are made here."""
    if data.name == "king_james":
        return king_james()
    if data.name == "indexed_text":
        raise ValueError(
            f"indexed_text holds ids, and Data.tokenizer is {data.tokenizer!r}, whose ids come from a text; expected "
            "the tokenizer that the ids were made by: its file, a checkpoint folder, or bytes."
        )
    return "".join(read_text(path) for path in _files(data))


def _files(data: Data) -> list[Path]:
    """The files of a text: the one that is named, or those of a folder."""
    root = Path(_root(data, "a text file in UTF-8, or a folder of them: --root FILE"))
    if not root.exists():
        raise FileNotFoundError(f"There is nothing at {root}; expected a text file, or a folder of *.txt.")
    if root.is_file():
        return [root]
    inside = sorted(path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    texts = [path for path in inside if path.suffix == ".txt"]
    if texts or len(inside) == 1:
        return texts or inside
    raise ValueError(
        f"{root} has no *.txt, and {len(inside)} files; expected texts ending in .txt, which are read in the order of "
        "their names, or a single file. Name one: --root FILE."
    )


def _root(data: Data, holds: str) -> str:
    if data.root is None:
        raise ValueError(f"The data set {data.name} is read from files, and none was given. Pass {holds}.")
    return data.root


def _tokenizer(data: Data, text: Callable[[], str]) -> Tokenizer:
    """The tokenizer that a recipe names.

    Raises:
        ValueError: there is none there.
    """
    if data.tokenizer == "bytes":
        return ByteTokenizer()
    if data.tokenizer == "characters":
        return CharacterTokenizer.from_text(text())
    path = Path(data.tokenizer)
    if path.is_dir():
        return load_tokenizer(path)
    if path.is_file():
        return BPETokenizer.from_file(path)
    raise ValueError(
        f"Data.tokenizer is {data.tokenizer!r}, and there is no such file; expected bytes, characters, the file of a "
        "byte-level BPE (tokenizer.json, 20B_tokenizer.json), or a checkpoint folder."
    )
