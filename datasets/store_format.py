"""The file of an event store: header, events, tables; and the journal that lets a broken-off packing go on.

    0     8 bytes `SPKLOOM1`, then uint32 x 3: height, width, CRC-32 of the rest of the header; uint64 x 5: recordings
          B, events N, byte and length of the tables, 0                                            64 bytes in all
    64    N x 8 bytes: t << 31 | y << 16 | x << 1 | p, t in microseconds from the recording's first event, below 2**32
    ...   the tables, one .npz: offsets [B + 1] int64, starts [B] int64 (time of the first event), labels [B] int64,
          checksums [B] uint32 (CRC-32 of the recording's events), classes (JSON in UTF-8) and, if a split was
          recorded, parts [B] uint8 (number in PARTS); CRC-32 of it in 4 bytes

While it is packed there are PATH.part (header still zero) and PATH.journal: its first record is the source's digest,
then one of 32 bytes a recording. A record is written only once the events before it are on disk.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeloom.datasets.events import Events
from spikeloom.datasets.packed import PackedEvents

MAGIC = b"SPKLOOM1"
PARTS = ("train", "validation", "test")
HEADER_BYTES = 64
EVENT_BYTES = 8
MAX_SPAN_US = 2**32 - 1
MAX_SIDE = 32767  # rows and columns of the sensor: 15 bits each
RECORD = struct.Struct("<qqqII")  # events (-1: left out), start, label, checksum of the events, checksum of the record

_KINDS = {"offsets": "<i8", "starts": "<i8", "labels": "<i8", "checksums": "<u4"}
_SIZES = struct.Struct("<II")
_NUMBERS = struct.Struct("<5Q")


@dataclass(frozen=True)
class Header:
    """What stands in the first 64 bytes."""

    height: int
    width: int
    recordings: int
    events: int
    tables: int
    tables_bytes: int


@dataclass(frozen=True)
class Tables:
    """What is known of each recording: `offsets` `[B + 1]`, `starts`, `labels` and `checksums` `[B]`, class names, and
    `parts` `[B]`, None where no split was recorded.
    """

    offsets: NDArray[np.int64]
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    checksums: NDArray[np.uint32]
    classes: tuple[str, ...]
    parts: NDArray[np.uint8] | None = None


def to_words(events: Events) -> tuple[NDArray[np.int64], int]:
    """The 8-byte words `[N]` of a recording and the time of its first event.

    Raises:
        ValueError: it lasts 2**32 microseconds (71 minutes) or longer.
    """
    t, x, y, p = (column.cpu().numpy().astype(np.int64) for column in (events.t, events.x, events.y, events.p))
    start = int(t[0]) if len(t) else 0
    if len(t) and int(t[-1]) - start > MAX_SPAN_US:
        raise ValueError(
            f"The recording lasts {int(t[-1]) - start:,} us; the store holds 32 bits of time, {MAX_SPAN_US:,} us. Cut "
            "it by Events.time_slice."
        )
    return (t - start) << 31 | y << 16 | x << 1 | p, start


def from_words(
    words: Tensor,
    offsets: Tensor,
    starts: Tensor,
    height: int,
    width: int,
    labels: Tensor | None,
    *,
    checked: bool = False,
) -> PackedEvents:
    """Recordings from their words `[N]` int64, on the words' device; everything is checked, unless it was before."""
    start = torch.repeat_interleave(starts, offsets.diff(), output_size=len(words))
    t = (words >> 31) + start
    x, y, p = words >> 1 & 0x7FFF, words >> 16 & 0x7FFF, words & 1
    columns = (t, x.to(torch.int16), y.to(torch.int16), p.to(torch.uint8), offsets)
    if checked:
        return PackedEvents.trusted(*columns, height, width, labels)
    return PackedEvents(*columns, height, width, labels)


def split_words(gathered: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Words `[N]`, offsets `[count + 1]` and starts `[count]` that lie one after the other in one tensor."""
    words, offsets, starts = gathered.split([len(gathered) - 2 * count - 1, count + 1, count])
    return words, offsets, starts


def pack_header(header: Header) -> bytes:
    """64 bytes."""
    numbers = _NUMBERS.pack(header.recordings, header.events, header.tables, header.tables_bytes, 0)
    sizes = _SIZES.pack(header.height, header.width)
    return MAGIC + sizes + struct.pack("<I", zlib.crc32(sizes + numbers)) + numbers + b"\0\0\0\0"


def read_header(data: bytes, file_bytes: int) -> Header:
    """The header of a file of `file_bytes` bytes.

    Raises:
        ValueError: not a store, a damaged header, or a file of another length.
    """
    if data[:8] != MAGIC or len(data) < HEADER_BYTES:
        raise ValueError(f"it begins with {data[:8]!r}; an event store begins with {MAGIC!r}")
    if struct.unpack_from("<I", data, 16)[0] != zlib.crc32(data[8:16] + data[20:60]):
        raise ValueError("its header does not agree with its checksum")
    height, width = _SIZES.unpack_from(data, 8)
    recordings, events, tables, tables_bytes, _ = _NUMBERS.unpack_from(data, 20)
    if tables != HEADER_BYTES + events * EVENT_BYTES or tables + tables_bytes != file_bytes:
        raise ValueError(f"it is {file_bytes:,} bytes long; its header says {tables + tables_bytes:,}: it was cut off")
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"its header says a sensor of {height:,} x {width:,}; each is 1 to {MAX_SIDE:,}")
    return Header(height, width, recordings, events, tables, tables_bytes)


def pack_tables(tables: Tables) -> bytes:
    """The bytes behind the events."""
    file = io.BytesIO()
    names = np.frombuffer(json.dumps(tables.classes).encode(), np.uint8)
    arrays: dict[str, Any] = {**vars(tables), "classes": names}
    if tables.parts is None:
        del arrays["parts"]
    np.savez(file, **arrays)
    data = file.getvalue()
    return data + struct.pack("<I", zlib.crc32(data))


def read_tables(data: bytes, header: Header) -> Tables:
    """The tables of a file.

    Raises:
        ValueError: they do not agree with their checksum or the header.
    """
    if len(data) < 4 or zlib.crc32(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ValueError("its tables do not agree with their checksum")
    try:
        with zipfile.ZipFile(io.BytesIO(data[:-4])) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > len(data):  # nothing is compressed
            raise ValueError(f"{unpacked:,} bytes in {len(data):,}")
        with np.lib.npyio.NpzFile(io.BytesIO(data[:-4]), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        classes = tuple(map(str, json.loads(arrays.pop("classes").tobytes())))
        tables = Tables(**arrays, classes=classes)
        kinds = {name: array.dtype.str for name, array in arrays.items()}
        if kinds.pop("parts", "|u1") != "|u1" or kinds != _KINDS:
            raise ValueError(f"columns of {kinds}")
    except Exception as error:  # of a damaged file NumPy raises nearly anything
        raise ValueError(f"its tables cannot be read: {error}") from error
    offsets, B = tables.offsets, header.recordings
    if (
        offsets.shape != (B + 1,)
        or (offsets[0], offsets[-1]) != (0, header.events)
        or bool((np.diff(offsets) < 0).any())
        or any(column.shape != (B,) for column in (tables.starts, tables.labels, tables.checksums))
        or bool((tables.starts < 0).any())
        or (tables.parts is not None and (tables.parts.shape != (B,) or bool((tables.parts >= len(PARTS)).any())))
    ):
        raise ValueError("its tables do not agree with its header")
    return tables
