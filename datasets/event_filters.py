"""Filters of sensor noise. They take `Events` or `PackedEvents` and drop events; no randomness, no loop in Python.

Both are one pass in a compiled loop on a CPU (`kernels.events`), and sorting and searching in torch elsewhere.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from spikeloom.datasets.events import Events
from spikeloom.datasets.packed import PackedEvents
from spikeloom.kernels.backends import choose
from spikeloom.kernels.events import cpu, reference

E = TypeVar("E", Events, PackedEvents)

_LONGEST_US = 2**61


def refractory_filter(events: E, period_us: int) -> E:
    """Drop an event that comes less than `period_us` microseconds after the last kept one of its pixel.

    Raises:
        ValueError: a negative period.
    """
    return _filtered("refractory", events, "period_us", period_us)


def background_filter(events: E, window_us: int) -> E:
    """Drop an event unless one of its pixel's eight neighbours had an event in the `window_us` before it (inclusive).

    Noise of a sensor comes alone, edges do not. T. Delbruck 2008, "Frame-free dynamic digital vision".

    Raises:
        ValueError: a negative window.
    """
    return _filtered("background", events, "window_us", window_us)


def _filtered(name: str, events: E, argument: str, time_us: int) -> E:
    if not 0 <= time_us <= _LONGEST_US:
        raise ValueError(f"{argument} is {time_us}; expected microseconds, a whole number from 0.")
    offsets = events.offsets if isinstance(events, PackedEvents) else torch.tensor([0, len(events)])
    kernels = cpu if choose("auto", events.t.device.type) == "cpu" else reference
    columns = (column.contiguous() for column in (events.t, events.x, events.y, offsets.to(events.t.device)))
    mask: Tensor = getattr(kernels, name)(*columns, int(time_us), events.height, events.width)
    return events.keep(mask) if isinstance(events, PackedEvents) else events[mask]
