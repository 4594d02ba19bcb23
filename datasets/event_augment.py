"""More random changes of recordings: crops, rolls, jitter, drops of areas and of stretches of time, and NDA.

As in `augment`: `Events` or `PackedEvents` in, one draw per recording, and only the given generator decides. Nothing
here moves an event in time, so order stays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from spikeloom.datasets.events import Events
from spikeloom.datasets.packed import PackedEvents

E = TypeVar("E", Events, PackedEvents)

NDA = ("identity", "roll", "rotate", "cutout", "shear")


def crop(events: E, top: int, left: int, height: int, width: int) -> E:
    """The events of a window of the sensor, which becomes the sensor.

    Raises:
        ValueError: a window that is not wholly on the sensor.
    """
    if min(top, left) < 0 or min(height, width) < 1 or top + height > events.height or left + width > events.width:
        raise ValueError(
            f"The window is {height} x {width} at row {top}, column {left}; expected one inside {events.height} x "
            f"{events.width}."
        )
    inside = (events.y >= top) & (events.y < top + height) & (events.x >= left) & (events.x < left + width)
    kept = _keep(events, inside)
    return replace(kept, x=kept.x - left, y=kept.y - top, height=height, width=width)


def random_crop_events(events: E, height: int, width: int, generator: torch.Generator) -> E:
    """Cut a window of `height` x `width` pixels anywhere from each recording; the window becomes the sensor."""
    if not (1 <= height <= events.height and 1 <= width <= events.width):
        raise ValueError(f"The window is {height} x {width}; expected 1 x 1 to {events.height} x {events.width}.")
    recording, count = _recordings(events)
    top = _below(events.height - height + 1, count, generator).to(recording.device)[recording]
    left = _below(events.width - width + 1, count, generator).to(recording.device)[recording]
    x, y = events.x - left, events.y - top
    kept = _placed(events, x, y, height, width)
    return replace(kept, height=height, width=width)


def random_roll(events: E, max_px: int, generator: torch.Generator) -> E:
    """Shift each recording by whole pixels in [-max_px, max_px] per axis; what leaves comes in on the other side."""
    _check("max_px", max_px)
    recording, count = _recordings(events)
    dx, dy = ((_below(2 * max_px + 1, count, generator) - max_px).to(recording.device)[recording] for _ in range(2))
    x, y = (events.x + dx) % events.width, (events.y + dy) % events.height
    return replace(events, x=x.to(torch.int16), y=y.to(torch.int16))


def spatial_jitter(events: E, max_px: int, generator: torch.Generator) -> E:
    """Move each event by whole pixels in [-max_px, max_px] per axis; those leaving the sensor are lost."""
    _check("max_px", max_px)
    count = len(events.t)
    dx, dy = ((_below(2 * max_px + 1, count, generator) - max_px).to(events.t.device) for _ in range(2))
    return _placed(events, events.x + dx, events.y + dy, events.height, events.width)


def polarity_jitter(events: E, probability: float, generator: torch.Generator) -> E:
    """Exchange ON and OFF of each event with the given probability."""
    _check("probability", probability, 1.0)
    flipped = (_uniform(len(events.t), generator) < probability).to(events.p.device)
    return replace(events, p=torch.where(flipped, 1 - events.p, events.p))


def drop_time(events: E, max_fraction: float, generator: torch.Generator) -> E:
    """Drop a stretch of time from each recording, of a length up to `max_fraction` of it (EventDrop, drop by time)."""
    _check("max_fraction", max_fraction, 1.0)
    recording, count = _recordings(events)
    length = (_uniform(count, generator) * max_fraction).double()
    start = _uniform(count, generator).double() * (1 - length)
    first, last = _bounds(events, count)
    span = (last - first).double()
    begin = (first + (start.to(span.device) * span).long())[recording]
    end = (first + ((start + length).to(span.device) * span).long())[recording]
    return _keep(events, (events.t < begin) | (events.t >= end))


def drop_area(events: E, max_fraction: float, generator: torch.Generator) -> E:
    """Drop a rectangle, up to `max_fraction` of each side, from each recording (EventDrop, drop by area)."""
    _check("max_fraction", max_fraction, 1.0)
    recording, count = _recordings(events)
    hidden = torch.ones(len(events.t), dtype=torch.bool, device=events.t.device)
    for column, side in ((events.x, events.width), (events.y, events.height)):
        length = (_uniform(count, generator) * max_fraction * side).floor()
        start = (_uniform(count, generator) * (side - length + 1)).floor()
        begin, end = (edge.to(recording.device)[recording] for edge in (start, start + length))
        hidden &= (column >= begin) & (column < end)
    return _keep(events, ~hidden)


def nda(events: E, generator: torch.Generator, *, flip_probability: float = 0.5) -> E:
    """Mirror each recording left to right with `flip_probability`, then apply one of `NDA`, drawn per recording.

    Li et al. 2022, "Neuromorphic Data Augmentation for Training Spiking Neural Networks", arXiv:2203.06145, on events:
    roll by up to 5 px per axis, rotate by up to 30 degrees, cut out a square of up to 8 px, shear by up to 0.15. The
    ranges are our reconstruction for a sensor of 48 pixels, and grow with the longer side. Mixing is `event_mix`.
    """
    _check("flip_probability", flip_probability, 1.0)
    recording, count = _recordings(events)
    chosen = _below(len(NDA), count, generator)
    flipped = _uniform(count, generator) < flip_probability
    sizes = _uniform(4 * count, generator).view(4, count)
    scale = max(events.height, events.width) / 48
    signed = sizes * 2 - 1
    roll: Tensor = (signed[:2] * 5 * scale).round() * (chosen == NDA.index("roll"))
    angle = signed[0] * torch.pi / 6 * (chosen == NDA.index("rotate"))
    shear = signed[0] * 0.15 * (chosen == NDA.index("shear"))
    side = (sizes[0] * 8 * scale).ceil() * (chosen == NDA.index("cutout"))
    table = torch.stack((flipped.float(), roll[0], roll[1], angle.cos(), angle.sin(), shear, side, sizes[2], sizes[3]))
    flip, dx, dy, cos, sin, lean, hole, at_x, at_y = table.to(recording.device)[:, recording]
    x = torch.where(flip > 0, events.width - 1 - events.x, events.x) - (events.width - 1) / 2
    y = events.y - (events.height - 1) / 2
    x, y = cos * x - sin * y + lean * y, sin * x + cos * y
    x, y = (x + (events.width - 1) / 2).round(), (y + (events.height - 1) / 2).round()
    rolled = (dx != 0) | (dy != 0)
    x, y = torch.where(rolled, (x + dx) % events.width, x), torch.where(rolled, (y + dy) % events.height, y)
    left, top = (at_x * (events.width - hole + 1)).floor(), (at_y * (events.height - hole + 1)).floor()
    hidden = (x >= left) & (x < left + hole) & (y >= top) & (y < top + hole)
    return _placed(events, torch.where(hidden, -1, x), y, events.height, events.width)


def _recordings(events: Events | PackedEvents) -> tuple[Tensor, int]:
    """The recording of each event `[N]` int64, and the number of recordings."""
    if isinstance(events, PackedEvents):
        return events.recording_index(), len(events)
    return torch.zeros(len(events), dtype=torch.int64, device=events.t.device), 1


def _bounds(events: Events | PackedEvents, count: int) -> tuple[Tensor, Tensor]:
    """First time of each recording, and one microsecond behind its last, `[count]`; 0 and 0 where it is empty."""
    if not len(events.t):
        zeros = torch.zeros(count, dtype=torch.int64, device=events.t.device)
        return zeros, zeros
    offsets = events.offsets if isinstance(events, PackedEvents) else torch.tensor([0, len(events.t)])
    offsets = offsets.to(events.t.device)
    filled = offsets[1:] > offsets[:-1]
    first = events.t[offsets[:-1].clamp(max=len(events.t) - 1)]
    last = events.t[(offsets[1:] - 1).clamp(min=0)] + 1
    return first * filled, last * filled


def _placed(events: E, x: Tensor, y: Tensor, height: int, width: int) -> E:
    """Move the events to columns x and rows y `[N]`, dropping those outside a sensor of height x width."""
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = torch.where(inside, x, 0).to(torch.int16), torch.where(inside, y, 0).to(torch.int16)
    return _keep(replace(events, x=x, y=y), inside)


def _keep(events: E, mask: Tensor) -> E:
    return events.keep(mask) if isinstance(events, PackedEvents) else events[mask]


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _below(limit: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(limit, (count,), generator=generator, device=generator.device)


def _check(name: str, value: float, most: float = float("inf")) -> None:
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {value}; expected a number from 0 to {most}.")
