"""Tokenised documents as a pair of files, `<prefix>.bin` and `<prefix>.idx`, the layout of Megatron-LM.

M. Shoeybi et al., arXiv 1909.08053; read by the training script of SpikeGPT (R.-J. Zhu et al., arXiv 2302.13939). All
numbers are little-endian. `.bin` holds the tokens of all sequences, one after the other. `.idx`:

    9 bytes   MMIDIDX, 0, 0
    uint64    version, 1
    uint8     type of a token: 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64, 8 uint16 (6 and 7, floats, are no tokens)
    uint64    number of sequences n
    uint64    number of document entries m
    int32 n   tokens per sequence
    int64 n   byte of `.bin` at which a sequence begins
    int64 m   0, then the number of sequences up to the end of each document
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from spikeloom.datasets.token_ids import CHUNK, Tokens, part_beside, require_tokens

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_TYPES: dict[int, str] = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_AGAIN = "The copy was probably cut off, or the two files are not of one pair: get or write them again."


class IndexedTokens:
    """A pair of files, mapped into memory read-only.

    `tokens` `[N]` is the text of all documents as one, which is what training draws windows from; item i is sequence i.

    Attributes:
        tokens: `[N]`, in the type of the file.
        sizes: `[n]` int32, tokens per sequence.
        documents: `[m]` int64, 0 and then the number of sequences up to the end of each document.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the index is damaged or does not fit the `.bin`; says what was found and expected.
    """

    def __init__(self, prefix: str | Path) -> None:
        binary, index = _paths(prefix)
        code, sequences, entries = _header(index)
        self.dtype: np.dtype[np.integer[Any]] = np.dtype(_TYPES[code])
        self.sizes: NDArray[np.int32] = _column(index, "<i4", _HEADER.size, sequences)
        self._pointers: NDArray[np.int64] = _column(index, "<i8", _HEADER.size + 4 * sequences, sequences)
        self.documents: NDArray[np.int64] = _column(index, "<i8", _HEADER.size + 12 * sequences, entries)
        self._check(binary, index)
        self.tokens: Tokens = np.memmap(binary, dtype=self.dtype, mode="r")

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.sizes)

    def __getitem__(self, sequence: int) -> Tokens:
        """Tokens of a sequence, a view of the file."""
        if not -len(self) <= sequence < len(self):
            raise IndexError(f"Sequence {sequence} of {len(self)}.")
        start = int(self._pointers[sequence]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.sizes[sequence])]

    def _check(self, binary: Path, index: Path) -> None:
        if len(self.sizes) and int(self.sizes.min()) < 0:
            raise ValueError(f"{index} has a sequence of {int(self.sizes.min())} tokens; expected 0 or more. {_AGAIN}")
        size, expected = binary.stat().st_size, int(self.sizes.sum(dtype=np.int64)) * self.dtype.itemsize
        if size != expected:
            raise ValueError(
                f"{binary} holds {size} bytes; {index.name} promises {expected} ({len(self.sizes)} sequences of tokens "
                f"of {self.dtype.itemsize} bytes). {_AGAIN}"
            )
        if expected == 0:
            raise ValueError(f"{binary} and its index are whole, but hold no tokens; expected a text.")
        wrong = np.flatnonzero(self._pointers != _starts(self.sizes, self.dtype.itemsize))
        if len(wrong):
            raise ValueError(
                f"{index} lets sequence {wrong[0]} begin at byte {int(self._pointers[wrong[0]])}; expected "
                f"{int(_starts(self.sizes, self.dtype.itemsize)[wrong[0]])}, the end of those before it. {_AGAIN}"
            )
        ends = self.documents
        if not len(ends) or ends[0] != 0 or ends[-1] != len(self) or bool((np.diff(ends) < 0).any()):
            raise ValueError(
                f"{index} lists documents that end at sequences {ends[:5].tolist()} ... {ends[-1:].tolist()}; expected "
                f"numbers that rise from 0 to {len(self)}. {_AGAIN}"
            )


def write_indexed(prefix: str | Path, documents: Iterable[Tokens], dtype: DTypeLike = np.uint16) -> IndexedTokens:
    """Write `<prefix>.bin` and `<prefix>.idx`, each document `[N]` as one sequence, and open them.

    Documents are taken one at a time, so a generator may tokenise them meanwhile. The pair gets its names when both
    files are whole. The official reader takes uint16 for granted; a vocabulary above 65,536 needs int32.

    Raises:
        ValueError: a type that the layout lacks, a document that is not an integer array `[N]`, ids that do not fit the
            type, or no tokens at all.
    """
    binary, index = _paths(prefix)
    kind = np.dtype(dtype).newbyteorder("<")
    code = next((number for number, name in _TYPES.items() if np.dtype(name) == kind), None)
    if code is None:
        names = [np.dtype(name).name for name in _TYPES.values()]
        raise ValueError(f"dtype is {np.dtype(dtype).name}; a file of tokens has one of {names}.")
    parts: list[Path] = []
    try:
        parts.append(part_beside(binary))
        sizes = _write_tokens(parts[0], documents, kind)
        parts.append(part_beside(index))
        with parts[1].open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, _VERSION, code, len(sizes), len(sizes) + 1))
            file.write(sizes.astype("<i4").tobytes())
            file.write(_starts(sizes, kind.itemsize).astype("<i8").tobytes())
            file.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(parts[0], binary)
        os.replace(parts[1], index)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return IndexedTokens(prefix)


def _paths(prefix: str | Path) -> tuple[Path, Path]:
    path = Path(prefix)
    if path.suffix in (".bin", ".idx"):
        raise ValueError(f"prefix is {str(path)!r}; give it without {path.suffix}: {str(path.with_suffix(''))!r}.")
    return path.with_name(path.name + ".bin"), path.with_name(path.name + ".idx")


def _write_tokens(path: Path, documents: Iterable[Tokens], kind: np.dtype[Any]) -> NDArray[np.int64]:
    """Write the tokens of all documents; returns their lengths."""
    largest = int(np.iinfo(kind).max)
    sizes: list[int] = []
    with path.open("wb") as file:
        for number, document in enumerate(documents):
            require_tokens(document, f"document {number}")
            if len(document) > np.iinfo(np.int32).max:
                raise ValueError(f"document {number} has {len(document)} tokens; the layout takes 2^31 - 1. Split it.")
            for start in range(0, len(document), CHUNK):
                piece = document[start : start + CHUNK]
                if int(piece.min()) < 0 or int(piece.max()) > largest:
                    raise ValueError(
                        f"document {number} has ids from {int(piece.min())} to {int(piece.max())}; expected "
                        f"0 to {largest}, which {kind.name} holds. For larger ids pass a wider dtype, such as np.int32."
                    )
                file.write(np.ascontiguousarray(piece, dtype=kind).tobytes())
            sizes.append(len(document))
        if not any(sizes):
            raise ValueError(f"There are {len(sizes)} documents and no tokens; expected one document [N] or more.")
        file.flush()
        os.fsync(file.fileno())  # the bytes must be on disk before the name points to them
    return np.array(sizes, dtype=np.int64)


def _starts(sizes: NDArray[Any], itemsize: int) -> NDArray[np.int64]:
    """Bytes `[n]` at which sequences begin that lie one after the other."""
    ends = np.cumsum(sizes, dtype=np.int64) * itemsize
    return np.concatenate((np.zeros(1, dtype=np.int64), ends[:-1]))[: len(sizes)]


def _header(index: Path) -> tuple[int, int, int]:
    """Token type, number of sequences and of document entries of an index whose length fits them."""
    size = index.stat().st_size
    with index.open("rb") as file:
        raw = file.read(_HEADER.size)
    if not raw.startswith(_MAGIC):
        raise ValueError(
            f"{index} begins with the bytes {raw[: len(_MAGIC)].hex(' ')}; expected {_MAGIC.hex(' ')} (MMIDIDX). Is it "
            "another file under this name, or one of Megatron's other layouts?"
        )
    if len(raw) < _HEADER.size:
        raise ValueError(f"{index} holds {size} bytes; its header takes {_HEADER.size}. {_AGAIN}")
    _, version, code, sequences, entries = _HEADER.unpack(raw)
    if version != _VERSION:
        raise ValueError(f"{index} is of version {version}; expected {_VERSION}.")
    if code not in _TYPES:
        kinds = ", ".join(f"{number} {np.dtype(name).name}" for number, name in _TYPES.items())
        raise ValueError(f"{index} has tokens of type {code}; expected one of {kinds}.")
    expected = _HEADER.size + 12 * sequences + 8 * entries
    if size != expected:
        raise ValueError(
            f"{index} holds {size} bytes; its header ({sequences} sequences, {entries} document entries) promises "
            f"{expected}. {_AGAIN}"
        )
    return code, sequences, entries


def _column(path: Path, kind: str, offset: int, count: int) -> NDArray[Any]:
    if count == 0:
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r", offset=offset, shape=(count,))
