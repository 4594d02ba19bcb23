"""The little of FlatBuffers that AEDAT 4 needs, with every offset checked: fields of a table, a vector, a string.

A table begins with the signed distance back to its vtable: uint16 lengths of vtable and table, then for each field the
uint16 offset in the table, 0 where it has its default. References are unsigned distances forwards.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

Buffer = bytes | memoryview


@dataclass(frozen=True)
class Table:
    """A table at byte `place` of `data`."""

    data: Buffer
    place: int

    def field(self, index: int) -> int:
        """Byte of a field; 0: it is left out."""
        vtable = self.place - _read("<i", self.data, self.place)
        size = _read("<H", self.data, vtable)
        if 4 + 2 * index + 2 > size:
            return 0
        offset = _read("<H", self.data, vtable + 4 + 2 * index)
        return self.place + offset if offset else 0

    def whole(self, index: int, kind: str, default: int) -> int:
        """A field that is a number of struct format `kind`."""
        at = self.field(index)
        return _read(kind, self.data, at) if at else default

    def vector(self, index: int, size: int) -> tuple[int, int]:
        """First byte and number of the elements of a vector, each of `size` bytes, all inside; (0, 0): left out."""
        at = self.field(index)
        if not at:
            return 0, 0
        at += _read("<I", self.data, at)
        count = _read("<I", self.data, at)
        if at + 4 + count * size > len(self.data):
            raise ValueError(f"a vector of {count} elements of {size} bytes at byte {at} of {len(self.data)}")
        return at + 4, count


def root(data: Buffer, name: bytes) -> Table:
    """The root table of a buffer whose type is `name`."""
    if bytes(data[4:8]) != name:
        raise ValueError(f"a table of type {bytes(data[4:8])!r}; expected {name!r}")
    return Table(data, _read("<I", data, 0))


def _read(kind: str, data: Buffer, at: int) -> int:
    if at < 0 or at + struct.calcsize(kind) > len(data):
        raise ValueError(f"an offset to byte {at} of a table of {len(data)} bytes")
    return int(struct.unpack_from(kind, data, at)[0])
