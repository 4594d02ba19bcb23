"""The IDX format of the MNIST family: a big-endian header, then unsigned bytes.

Bytes 0 and 1 are 0, byte 2 is the type (8: unsigned byte), byte 3 the number of axes n; n lengths of 4 bytes follow,
then the values, the last axis fastest. Described on the page of MNIST, http://yann.lecun.com/exdb/mnist.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

_UNSIGNED_BYTE = 8
_GZIP = 31  # zlib's window setting that expects a gzip header and checks the sum at the end


def read_idx(path: str | Path, axes: int) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or (name ends in .gz) compressed, as a uint8 tensor of `axes` axes."""
    path = Path(path)
    data, whole = _content(path)
    header = 4 + 4 * axes
    if len(data) < header:
        raise ValueError(f"{path} holds {len(data)} bytes; an IDX header of {axes} axes takes {header}. {_AGAIN}")
    magic, wanted = bytes(data[:4]), bytes((0, 0, _UNSIGNED_BYTE, axes))
    if magic != wanted:
        raise ValueError(
            f"{path} begins with the bytes {magic.hex(' ')}; an IDX file of unsigned bytes with {axes} axes begins "
            f"with {wanted.hex(' ')}. Is it another file under this name?"
        )
    shape = [int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(axes)]
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise ValueError(
            f"{path} holds {len(data)} bytes; its header (shape {tuple(shape)}) promises {expected}. {_AGAIN}"
        )
    if not whole:
        raise ValueError(f"{path} ends within gzip's check sum. {_AGAIN}")
    return torch.frombuffer(bytearray(data[header:]), dtype=torch.uint8).view(shape)


_AGAIN = "The copy or download was probably cut off: get the file again."


def _content(path: Path) -> tuple[bytes, bool]:
    """The bytes of a file, and whether it is whole; of a compressed one that was cut off, as many as can be had."""
    raw = path.read_bytes()
    if path.suffix != ".gz":
        return raw, True
    unpacker = zlib.decompressobj(_GZIP)
    try:
        return unpacker.decompress(raw), unpacker.eof
    except zlib.error as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}). {_AGAIN}") from error
