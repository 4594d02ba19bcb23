"""Numeric arrays of MATLAB files of version 5 (`save -v6` and `-v7`), with every length checked.

128 bytes of text, version and byte order, then elements: uint32 type and length, or both in one uint32 (length in the
upper half) with up to 4 bytes of data behind, each padded to 8 bytes. Type 15 is an element compressed by zlib, type 14
an array: its flags, sizes, name and numbers are elements in turn. The numbers may be stored in a smaller type than the
array's class. Format: MathWorks, "MAT-File Format". scipy.io.loadmat crashes on some damaged files; the tests compare.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_ARRAY, _PACKED = 14, 15
_COMPLEX = 1 << 11


def read_mat5(path: str | Path, wanted: frozenset[str], most: int) -> dict[str, NDArray[Any]]:
    """The real numeric arrays of a file whose names are wanted.

    Args:
        path: the file.
        wanted: names of arrays; others are skipped.
        most: bytes that an array may take.

    Raises:
        ValueError: another version, a damaged file, a larger array.
    """
    data = memoryview(Path(path).read_bytes())
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]), "")
    if not order or struct.unpack_from(f"{order}H", data, 124)[0] != 0x0100:
        raise ValueError(
            f"bytes 124 to 127 are {bytes(data[124:128])!r}: not a MATLAB file of version 5. Save it again with "
            "`save -v7`"
        )
    found = {}
    for place, kind, body in _elements(data, 128, order):
        try:
            if kind == _PACKED:
                unpacked = _unpacked(body, most)
                kind, body = next(((k, b) for _, k, b in _elements(unpacked, 0, order)), (0, body))
            if kind == _ARRAY:
                name, array = _array(body, order, wanted)
                if array is not None:
                    found[name] = array
        except (ValueError, struct.error, zlib.error) as error:
            raise ValueError(f"the element at byte {place}: {error}") from error
    return found


def _elements(data: memoryview, start: int, order: str) -> Iterator[tuple[int, int, memoryview]]:
    """Place, type and bytes of the elements of a file or an array."""
    while start < len(data):
        if start + 8 > len(data):
            raise ValueError(f"{len(data) - start} bytes are left at byte {start}; an element takes 8 or more")
        kind, length = struct.unpack_from(f"{order}II", data, start)
        if kind >> 16:
            kind, length, first = kind & 0xFFFF, kind >> 16, start + 4
            after = start + 8
            if length > 4:
                raise ValueError(f"a small element of {length} bytes at byte {start}; it holds 4 at most")
        else:
            first = start + 8
            after = first + (length if kind == _PACKED else -(-length // 8) * 8)
        if first + length > len(data):
            raise ValueError(f"an element of {length} bytes at byte {start}; {len(data) - first} are left")
        yield start, kind, data[first : first + length]
        start = after


def _unpacked(packed: memoryview, most: int) -> memoryview:
    room = most + 4096  # flags, sizes and name
    decoder = zlib.decompressobj()
    found = decoder.decompress(packed, room + 1)
    if len(found) > room:
        raise ValueError(f"it unpacks to more than {room:,} bytes, which max_events does not allow")
    if not decoder.eof:
        raise ValueError("its compressed bytes are cut off")
    return memoryview(found)


def _array(body: memoryview, order: str, wanted: frozenset[str]) -> tuple[str, NDArray[Any] | None]:
    """Name and numbers of an array; None: not wanted. Cells, structs, characters and sparse arrays are never read."""
    parts = [(kind, part) for _, (_, kind, part) in zip(range(4), _elements(body, 0, order), strict=False)]
    if len(parts) < 3 or len(parts[0][1]) < 8 or len(parts[1][1]) % 4:
        raise ValueError("an array without flags, sizes and name")
    name = bytes(parts[2][1]).decode("latin-1")
    if name not in wanted:
        return name, None
    (flags,) = struct.unpack_from(f"{order}I", parts[0][1])
    shape = struct.unpack(f"{order}{len(parts[1][1]) // 4}i", parts[1][1])
    if flags & 0xFF not in _CLASSES or flags & _COMPLEX or len(parts) < 4 or parts[3][0] not in _TYPES:
        raise ValueError(f"the array {name} is of class {flags & 0xFF}; expected real numbers")
    stored = np.dtype(order + _TYPES[parts[3][0]])
    if any(n < 0 for n in shape) or math.prod(shape) * stored.itemsize != len(parts[3][1]):
        raise ValueError(f"the array {name} has the sizes {shape} and {len(parts[3][1])} bytes of {stored}")
    numbers = np.frombuffer(parts[3][1], stored).reshape(shape, order="F")
    return name, numbers.astype(_CLASSES[flags & 0xFF])
