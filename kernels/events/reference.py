"""The event filters in torch's operators, on any device; no loop over events."""

from __future__ import annotations

import torch
from torch import Tensor


def refractory(t: Tensor, x: Tensor, y: Tensor, offsets: Tensor, period: int, height: int, width: int) -> Tensor:
    """Mask `[N]` bool. Rounds: the first event of each pixel is kept, then the first at least `period` after it, ..."""
    recording = _recording(offsets)
    pixel = (recording * height + y) * width + x
    order = torch.argsort(pixel, stable=True)  # by pixel, then by time
    place, time = pixel[order], t[order]
    keep = torch.zeros_like(place, dtype=torch.bool)
    if len(t) == 0:
        return keep
    length = int(t.max()) + period + 1  # pixels are laid one after another on one axis of time
    if length > (2**62) // max(1, int(pixel.max()) + 1):
        raise ValueError(f"Times up to {int(t.max())} us are too long to filter exactly; count them from the start.")
    line = place * length + time
    fresh = torch.ones_like(place, dtype=torch.bool)
    fresh[1:] = place[1:] != place[:-1]
    front = fresh.nonzero().squeeze(1)
    while len(front):
        keep[front] = True
        following = torch.searchsorted(line, line[front] + period) if period else front + 1
        inside = following < len(line)
        following, before = following[inside], front[inside]
        front = following[place[following] == place[before]]
    mask = torch.empty_like(keep)
    mask[order] = keep
    return mask


def background(t: Tensor, x: Tensor, y: Tensor, offsets: Tensor, window: int, height: int, width: int) -> Tensor:
    """Mask `[N]` bool: for each of eight neighbours the latest event before is searched on one sorted line."""
    N = len(t)
    number = torch.arange(N, device=t.device)
    # a border of two columns and rows: no neighbour of one row is a pixel of the next
    rows, columns = height + 2, width + 2
    pixel = (_recording(offsets) * rows + y + 1) * columns + x + 1
    line, order = (pixel * N + number).sort()
    keep = torch.zeros(N, dtype=torch.bool, device=t.device)
    if N == 0:
        return keep
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if down or right:
                neighbour = pixel + down * columns + right
                at = torch.searchsorted(line, neighbour * N + number) - 1  # the last one before event `number`
                found = (at >= 0) & (line[at.clamp(min=0)] // N == neighbour)
                keep |= found & (t - t[order[at.clamp(min=0)]] <= window)
    return keep


def _recording(offsets: Tensor) -> Tensor:
    numbers = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(numbers, offsets.diff())
