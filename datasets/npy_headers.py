"""What arrays in .npy and .npz files claim, before memory is taken for it: a few bytes may claim any size."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_MOST_ELEMENT = 64  # bytes of an event in a structured array
_MOST_HEADER = 2**16
_MOST_UNPACKED = 1100  # times: deflate cannot do more


def check_members(path: str | Path) -> list[tuple[int, ...]]:
    """Shapes of the arrays of a .npz.

    Raises:
        ValueError: one does not fit into its place in the file.
        zipfile.BadZipFile: no such file; of a damaged one nearly anything may be raised.
    """
    size, shapes = Path(path).stat().st_size, []
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.file_size > size * _MOST_UNPACKED:
                raise ValueError(f"{member.filename!r} of {member.file_size:,} bytes in a file of {size:,}")
            with archive.open(member) as file:
                shapes.append(check_header(file, member.file_size))
    return shapes


def check_header(file: Any, room: int) -> tuple[int, ...]:
    """Shape of the array that a file of `room` bytes begins with.

    Raises:
        ValueError: Python objects, or more than there is room for.
    """
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # their headers' length has 32 bits, and memory is taken for it before it is read
        place = file.tell()
        length = int.from_bytes(file.read(4), "little")
        if length > _MOST_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        file.seek(place)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("an array of Python objects; only numbers are read")
    if dtype.itemsize > _MOST_ELEMENT:
        raise ValueError(f"an array of {dtype.itemsize} bytes an element")
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > room:
        raise ValueError(f"an array of shape {shape} of {dtype.itemsize} bytes each in a file of {room:,}")
    found: tuple[int, ...] = shape
    return found
