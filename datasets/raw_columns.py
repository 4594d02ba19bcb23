"""From the columns of a file to `Events`, with errors that name the file; the bound on what one file may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeloom.datasets.events import Events

MAX_EVENTS = 2**28
"""Events of one file at most, unless a reader is told otherwise: 3.5 GB in memory."""


def to_events(
    path: str | Path,
    t: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    p: NDArray[Any],
    height: int | None,
    width: int | None,
    *,
    rebase: bool,
) -> Events:
    """Events of whole columns `[N]`; a size that is None is the smallest that holds all events.

    rebase: times count from the earliest event.

    Raises:
        ValueError: events outside the sensor, negative times, polarities that are no polarities; names the file.
    """
    for name, column in (("t", t), ("x", x), ("y", y), ("p", p)):
        if column.dtype.kind not in "biuf" or column.ndim != 1 or len(column) != len(t):
            raise ValueError(
                f"{path}: the column {name} is {column.dtype} {column.shape}; expected {len(t)} numbers, as many as t."
            )
        if column.dtype.kind == "f" and not bool((np.abs(column) < 2.0**62).all()):
            raise ValueError(f"{path}: the column {name} holds a value that is no finite number below 2**62.")
        if column.dtype == np.uint64 and len(column) and int(column.max()) >= 2**63:
            raise ValueError(f"{path}: the column {name} holds {int(column.max())}; expected less than 2**63.")
    if rebase and len(t):
        if t.dtype.kind != "f" and int(t.max()) - int(t.min()) >= 2**62:
            raise ValueError(f"{path}: times run from {t.min()} to {t.max()} us; the file is damaged.")
        t = t - t.min()
    height = height or _extent(y)
    width = width or _extent(x)
    try:
        return Events.from_arrays(t, x, y, p, height, width)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a recording of this sensor. {error}") from error


def check_count(path: str | Path, count: int, max_events: int) -> None:
    """Raise where a file says that it holds more than it may, before memory is taken for it."""
    if count > max_events:
        raise ValueError(
            f"{path} says that it holds {count:,} events; at most {max_events:,} are read. If the file is sound, pass "
            "a larger max_events."
        )


def _extent(column: NDArray[Any]) -> int:
    """One more than the largest coordinate; a value that is too large is refused later, by name."""
    return min(max(1, int(column.max()) + 1), 32767) if len(column) else 1
