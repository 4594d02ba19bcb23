"""Random changes of recordings that keep their label. Every function draws only from the generator it is given.

The event functions take `Events` or `PackedEvents` and draw once per recording, so a packed batch is changed by a few
tensor operations. The frame functions take `[T, B, C, H, W]` and draw once per sample. Numbers are drawn on the
generator's device and then moved, so a CPU generator gives the same augmentation for data on any device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from spikeloom.datasets.events import Events
from spikeloom.datasets.host_draws import on_device
from spikeloom.datasets.packed import PackedEvents

E = TypeVar("E", Events, PackedEvents)


def random_shift(events: E, max_px: int, generator: torch.Generator) -> E:
    """Shift each recording by whole pixels in [-max_px, max_px] per axis; events leaving the sensor are lost."""
    recording, count = _recordings(events)
    dx, dy = _random_pixels(count, max_px, generator).to(recording.device)[:, recording]
    return _place(events, events.x + dx, events.y + dy)


def random_rotation(events: E, max_degrees: float, generator: torch.Generator) -> E:
    """Turn each recording about the sensor's centre by up to max_degrees either way, to the nearest pixel."""
    _check_amount("max_degrees", max_degrees)
    recording, count = _recordings(events)
    angle = (_uniform(count, generator) * 2 - 1) * torch.pi * max_degrees / 180
    cos, sin = torch.stack((angle.cos(), angle.sin())).to(recording.device)[:, recording]
    centre_x, centre_y = (events.width - 1) / 2, (events.height - 1) / 2
    x, y = events.x - centre_x, events.y - centre_y
    return _place(events, (cos * x - sin * y + centre_x).round(), (sin * x + cos * y + centre_y).round())


def random_flip(events: E, generator: torch.Generator, probability: float = 0.5) -> E:
    """Mirror each recording left to right with the given probability (not for digits or letters)."""
    recording, count = _recordings(events)
    flipped = (_uniform(count, generator) < probability).to(recording.device)[recording]
    return replace(events, x=torch.where(flipped, events.width - 1 - events.x, events.x))


def random_polarity_flip(events: E, generator: torch.Generator, probability: float = 0.5) -> E:
    """Exchange ON and OFF in each recording with the given probability (a scene of inverted contrast)."""
    recording, count = _recordings(events)
    flipped = (_uniform(count, generator) < probability).to(recording.device)[recording]
    return replace(events, p=torch.where(flipped, 1 - events.p, events.p))


def random_drop(events: E, max_fraction: float, generator: torch.Generator) -> E:
    """Drop each event independently; the rate is drawn per recording from [0, max_fraction].

    Gu et al. 2021, "EventDrop: Data Augmentation for Event-based Learning", random drop.
    """
    _check_amount("max_fraction", max_fraction, most=1.0)
    recording, count = _recordings(events)
    rate = (_uniform(count, generator) * max_fraction).to(recording.device)[recording]
    return _keep(events, _uniform(len(events.t), generator).to(recording.device) >= rate)


def time_jitter(events: E, sigma_us: float, generator: torch.Generator) -> E:
    """Add Gaussian noise (standard deviation sigma_us) to each time, stop at 0 and restore the order of time."""
    _check_amount("sigma_us", sigma_us)
    recording, _ = _recordings(events)
    noise = torch.randn(len(events.t), generator=generator, device=generator.device) * sigma_us
    t = (events.t + noise.round().to(events.t)).clamp(min=0)
    order = torch.argsort(t, stable=True)
    order = order[torch.argsort(recording[order], stable=True)]  # by recording, and by time within each
    return replace(events, t=t[order], x=events.x[order], y=events.y[order], p=events.p[order])


def shift_frames(frames: Tensor, max_px: int, generator: torch.Generator) -> Tensor:
    """Shift each sample of `[T, B, C, H, W]` by whole pixels in [-max_px, max_px] per axis; zeros move in."""
    if frames.ndim != 5:
        raise ValueError(f"frames has shape {tuple(frames.shape)}; expected [T, B, C, H, W].")
    T, B, C, H, W = frames.shape
    dx, dy = on_device(_random_pixels(B, max_px, generator), frames.device)
    row = torch.arange(H, device=frames.device) - dy[:, None]  # [B, H] the row each output row is read from
    column = torch.arange(W, device=frames.device) - dx[:, None]  # [B, W]
    outside = ((row < 0) | (row >= H))[:, :, None] | ((column < 0) | (column >= W))[:, None, :]  # [B, H, W]
    source = row.clamp(0, H - 1)[:, :, None] * W + column.clamp(0, W - 1)[:, None, :]  # [B, H, W]
    flat = source.view(1, B, 1, H * W).expand(T, B, C, H * W)
    shifted = frames.reshape(T, B, C, H * W).gather(3, flat).view(T, B, C, H, W)
    return shifted.masked_fill_(outside[None, :, None], 0)


def flip_frames(frames: Tensor, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """Mirror each sample of `[T, B, C, H, W]` left to right with the given probability."""
    if frames.ndim != 5:
        raise ValueError(f"frames has shape {tuple(frames.shape)}; expected [T, B, C, H, W].")
    flipped = on_device(_uniform(frames.shape[1], generator) < probability, frames.device)
    return torch.where(flipped[None, :, None, None, None], frames.flip(4), frames)


def _recordings(events: Events | PackedEvents) -> tuple[Tensor, int]:
    """The recording of each event `[N]` int64, and the number of recordings."""
    if isinstance(events, PackedEvents):
        return events.recording_index(), len(events)
    return torch.zeros(len(events), dtype=torch.int64, device=events.t.device), 1


def _place(events: E, x: Tensor, y: Tensor) -> E:
    """Move the events to columns x and rows y `[N]`, dropping those outside the sensor."""
    inside = (x >= 0) & (x < events.width) & (y >= 0) & (y < events.height)
    # the coordinates of those to be dropped only have to be valid
    x, y = torch.where(inside, x, 0).to(torch.int16), torch.where(inside, y, 0).to(torch.int16)
    return _keep(replace(events, x=x, y=y), inside)


def _keep(events: E, mask: Tensor) -> E:
    return events.keep(mask) if isinstance(events, PackedEvents) else events[mask]


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _random_pixels(count: int, max_px: int, generator: torch.Generator) -> Tensor:
    """Whole offsets `[2, count]` int64 (x, y) in [-max_px, max_px]."""
    _check_amount("max_px", max_px)
    return torch.randint(-max_px, max_px + 1, (2, count), generator=generator, device=generator.device)


def _check_amount(name: str, value: float, most: float = float("inf")) -> None:
    if not 0 <= value <= most:
        raise ValueError(f"{name} is {value}; expected a number from 0 to {most}.")
