"""Ragged columns of HDF5 files: their places in the file, checked before the library follows them.

The library copies as many numbers as an entry claims, without a look at how many there are, and follows the sizes in a
heap wherever they lead: a damaged file crashes or stops it. An entry is 16 bytes: uint32 count, uint64 address of a
heap, uint32 number in it. A heap is `GCOL`, version 1, uint64 size at byte 8, then objects: uint16 number (0: the rest
is free), uint64 size at byte 8, and the bytes, filled up to a multiple of 8. (HDF5 File Format Specification 3.0.)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ENTRY = np.dtype([("count", "<u4"), ("heap", "<u8"), ("number", "<u4")])
_FLOATS = {2: (15, 10, 5, 0, 10, 15), 4: (31, 23, 8, 0, 23, 127), 8: (63, 52, 11, 0, 52, 1023)}
"""Bits of sign, exponent (and their number) and mantissa (likewise), and the exponent's bias, by bytes."""
_GZIP, _SHUFFLE = 1, 2  # numbers of filters
_MOST_CHUNK = 2**28  # bytes, unpacked
_HEAD = 16  # bytes in front of a heap's objects, and of an object's bytes


def check_ragged(path: Path, dataset: Any) -> None:
    """Raise unless a dataset `[R]` is rows of numbers, and each row lies whole in its heap.

    Of a file that is laid out in another way (other filters than gzip and shuffle, addresses of other sizes) only the
    first is checked.

    Raises:
        ValueError: it is not, or one does not.
    """
    element_bytes = _element_bytes(dataset)
    if dataset.file.userblock_size or tuple(dataset.file.id.get_create_plist().get_sizes()) != (8, 8):
        return
    if not set(_filters(dataset)) <= {_GZIP, _SHUFFLE}:
        return
    data = np.memmap(path, np.uint8, "r")
    heaps: dict[int, dict[int, int]] = {}
    room = len(data)
    for entries in _entries(data, dataset):
        for count, heap, number in entries[entries["count"] > 0].tolist():
            if heap not in heaps:
                heaps[heap], size = _objects(data, heap)
                room -= size
                if room < 0:  # each would be read again and again
                    raise ValueError(f"heaps that lie in one another, the last at byte {heap:,}")
            if heaps[heap].get(number, -1) < count * element_bytes:
                raise ValueError(f"a row of {count:,} numbers, which the heap at byte {heap:,} does not hold")


def _element_bytes(dataset: Any) -> int:
    """Bytes of a number; its bits in the file must be the usual ones, since the library trusts other ones, too."""
    kind = (dataset.dtype.metadata or {}).get("vlen")
    if not isinstance(kind, np.dtype) or kind.kind not in "iuf":
        raise ValueError(f"{dataset.name} holds {dataset.dtype}; expected rows of numbers")
    rows = dataset.id.get_type()
    stored, size = rows.get_super(), int(kind.itemsize)
    # bytes 3 to 5 of an encoded type: of rows of numbers all 0, other values stand for strings or nothing
    usual = rows.encode()[3:6] == bytes(3)
    usual = usual and (stored.get_size(), stored.get_precision(), stored.get_offset()) == (size, 8 * size, 0)
    if kind.kind == "f":
        usual = usual and (*stored.get_fields(), stored.get_ebias()) == _FLOATS.get(size)
    if not usual:
        raise ValueError(f"{dataset.name} holds numbers of an unusual form")
    return size


def _entries(data: NDArray[np.uint8], dataset: Any) -> Iterator[NDArray[Any]]:
    """All entries, chunk by chunk."""
    if dataset.chunks is None:
        start, size = dataset.id.get_offset(), dataset.shape[0] * _ENTRY.itemsize
        if start is not None:
            yield _cut(data, start, size).view(_ENTRY)
        return
    filters, size = _filters(dataset), dataset.chunks[0] * _ENTRY.itemsize
    if size > _MOST_CHUNK:
        raise ValueError(f"chunks of {dataset.chunks[0]:,} rows")
    for number in range(dataset.id.get_num_chunks()):
        info = dataset.id.get_chunk_info(number)
        raw = _cut(data, info.byte_offset, info.size).tobytes()
        for place, code in reversed(list(enumerate(filters))):
            if not info.filter_mask >> place & 1:  # a chunk may go without one
                raw = _unfiltered(raw, code, size)
        if len(raw) != size:
            raise ValueError(f"a chunk of {len(raw):,} bytes in the place of {size:,}")
        yield np.frombuffer(raw, _ENTRY)


def _filters(dataset: Any) -> list[int]:
    """Numbers of the filters that chunks went through, the first one first."""
    plist = dataset.id.get_create_plist()
    return [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]


def _unfiltered(raw: bytes, code: int, size: int) -> bytes:
    if code == _GZIP:
        return zlib.decompressobj().decompress(raw, size)
    if len(raw) != size:
        raise ValueError(f"a chunk of {len(raw):,} bytes in the place of {size:,}")
    return np.frombuffer(raw, np.uint8).reshape(_ENTRY.itemsize, -1).T.tobytes()


def _objects(data: NDArray[np.uint8], start: int) -> tuple[dict[int, int], int]:
    """Bytes of each object of the heap at a byte of the file, by number; and bytes of the heap."""
    head = _cut(data, start, _HEAD).tobytes()
    size = int.from_bytes(head[8:], "little")
    if head[:5] != b"GCOL\x01":
        raise ValueError(f"no heap at byte {start:,}")
    heap, at, found = _cut(data, start, size).tobytes(), _HEAD, {}
    while at + _HEAD <= size:
        number = int.from_bytes(heap[at : at + 2], "little")
        length = int.from_bytes(heap[at + 8 : at + 16], "little")
        room = length if number == 0 else _HEAD + -(-length // 8) * 8
        if at + room > size or room < _HEAD:
            raise ValueError(f"an object of {length:,} bytes in the heap at byte {start:,}, which has {size:,}")
        if number:
            found[number] = length
        at += room
    return found, size


def _cut(data: NDArray[np.uint8], start: int, size: int) -> NDArray[np.uint8]:
    if start + size > len(data):
        raise ValueError(f"bytes {start:,} to {start + size:,} of a file of {len(data):,}")
    part: NDArray[np.uint8] = data[start : start + size]
    return part
