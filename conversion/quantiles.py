"""Quantiles of values that come in batches: exact for one batch, by a histogram for several.

The histogram has bins of equal width up to a power of two, which doubles when a larger value comes; pairs of bins are
then merged. So the result does not depend on the order of the batches, and is off by at most 1/4096 of the largest
value. Zeros are counted apart.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 8192
_CHUNK = 1 << 22


def exact(rows: Tensor, share: float) -> Tensor:
    """Quantile of each row `[R, N]` with linear interpolation, as torch.quantile but for any N: `[R]`."""
    place = share * (rows.shape[1] - 1)
    low = math.floor(place)
    at = rows.kthvalue(low + 1, dim=1).values
    if place == low:
        return at
    above = rows.kthvalue(low + 2, dim=1).values
    return at + (above - at) * (place - low)


class Quantile:
    """The quantile `share` (0 to 1) of all values >= 0 added so far, one per row.

    Args:
        share: such as 0.999.
        nonzero_only: of the values that are not 0; 0 if there are none.
    """

    def __init__(self, share: float, nonzero_only: bool = False) -> None:
        self.share, self.nonzero_only = share, nonzero_only
        self.batches = 0
        self.first: Tensor
        self.counts: Tensor
        self.zeros: Tensor
        self.end = 1.0

    def add(self, rows: Tensor) -> None:
        """Add values `[R, N]`, each >= 0."""
        if not self.batches:
            self.first = self.of_batch(rows)
            self.counts = torch.zeros(len(rows), BINS, dtype=torch.float64, device=rows.device)
            self.zeros = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
            self.end = 2.0**-20
        self.batches += 1
        while self.end < float(rows.max()):
            self.end *= 2
            pairs = self.counts.view(len(self.counts), -1, 2).sum(2)
            self.counts = torch.cat([pairs, torch.zeros_like(pairs)], 1)
        for row, values in enumerate(rows):
            for part in values.split(_CHUNK):
                self.counts[row] += torch.histc(part[part > 0].double(), BINS, 0, self.end)
        self.zeros += (rows == 0).sum(1)

    def of_batch(self, rows: Tensor) -> Tensor:
        """The quantile of one batch alone, `[R]`."""
        if not self.nonzero_only:
            return exact(rows, self.share)
        parts = [values[values > 0] for values in rows]
        return torch.stack([exact(p[None], self.share)[0] if len(p) else rows.new_zeros(()) for p in parts])

    def value(self) -> Tensor:
        """The quantile, `[R]`."""
        if self.batches == 1:
            return self.first
        zeros = torch.zeros_like(self.zeros) if self.nonzero_only else self.zeros
        totals = self.counts.sum(1) + zeros
        place = self.share * (totals - 1).clamp(min=0)
        below = self.counts.cumsum(1) + zeros[:, None]
        index = (below <= place[:, None]).sum(1).clamp(max=BINS - 1)
        inside = self.counts.gather(1, index[:, None])[:, 0].clamp(min=1)
        start = below.gather(1, index[:, None])[:, 0] - self.counts.gather(1, index[:, None])[:, 0]
        found = (index + ((place - start + 0.5) / inside).clamp(0, 1)) * (self.end / BINS)
        return torch.where(place < zeros, torch.zeros_like(found), found).to(self.first.dtype)
