"""`.bin/.idx` pairs: the bytes of the layout, round trips, memory maps, and damaged files."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spikeloom.datasets import IndexedTokens, TextWindows, write_indexed

DOCUMENTS = [np.array([5, 6, 7]), np.array([], dtype=np.uint8), np.array([65535, 0])]
# the index of DOCUMENTS by hand: type 8 (uint16), 3 sequences, 4 entries; sizes; bytes; documents
INDEX = (
    b"MMIDIDX\x00\x00"
    + struct.pack("<QBQQ", 1, 8, 3, 4)
    + struct.pack("<3i", 3, 0, 2)
    + struct.pack("<3q", 0, 6, 6)
    + struct.pack("<4q", 0, 1, 2, 3)
)
BINARY = struct.pack("<5H", 5, 6, 7, 65535, 0)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """The prefix of the hand-made pair."""
    (tmp_path / "text.idx").write_bytes(INDEX)
    (tmp_path / "text.bin").write_bytes(BINARY)
    return tmp_path / "text"


def test_the_layout_is_written_byte_by_byte(tmp_path: Path) -> None:
    write_indexed(tmp_path / "v1.0", DOCUMENTS)
    assert (tmp_path / "v1.0.idx").read_bytes() == INDEX
    assert (tmp_path / "v1.0.bin").read_bytes() == BINARY
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v1.0.bin", "v1.0.idx"]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            write_indexed(tmp_path / "text", DOCUMENTS)
        finally:
            os.umask(before)
        assert [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()] == [mode, mode]


def test_the_layout_is_read(pair: Path) -> None:
    found = IndexedTokens(pair)
    assert found.dtype == np.uint16
    assert found.tokens.tolist() == [5, 6, 7, 65535, 0]
    assert found.sizes.tolist() == [3, 0, 2]
    assert found.documents.tolist() == [0, 1, 2, 3]
    assert [part.tolist() for part in found] == [[5, 6, 7], [], [65535, 0]]
    assert found[-1].tolist() == [65535, 0]
    with pytest.raises(IndexError, match="Sequence 3 of 3"):
        found[3]


def test_documents_of_several_sequences_are_read(pair: Path) -> None:
    """Megatron's documents may be sentences: then there are fewer document entries than sequences."""
    head = bytearray(INDEX[:-32])
    head[26:34] = struct.pack("<Q", 2)
    pair.with_suffix(".idx").write_bytes(bytes(head) + struct.pack("<2q", 0, 3))
    assert IndexedTokens(pair).documents.tolist() == [0, 3]


@pytest.mark.parametrize(
    ("dtype", "code"), [("uint8", 1), ("int8", 2), ("int16", 3), ("int32", 4), ("int64", 5), ("uint16", 8), (">u2", 8)]
)
def test_round_trip_of_every_type(dtype: str, code: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    top = int(np.iinfo(np.dtype(dtype)).max)
    documents = [rng.integers(0, top, size, endpoint=True) if top < 2**63 - 1 else rng.integers(0, top, size)
                 for size in (1, 1000, 17)]  # fmt: skip
    found = write_indexed(tmp_path / "text", iter(documents), dtype)
    assert (tmp_path / "text.idx").read_bytes()[17] == code
    assert [part.tolist() for part in found] == [part.tolist() for part in documents]
    assert found.dtype.itemsize == np.dtype(dtype).itemsize


def test_tokens_are_a_view_of_the_file(pair: Path) -> None:
    found = IndexedTokens(pair)
    assert isinstance(found.tokens, np.memmap)
    assert not found.tokens.flags.writeable
    assert np.shares_memory(found[2], found.tokens)
    with pair.with_suffix(".bin").open("r+b") as file:  # a copy would not see this
        file.write(struct.pack("<H", 9))
    assert found.tokens[0] == 9
    assert TextWindows(found.tokens, 3).tokens is found.tokens


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, b"TNTIDX\x00\x00\x00", "begins with the bytes 54 4e 54 .*expected 4d 4d 49 44"),
        (9, struct.pack("<Q", 2), "version 2; expected 1"),
        (17, b"\x07", "type 7; expected one of 1 uint8"),
        (17, b"\x04", r"text.bin holds 10 bytes; text.idx promises 20 \(3 sequences of tokens of 4 bytes\)"),
        (18, struct.pack("<Q", 4), r"holds 102 bytes; its header \(4 sequences, 4 document entries\) promises 114"),
        (18, struct.pack("<Q", 2**63), "promises"),
        (34, struct.pack("<i", 4), "text.bin holds 10 bytes; text.idx promises 12"),
        (34, struct.pack("<i", -3), "sequence of -3 tokens"),
        (54, struct.pack("<q", 4), "sequence 1 begin at byte 4; expected 6"),
        (94, struct.pack("<q", 2), r"end at sequences \[0, 1, 2, 2\] \.\.\. \[2\]; expected .*0 to 3"),
        (70, struct.pack("<q", 1), r"end at sequences \[1, 1, 2, 3\]"),
        (78, struct.pack("<q", 9), r"end at sequences \[0, 9, 2, 3\]"),
    ],
    ids=["magic", "version", "float", "type", "count", "huge", "size", "negative", "pointer", "last", "first", "falls"],
)
def test_a_damaged_index_is_refused(place: int, value: bytes, message: str, pair: Path) -> None:
    data = bytearray(INDEX)
    data[place : place + len(value)] = value
    pair.with_suffix(".idx").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        IndexedTokens(pair)


@pytest.mark.parametrize("length", [0, 8, 20, 34, len(INDEX) - 1, len(INDEX) + 1])
def test_a_truncated_index_is_refused(length: int, pair: Path) -> None:
    pair.with_suffix(".idx").write_bytes((INDEX + b"\x00")[:length])
    with pytest.raises(ValueError, match=rf"holds {length} bytes|begins with"):
        IndexedTokens(pair)


@pytest.mark.parametrize("length", [0, 9, 12])
def test_a_binary_of_another_length_is_refused(length: int, pair: Path) -> None:
    pair.with_suffix(".bin").write_bytes((BINARY + b"\x00\x00")[:length])
    with pytest.raises(ValueError, match=rf"text.bin holds {length} bytes; text.idx promises 10"):
        IndexedTokens(pair)


def test_an_empty_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.idx").write_bytes(INDEX[:18] + struct.pack("<QQq", 0, 1, 0))
    (tmp_path / "text.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="hold no tokens"):
        IndexedTokens(tmp_path / "text")


def test_missing_files_and_wrong_prefixes(pair: Path) -> None:
    with pytest.raises(ValueError, match=r"give it without \.bin"):
        IndexedTokens(pair.with_suffix(".bin"))
    pair.with_suffix(".bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"text\.bin"):
        IndexedTokens(pair)


@pytest.mark.parametrize(
    ("documents", "dtype", "message"),
    [
        ([np.array([1, 65536])], "uint16", "document 0 has ids from 1 to 65536; expected 0 to 65535.*wider"),
        ([np.array([1]), np.array([-1])], "int32", "document 1 has ids from -1 to -1; expected 0 to"),
        (np.array([1, 2, 3]), "uint16", "document 0 is"),
        ([np.zeros((2, 2), np.uint8)], "uint16", r"document 0 is an array of shape \(2, 2\)"),
        ([np.zeros(2)], "uint16", "float64"),
        ([[1, 2]], "uint16", "document 0 is list"),
        ([], "uint16", "0 documents and no tokens"),
        ([np.zeros(0, np.uint8)], "uint16", "1 documents and no tokens"),
        ([np.array([1])], "float32", "dtype is float32; .*uint16"),
        ([np.array([1])], "uint32", "dtype is uint32"),
    ],
    ids=["large", "negative", "bare", "axes", "float", "list", "none", "empty", "float_type", "other_type"],
)
def test_what_cannot_be_written_is_refused(documents: Any, dtype: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_indexed(tmp_path / "text", documents, dtype)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_the_old_pair(pair: Path) -> None:
    def documents() -> Iterator[Any]:
        yield np.array([1, 2, 3])
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_indexed(pair, documents())
    assert IndexedTokens(pair).tokens.tolist() == [5, 6, 7, 65535, 0]
    assert len(list(pair.parent.iterdir())) == 2
