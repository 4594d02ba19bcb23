"""AEDAT 4 files, as written by DV and dv-processing: the events of one stream.

The line '#!AER-DAT4.0', then, little-endian, uint32 length and a FlatBuffers table `IOHE`: compression (0 none, 1 and 2
LZ4, 3 and 4 Zstandard), byte of the table at the end of the file (-1: none), description of the streams as XML. Then
packets: int32 stream, int32 length, compressed bytes of a size-prefixed table; that of events, `EVTS`, has one vector
of 16 bytes an event: int64 microseconds since 1970, int16 x, int16 y, bool polarity, 3 bytes of padding.

Decoded here, with every offset and length checked: the package `aedat`, with which the tests compare, aborts the whole
process on some damaged files.
"""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeloom.datasets.events import Events
from spikeloom.datasets.flat_tables import Table, root
from spikeloom.datasets.raw_columns import MAX_EVENTS, check_count, to_events

_MAGIC = b"#!AER-DAT4.0\r\n"
_EVENT = np.dtype(
    {"names": ["t", "x", "y", "p"], "formats": ["<i8", "<i2", "<i2", "u1"], "offsets": [0, 8, 10, 12], "itemsize": 16}
)
_OVERHEAD = 4096  # bytes of a packet besides its events
_DAMAGED = (ValueError, RuntimeError, EOFError, struct.error)


def read_aedat4(
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    rebase: bool = True,
    max_events: int = MAX_EVENTS,
) -> Events:
    """Read the only stream of events of a recording; its size is the file's where the call gives none.

    rebase: times count from the earliest event (the file has microseconds since 1970).

    Raises:
        ValueError: a damaged file, no stream of events or more than one, events outside the sensor.
        ImportError: the file is compressed and the package for that is not installed.
    """
    data = memoryview(Path(path).read_bytes())
    if bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise ValueError(
            f"{path} begins with {bytes(data[:14])!r}; an AEDAT 4 file begins with the line '#!AER-DAT4.0'."
        )
    try:
        start, end, unpack, streams = _header(data)
    except _DAMAGED as error:
        raise ValueError(f"{path}: its header is damaged: {error}.") from error
    if len(streams) != 1:
        raise ValueError(f"{path} has {len(streams)} streams of events; expected one.")
    ((stream, size),) = streams.items()
    parts, count = [np.zeros(0, _EVENT)], 0
    for place, packet in _packets(path, data, start, end, stream):
        try:
            part = _events(unpack(packet, (max_events - count) * _EVENT.itemsize + _OVERHEAD))
        except _DAMAGED as error:
            raise ValueError(f"{path}: the packet at byte {place} is damaged: {error}.") from error
        count += len(part)
        check_count(path, count, max_events)
        parts.append(part)
    events = np.concatenate(parts)
    height, width = height or size[0], width or size[1]
    return to_events(path, events["t"], events["x"], events["y"], events["p"], height, width, rebase=rebase)


def _header(data: memoryview) -> tuple[int, int, Callable[[memoryview, int], bytes], dict[int, Any]]:
    """First byte of the packets, the byte behind them, how they are unpacked, and the streams of events."""
    (length,) = struct.unpack_from("<I", data, len(_MAGIC))
    start = len(_MAGIC) + 4 + length
    if start > len(data):
        raise ValueError(f"it is {length} bytes long, the file {len(data)}")
    table = root(data[len(_MAGIC) + 4 : start], b"IOHE")
    kind, end = table.whole(0, "<i", 0), table.whole(1, "<q", -1)
    at, count = table.vector(2, 1)
    if not 0 <= kind <= 4:
        raise ValueError(f"compression {kind} is unknown; expected 0 to 4")
    end = len(data) if end < start else min(end, len(data))
    return start, end, _UNPACK[kind], _streams(bytes(table.data[at : at + count]))


def _streams(text: bytes) -> dict[int, tuple[int | None, int | None]]:
    """Height and width of each stream of events, by number."""
    if b"<!" in text:
        raise ValueError("its XML declares a document type or entities, which DV does not write")
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"its XML is not well formed ({error})") from error
    found = {}
    for node in tree.iterfind("./node[@name='outInfo']/node"):
        kind = node.findtext("./attr[@key='typeIdentifier']")
        name = node.get("name") or ""
        if kind == "EVTS" and re.fullmatch("[0-9]{1,9}", name):
            sides = (node.findtext(f"./node[@name='info']/attr[@key='{key}']") or "" for key in ("sizeY", "sizeX"))
            height, width = map(_side, sides)
            found[int(name)] = (height, width)
    return found


def _side(text: str) -> int | None:
    return int(text) if re.fullmatch("[0-9]{1,5}", text) and 1 <= int(text) <= 32767 else None


def _packets(path: str | Path, data: memoryview, start: int, end: int, stream: int) -> Iterator[tuple[int, memoryview]]:
    """Place and compressed bytes of the stream's packets."""
    while start < end:
        if start + 8 > end:
            raise ValueError(f"{path} ends at byte {end}, within the header of a packet at byte {start}.")
        number, length = struct.unpack_from("<ii", data, start)
        if length < 0 or start + 8 + length > end:
            raise ValueError(
                f"{path}: the packet at byte {start} takes {length} bytes, {end - start - 8} are left. The copy or "
                "download was probably cut off."
            )
        if number == stream:
            yield start, data[start + 8 : start + 8 + length]
        start += 8 + length


def _events(packet: bytes | memoryview) -> NDArray[Any]:
    """The events of an unpacked packet."""
    table: Table = root(packet[4:], b"EVTS")
    at, count = table.vector(0, _EVENT.itemsize)
    return np.frombuffer(table.data, _EVENT, count, at) if count else np.zeros(0, _EVENT)


def _lz4(packet: memoryview, most: int) -> bytes:
    try:
        import lz4.frame
    except ImportError as error:
        raise ImportError("Packets of LZ4 need lz4. Install it with `pip install 'spikeloom[data]'`.") from error
    decoder = lz4.frame.LZ4FrameDecompressor()
    return _whole(decoder.decompress(packet, max_length=most + 1), most, decoder.eof)


def _zstd(packet: memoryview, most: int) -> bytes:
    try:
        import zstandard
    except ImportError as error:
        raise ImportError("Packets of Zstandard need zstandard: `pip install 'spikeloom[data]'`.") from error
    try:
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(packet) as reader:
            found = bytearray()
            while len(found) <= most and (more := reader.read(min(2**20, most + 1 - len(found)))):
                found += more
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    return _whole(bytes(found), most, True)


def _whole(found: bytes, most: int, ended: bool) -> bytes:
    if len(found) > most:
        raise ValueError(f"it unpacks to more than the {most:,} bytes that max_events allows")
    if not ended:
        raise ValueError("its compressed bytes are cut off")
    return found


_UNPACK: tuple[Callable[[memoryview, int], Any], ...] = (lambda packet, most: packet, _lz4, _lz4, _zstd, _zstd)
