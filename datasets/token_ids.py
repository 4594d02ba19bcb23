"""Token ids: the interface of a tokenizer, and the checks that all of them share.

A text of N tokens is an array `[N]` of the smallest of uint8, uint16 and int32 that holds every id, so that a text of
100 million bytes takes 100 MB. Batches for a network are int64 tensors; `TextWindows` makes them.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Tokens: TypeAlias = NDArray[np.integer[Any]]
Ids: TypeAlias = Sequence[int] | Tokens | Tensor

FILE = "tokenizer.json"  # in a checkpoint's folder
CHUNK = 1 << 22  # tokens looked at together, so that a file in a memory map is never copied whole
_NAMED = 10  # unknown characters that a message names


class Tokenizer(Protocol):
    """Text to ids and back."""

    @property
    def vocab_size(self) -> int:
        """Number of ids: they are 0 to vocab_size - 1."""

    def encode(self, text: str) -> Tokens:
        """Ids `[N]` of a text. Raises ValueError for characters that have none."""

    def decode(self, ids: Ids) -> str:
        """The text of ids `[N]`. Raises ValueError for an id that is none."""

    def save(self, folder: str | Path) -> Path:
        """Write `tokenizer.json` into a folder, for `load_tokenizer`; returns the file."""


def token_dtype(vocab_size: int) -> np.dtype[np.integer[Any]]:
    """The smallest of uint8, uint16 and int32 that holds ids below `vocab_size`."""
    if not 1 <= vocab_size <= 1 << 31:
        raise ValueError(f"vocab_size is {vocab_size}; expected 1 to 2^31.")
    if vocab_size <= 1 << 8:
        return np.dtype(np.uint8)
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


def require_tokens(tokens: Any, name: str = "tokens") -> None:
    """Raises ValueError unless `tokens` is an array `[N]` of integers."""
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        found = f"{type(tokens).__name__}"
        if isinstance(tokens, np.ndarray):
            found = f"an array of shape {tokens.shape} and type {tokens.dtype}"
        raise ValueError(f"{name} is {found}; expected an array [N] of integers, such as a tokenizer's encode gives.")


def check_tokens(tokens: Tokens, vocab_size: int) -> None:
    """Check that a network with `vocab_size` tokens can read a text `[N]`; a memory map is read in pieces.

    Raises:
        ValueError: an id is not from 0 to vocab_size - 1; says which and where.
    """
    require_tokens(tokens)
    for start in range(0, len(tokens), CHUNK):
        piece = tokens[start : start + CHUNK]
        if int(piece.min()) < 0 or int(piece.max()) >= vocab_size:
            # compared as Python integers: -1 or 70,000 need not fit the type of the tokens
            low, high = np.less(piece, 0), np.greater_equal(piece, vocab_size)
            at = int(np.flatnonzero(low | high)[0])
            raise ValueError(
                f"Token {start + at} is {int(piece[at])}; expected 0 to {vocab_size - 1}, as vocab_size is "
                f"{vocab_size}. Read the text with the tokenizer that the network was made for, or make the network "
                "with the vocab_size of this tokenizer."
            )


def as_ids(ids: Ids, vocab_size: int) -> Tokens:
    """Ids `[N]` of any kind as a checked array, for `decode`.

    Raises:
        ValueError: they are not one-dimensional integers, or one is not from 0 to vocab_size - 1.
    """
    found = as_integers(ids, "ids")
    check_tokens(found, vocab_size)
    return found


def as_integers(numbers: Ids, name: str) -> Tokens:
    """Integers `[N]` of any kind as an array; a list may be empty.

    Raises:
        ValueError: a ragged list, another type (floating tensors too), or more dimensions or fewer.
    """
    if isinstance(numbers, Tensor):
        if numbers.is_floating_point():  # NumPy lacks some of these types
            raise ValueError(f"{name} is a tensor of type {numbers.dtype}; expected integers [N], such as int64.")
        found = numbers.detach().cpu().numpy()
    elif isinstance(numbers, list | tuple) and not numbers:
        return np.empty(0, dtype=np.int64)
    else:
        try:
            found = np.asarray(numbers)
        except ValueError as error:  # NumPy: "inhomogeneous shape"
            raise ValueError(f"{name} is a ragged list; expected integers [N].") from error
    require_tokens(found, name)
    return found


def unknown_characters(text: str, positions: Iterable[int], advice: str) -> ValueError:
    """The error for characters of `text` that have no id."""
    places = list(positions)
    named = ", ".join(f"{text[at]!r} (U+{ord(text[at]):04X}) at {at}" for at in places[:_NAMED])
    more = "" if len(places) <= _NAMED else f", and {len(places) - _NAMED} more"
    return ValueError(
        f"The text has characters without an id: {named}{more} (positions in characters, from 0). {advice}"
    )


def utf8(text: str) -> bytes:
    """The UTF-8 encoding of a text.

    Raises:
        ValueError: it has lone surrogates, which UTF-8 cannot hold.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        places = (at for at, character in enumerate(text) if "\ud800" <= character <= "\udfff")
        raise unknown_characters(text, places, "Lone surrogates are no text; remove them.") from error


def write_description(folder: str | Path, description: dict[str, Any]) -> Path:
    """Write `tokenizer.json`: an interrupted write leaves the old file, never half of a new one."""
    path = Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_beside(path)
    try:
        with part.open("w", encoding="ascii") as file:
            json.dump(description, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def part_beside(path: Path) -> Path:
    """An empty file beside `path`, of a name of its own, with the mode that `open` gives any new file.

    Files of `tempfile` are for their owner alone (0600), and would stay so under their last name.
    """
    while True:
        part = path.with_name(f"{path.name}{secrets.token_hex(4)}.part")
        try:
            part.open("xb").close()
        except FileExistsError:
            continue
        return part
