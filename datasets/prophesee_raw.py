"""Prophesee .raw recordings, EVT 2.0 and EVT 3.0, decoded by a compiled loop, or, without a C++ compiler, by operations
on whole arrays.

The header is lines of '%', such as `% evt 3.0`, `% geometry 1280x720` or `% format EVT3;height=720;width=1280`, up to
`% end` (older files: up to the first byte that is not '%'). Then little-endian words whose upper four bits are a type.

EVT 2.0, 32 bits:  0, 1 = an OFF or ON event: bits 22..27 time, 11..21 x, 0..10 y;  8 = bits 6 to 33 of the time.
EVT 3.0, 16 bits:  0 = row;  2 = an event: bits 0..10 x, 11 polarity;  3 = first column and polarity of vectors;
    4, 5 = vector of 12, 8 pixels, a bit each, that moves the column on;  6 = time, lower 12 bits;  8 = upper 12 bits,
    which sets the lower ones to 0.

Words of other types (triggers, continuations, those of the vendor) are left out, and so is what comes before the first
time and the first row. EVT 3.0 counts 24 bits, 16.8 s: where the upper bits fall by more than half, a turn is added;
EVT 2.0 likewise, after 4.8 hours. Formats as documented at docs.prophesee.ai (EVT 2.0, EVT 3.0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeloom.datasets.events import Events
from spikeloom.datasets.prophesee_dat import number, text_header
from spikeloom.datasets.raw_columns import MAX_EVENTS, check_count, to_events
from spikeloom.kernels.backends import choose
from spikeloom.kernels.events import cpu

_BLOCK = 2**20  # words decoded at once

Columns = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def read_raw(
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    rebase: bool = False,
    max_events: int = MAX_EVENTS,
) -> Events:
    """Read the change-detection events of one recording. The sensor is the header's where the call gives none.

    Raises:
        ValueError: another format, a file that ends within a word, events outside the sensor.
    """
    data = Path(path).read_bytes()
    start, fields = text_header(data)
    version = _version(fields)
    if version not in ("2", "3"):
        raise ValueError(
            f"{path}: its header names the format {version or 'nowhere'!r} ('% evt' or '% format'); EVT 2.0 and EVT "
            "3.0 are read. Convert it with metavision_file_to_file or save it again as one of these."
        )
    size = 4 if version == "2" else 2
    if (len(data) - start) % size:
        raise ValueError(
            f"{path} ends at byte {len(data)}, within a word of {size} bytes (the words begin at byte {start}); the "
            "copy or download was probably cut off."
        )
    words = np.frombuffer(data, dtype=f"<u{size}", offset=start)
    t, x, y, p = _decoded(path, words, version, max_events)
    stated = dict(part.split("=", 1) for part in fields.get("format", "").split(";") if "=" in part)
    if "x" in fields.get("geometry", ""):
        stated["width"], stated["height"] = fields["geometry"].split("x", 1)
    height = height or number(stated, "height")
    width = width or number(stated, "width")
    return to_events(path, t, x, y, p, height, width, rebase=rebase)


def _version(fields: dict[str, str]) -> str:
    """`2`, `3`, or what else the header says."""
    found = fields.get("evt", "") or fields.get("format", "").split(";")[0].upper().removeprefix("EVT")
    return re.sub(r"\.0$", "", found.strip())


@dataclass
class _State:
    """What a decoder carries from one block of words to the next; None: not known yet."""

    high: int | None = None  # the latest upper bits, with the turns of their counter
    low: int = 0
    row: int | None = None
    base: int | None = None  # first column and polarity of vectors, as in the word
    moved: int = 0  # columns that vectors have taken since


def _decoded(path: str | Path, words: NDArray[Any], version: str, max_events: int) -> Columns:
    """All events. Without a compiler block by block: the steps between need a multiple of a block's size, not of the
    file's.
    """
    if choose("auto", "cpu") == "cpu":
        given = words.ctypes.data, len(words), int(version)
        found = cpu.evt_count(*given)
        check_count(path, found, max_events)
        t, x, y, p = (column.numpy() for column in cpu.evt(*given, found))
        return t, x, y, p
    state, count = _State(), 0
    parts: list[Columns] = []
    for start in range(0, max(1, len(words)), _BLOCK):
        part = (_evt2 if version == "2" else _evt3)(words[start : start + _BLOCK], state)
        count += len(part[0])
        check_count(path, count, max_events)
        parts.append(part)
    whole = [np.concatenate([part[i] for part in parts]) for i in range(4)]
    return whole[0], whole[1], whole[2], whole[3]


def _evt2(words: NDArray[Any], state: _State) -> Columns:
    kind = words >> 28
    time, known = _counter(kind == 8, words & 0x0FFF_FFFF, 28, state)
    event = (kind <= 1) & known
    chosen = words[event]
    t = time[event] << 6 | (chosen >> 22 & 0x3F)
    return t, _short(chosen >> 11 & 0x7FF), _short(chosen & 0x7FF), kind[event].astype(np.uint8)


def _evt3(words: NDArray[Any], state: _State) -> Columns:
    kind, payload = words >> 12, words & 0x0FFF
    high, known_time = _counter(kind == 8, payload, 12, state)
    # the lower bits count from the latest of either word: an upper one sets them to 0
    low, _ = _latest((kind == 8) | (kind == 6), np.where(kind == 6, payload, 0), state.low)
    row, known_row = _latest(kind == 0, payload & 0x7FF, state.row)
    base, known_base = _latest(kind == 3, payload, state.base)
    width = np.where(kind == 4, 12, np.where(kind == 5, 8, 0))
    after = state.moved + np.cumsum(width)  # columns that vectors have taken up to and with this word
    moved = after - width - _latest(kind == 3, after, 0)[0]
    single = (kind == 2) & known_time & known_row
    vector = (width > 0) & known_time & known_row & known_base
    bits = np.where(kind[vector] == 4, payload[vector], payload[vector] & 0xFF).astype("<u2")
    hits = np.unpackbits(bits.view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")
    which, bit = hits.nonzero()  # by word, then by pixel
    at = np.concatenate((single.nonzero()[0], vector.nonzero()[0][which]))
    x = np.concatenate((payload[single] & 0x7FF, ((base & 0x7FF) + moved)[vector][which] + bit))
    p = np.concatenate((payload[single] >> 11, (base >> 11)[vector][which]))
    order = np.argsort(at, kind="stable")  # in the order of the file
    at = at[order]
    if len(words):
        state.low = int(low[-1])
        state.row = int(row[-1]) if known_row[-1] else None
        state.base = int(base[-1]) if known_base[-1] else None
        state.moved = int(moved[-1] + width[-1]) if known_base[-1] else 0
    return high[at] << 12 | low[at], _short(x[order]), _short(row[at]), p[order].astype(np.uint8)


def _short(column: NDArray[Any]) -> NDArray[Any]:
    """Coordinates in 2 bytes; those of damaged files that do not fit stay off every sensor."""
    return np.minimum(column, 32767).astype(np.int16)


def _counter(marked: NDArray[Any], values: NDArray[Any], bits: int, state: _State) -> tuple[NDArray[Any], NDArray[Any]]:
    """At each word the upper bits of the time, int64, and whether they are known; where they fall by more than half,
    one turn is added."""
    found = values[marked].astype(np.int64)
    turn = 1 << bits
    before = found[:1] if state.high is None else np.array([state.high % turn])
    turns = (state.high or 0) // turn + np.cumsum(np.diff(found, prepend=before) < -(turn // 2))
    unrolled = np.zeros_like(values, np.int64)
    unrolled[marked] = found + turns * turn
    high, known = _latest(marked, unrolled, state.high)
    if len(high) and known[-1]:
        state.high = int(high[-1])
    return high, known


def _latest(marked: NDArray[Any], values: NDArray[Any], before: int | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """At each word the value at the latest marked one (`before` ahead of the first), and whether there is one."""
    count = np.cumsum(marked)
    kept = np.concatenate((np.array([before or 0], np.int64), values[marked]))
    return kept[count], (count > 0) | (before is not None)
