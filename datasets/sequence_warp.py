"""Random changes of sequences `[T, B, N]`: stretched in time and over channels, moved over channels, masked.

    y[t, n] = x[round(t / f), round(c + (n - c - s) / g)],   c = (N - 1) / 2

with f and g, factors of time and channels, log-uniform about 1, and s, the shift in channels, uniform; 0 where that
lies outside of the recording. Values are taken over, not interpolated, so counts stay whole numbers. On the channels of
a cochlea, whose places go with the logarithm of frequency, a shift changes pitch and the length of the vocal tract.

Masks are those of the code of arXiv:2306.17670 (sequence_augment.py), with each recording's own length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MASKED = 0.65
"""Probability of a mask, for each of the two axes."""


@dataclass(frozen=True)
class Warp:
    """Where the values of a batch come from.

    rows: `[T, B]` int64, the step that each step shows. columns: `[B, N]` int64, the channel that each channel shows.
    -1 where there is 0.
    """

    rows: Tensor
    columns: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """The changed copy of sequences `[T, B, N]`, on their device."""
        rows, columns = self.rows.to(x.device), self.columns.to(x.device)
        batch = torch.arange(x.shape[1], device=x.device)
        y = x[rows.clamp(min=0)[:, :, None], batch[None, :, None], columns.clamp(min=0)[None]]
        return y * ((rows >= 0)[:, :, None] & (columns >= 0)[None])


def draw_warp(
    lengths: Tensor,
    steps: int,
    channels: int,
    generator: torch.Generator,
    *,
    time_stretch: float = 0.0,
    channel_stretch: float = 0.0,
    channel_shift: float = 0.0,
    time_mask: int = 0,
    channel_mask: int = 0,
) -> Warp:
    """Draw the changes of a batch, on the host.

    Args:
        lengths: of the recordings, `[B]` int64 on the CPU, up to `steps`. A recording that becomes longer than `steps`
            is cut.
        time_stretch, channel_stretch: factors are between e to minus this and e to this.
        channel_shift: largest shift in channels.
        time_mask, channel_mask: spans of 0 ... mask - 1 steps of the recording, or channels, become 0.

    Raises:
        ValueError: a mask that leaves no place to begin at.
    """
    if time_mask < 0 or not 0 <= channel_mask < channels:
        raise ValueError(
            f"draw_warp: time_mask={time_mask}, channel_mask={channel_mask}; expected 0 or more, and a channel_mask "
            f"below the number of channels, {channels}."
        )
    B = len(lengths)
    drawn = torch.rand(3, B, generator=generator) * 2 - 1
    f, g = (time_stretch * drawn[0]).exp(), (channel_stretch * drawn[1]).exp()
    rows = torch.round(torch.arange(steps)[:, None] / f).long()
    rows = torch.where(rows < lengths, rows, -1)
    middle = (channels - 1) / 2
    places = middle + (torch.arange(channels) - middle - (channel_shift * drawn[2])[:, None]) / g[:, None]
    columns = places.round().long()
    columns = torch.where((columns >= 0) & (columns < channels), columns, -1)
    if time_mask:
        ends = (lengths * f).long().clamp(max=steps)
        rows = torch.where(_masked(steps, ends, time_mask, generator).t(), -1, rows)
    if channel_mask:
        whole = torch.full((B,), channels)
        columns = torch.where(_masked(channels, whole, channel_mask, generator), -1, columns)
    return Warp(rows, columns)


def _masked(size: int, ends: Tensor, longest: int, generator: torch.Generator) -> Tensor:
    """Whether a place lies in the span that is drawn for each sample, `[B, size]`."""
    chance, width, start = torch.rand(3, len(ends), generator=generator)
    widths = (width * longest).long()
    starts = (start * (ends - longest).clamp(min=1)).long()
    place = torch.arange(size)
    inside = (place >= starts[:, None]) & (place < (starts + widths)[:, None])
    return inside & (chance < MASKED)[:, None]
