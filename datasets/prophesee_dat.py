"""Prophesee .dat files of change-detection events: N-CARS, GEN1 and recordings of early Prophesee cameras.

Lines that begin with '%' (version, date, height, width), then, unless the header is missing, a byte for the type of the
events (0 or 12) and one for their size (8), then little-endian pairs of uint32: time in microseconds and an address,

    version 2    bits 0..13 x, 14..27 y, 28..31 polarity
    version 1    bits 0..8 x, 9..16 y, 17 polarity

Times are 32 bits: a recording is at most 71 minutes long. Format as documented at docs.prophesee.ai (DAT).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from spikeloom.datasets.events import Events
from spikeloom.datasets.raw_columns import MAX_EVENTS, check_count, to_events

_EVENT_BYTES = 8
_TYPES = (0, 12)


def read_dat(
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    rebase: bool = False,
    max_events: int = MAX_EVENTS,
) -> Events:
    """Read one recording. The sensor is the header's where the call gives none, else the smallest that fits.

    Raises:
        ValueError: another type of events, a size that is no whole number of them, events outside the sensor.
    """
    data = Path(path).read_bytes()
    start, fields = text_header(data)
    if start == 0 and len(data) % _EVENT_BYTES:
        raise ValueError(
            f"{path} begins with {data[:12]!r}, without a header, and is {len(data)} bytes long; a .dat recording "
            "begins with lines of '%', or is a whole number of 8-byte events."
        )
    if start:
        if len(data) < start + 2:
            raise ValueError(f"{path} ends at byte {len(data)}, within its header; the copy was probably cut off.")
        kind, size = data[start], data[start + 1]
        if kind not in _TYPES or size != _EVENT_BYTES:
            raise ValueError(
                f"{path}: bytes {start} and {start + 1} give events of type {kind} and {size} bytes; expected type "
                f"{' or '.join(map(str, _TYPES))} (change detection) of {_EVENT_BYTES} bytes."
            )
        start += 2
    if (len(data) - start) % _EVENT_BYTES:
        whole = start + (len(data) - start) // _EVENT_BYTES * _EVENT_BYTES
        raise ValueError(
            f"{path} ends at byte {len(data)}, within the event that begins at byte {whole}; the copy or download was "
            "probably cut off."
        )
    check_count(path, (len(data) - start) // _EVENT_BYTES, max_events)
    t, address = np.frombuffer(data, dtype="<u4", offset=start).reshape(-1, 2).T
    if fields.get("version") == "1":
        x, y, p = address & 0x1FF, address >> 9 & 0xFF, address >> 17 & 1
    else:
        x, y, p = address & 0x3FFF, address >> 14 & 0x3FFF, address >> 28
    height, width = height or number(fields, "height"), width or number(fields, "width")
    return to_events(path, t.astype(np.int64), x, y, p, height, width, rebase=rebase)


def text_header(data: bytes) -> tuple[int, dict[str, str]]:
    """Length of the lines that begin with '%', and their fields `% name value`, names in small letters."""
    end, fields = 0, {}
    while data[end : end + 1] == b"%":
        line_end = data.find(b"\n", end, end + 4096)
        if line_end < 0:
            break  # a '%' that begins no line
        words = data[end + 1 : line_end].decode("latin-1").split(None, 1)
        if words:
            fields[words[0].lower().rstrip(":")] = words[1].strip() if len(words) > 1 else ""
        end = line_end + 1
        if words == ["end"]:
            break
    return end, fields


def number(fields: dict[str, str], name: str) -> int | None:
    """A field of a header that is a whole number from 1 to 32767; None where there is none."""
    text = fields.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= 32767 else None
