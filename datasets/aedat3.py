"""AEDAT 3.1 files, as written by cAER: the polarity events of a whole recording.

Text lines up to '#!END-HEADER', then packets, little-endian: a header of 28 bytes and the events. The header is int16
type, int16 source, then int32 bytes an event, offset of the time in it, overflow of the time, capacity, number, valid;
capacity x bytes an event follow. Type 1 holds polarity events of 8 bytes, a word and an int32 time in microseconds:

    bit 0          1 = valid; others are left out
    bit 1          polarity, 1 = ON
    bits 2 .. 16   y, row from the top
    bits 17 .. 31  x, column

The time of the packet's events is overflow * 2**31 + time. Packets of other types are skipped.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from spikeloom.datasets.events import Events

_END = b"#!END-HEADER"
_PACKET = struct.Struct("<hhiiiiii")
_POLARITY = 1
_EVENT_BYTES = 8


def read_aedat3(path: str | Path, height: int = 128, width: int = 128) -> Events:
    """Read the valid polarity events of one AEDAT 3.1 recording; times as stored."""
    data = Path(path).read_bytes()
    position = _header_bytes(path, data)
    words, times = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    while position < len(data):
        if len(data) - position < _PACKET.size:
            raise _cut_off(path, position, _PACKET.size, len(data))
        kind, _, size, _, overflow, capacity, number, _ = _PACKET.unpack_from(data, position)
        position += _PACKET.size
        if size < 0 or capacity < number or number < 0 or (kind == _POLARITY and size != _EVENT_BYTES):
            raise ValueError(
                f"{path} has a packet of type {kind} with {number} of {capacity} events of {size} bytes before byte "
                f"{position}; polarity events take {_EVENT_BYTES}. The file is damaged or of another format."
            )
        if len(data) - position < size * capacity:
            raise _cut_off(path, position, size * capacity, len(data))
        if kind == _POLARITY:
            columns = np.frombuffer(data, dtype="<u4", count=2 * number, offset=position).reshape(-1, 2)
            words.append(columns[:, 0].astype(np.int64))
            times.append(columns[:, 1].astype(np.int64) + (overflow << 31))
        position += size * capacity
    word, t = np.concatenate(words), np.concatenate(times)
    valid = (word & 1) == 1
    word, t = word[valid], t[valid]
    try:
        return Events.from_arrays(t, word >> 17 & 0x7FFF, word >> 2 & 0x7FFF, word >> 1 & 1, height, width)
    except ValueError as error:
        raise ValueError(f"{path} is not a recording of this sensor. {error}") from error


def _header_bytes(path: str | Path, data: bytes) -> int:
    """Length of the text before the first packet."""
    if not data.startswith(b"#!AER-DAT3"):
        raise ValueError(
            f"{path} begins with {data[:12]!r}; an AEDAT 3.1 file begins with the line '#!AER-DAT3.1'. Is it another "
            "file under this name?"
        )
    marker = data.find(_END)
    line_end = data.find(b"\n", marker)
    if marker < 0 or line_end < 0:
        raise ValueError(f"{path} holds {len(data)} bytes without the line '{_END.decode()}'; it was cut off.")
    return line_end + 1


def _cut_off(path: str | Path, position: int, expected: int, length: int) -> ValueError:
    return ValueError(
        f"{path} ends at byte {length}: after byte {position} a packet takes {expected} bytes, found "
        f"{length - position}. The copy or download was probably cut off: unpack the archive again."
    )
