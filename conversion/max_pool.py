"""Max pooling whose mean over time is the max pool of the mean.

The largest of several spike trains at each step (a logical or) is more than the largest of their rates. Here

    N[t] = x[1] + ... + x[t]
    y[t] = max over the window of N[t] - max over the window of N[t-1]

so that y[1] + ... + y[t] is the max pool of the sums, at every t. For spikes y is 0 or 1: it fires when the neuron that
leads its window, or ties with it, takes a new lead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.synapses.time_axis import over_time


class CountMaxPool(nn.Module):
    """Max pooling by sums over time, `[T, B, C, ...]` -> `[T, B, C, ...]`, around a pooling module of torch."""

    streams = True

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor, *, state: Tensor | None = None, return_state: bool = False) -> Any:
        """Run all time steps; the state is the sum of the input, `[B, C, ...]`."""
        sums = x.cumsum(0) if state is None else x.cumsum(0) + state
        start = torch.zeros_like(x[0]) if state is None else state
        pooled = over_time(self.pool, sums)
        before = torch.cat([self.pool(start).unsqueeze(0), pooled[:-1]])
        y = pooled - before
        return (y, sums[-1]) if return_state else y
