"""Delayed read-out: the answer is the mean of the logits from the step on at which spikes have reached the output.

    d = sum over the layers of (mean charge to the first spike / mean activation), rounded up, leaving 4 steps or more
    y[t] = mean of z[d + 1], ..., z[t]  for t > d,  0 before

A deep network is silent at first, layer after layer, and those steps pull the mean away from the ANN's logits. What is
skipped is lost to the average, though: the delay pays with many steps and membranes that start at 0. With a start at
half a threshold, spikes arrive at once and there is little to skip. The formula waits until an average neuron has fired
in every layer in turn, which is long: with many steps and a start at 0, a quarter of it was better (our measurement,
tests/conversion/test_readout.py). Published with SpikingJelly's conversion (documentation of `ann2snn`); the running
mean, the streaming and the estimate from a report are ours.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.conversion.network import ConvertedNet

LEAST = 4
"""Steps that are left to read from."""


class Readout(nn.Module):
    """Logits of every step `[T, B, K]` -> the answer so far, `[T, B, K]`; 0 up to step `delay`.

    In a Stream it counts on from chunk to chunk: `Stream(nn.Sequential(net, Readout(3)))`.
    """

    streams = True

    def __init__(self, delay: int = 0) -> None:
        super().__init__()
        if not isinstance(delay, int) or delay < 0:
            raise ValueError(f"Readout got delay {delay!r}; expected a whole number of steps >= 0.")
        self.delay = delay

    def forward(self, z: Tensor, *, state: tuple[Tensor, Tensor] | None = None, return_state: bool = False) -> Any:
        """Average; the state is the sum `[B, K]` and the steps seen `[]`.

        Raises:
            ValueError: no step is left to read (a call without state has <= delay steps).
        """
        if z.ndim < 2 or (state is None and not return_state and len(z) <= self.delay):
            raise ValueError(
                f"Readout with delay {self.delay} got {list(z.shape)}; expected logits [T, B, K] of more steps."
            )
        total, seen = (torch.zeros_like(z[0]), torch.zeros((), device=z.device)) if state is None else state
        step = (seen + torch.arange(1, len(z) + 1, device=z.device)).view(-1, *[1] * (z.ndim - 1))
        sums = torch.cat([total.unsqueeze(0), z * (step > self.delay)]).cumsum(0)[1:]
        y = sums / (step - self.delay).clamp(min=1).to(z.dtype)
        return (y, (sums[-1], seen + len(z))) if return_state else y

    def extra_repr(self) -> str:
        return f"delay={self.delay}"


def suggested_delay(net: ConvertedNet, T: int | None = None) -> int:
    """The delay of the formula above for T steps (None: net.T), from the network's report.

    Raises:
        ValueError: T leaves fewer than 4 steps for any delay; the network was converted without images, so its
            activations are unknown, or looks ahead (COS, SRP), which is another cure for the same.
    """
    steps = net.T if T is None else T
    rows = net.report.layers
    if net.config.offset != "none":
        raise ValueError(f"a network of method {net.config.method!r} looks ahead; it is read from the first step.")
    if not rows or any(math.isnan(y.activation) for y in rows):
        raise ValueError("the report has no activations; convert with images: convert(ann, batches, ...).")
    if steps < LEAST:
        raise ValueError(f"T is {steps}; a delayed read-out averages {LEAST} steps or more.")
    needed = sum(max(y.charge, 0.0) / max(y.activation, 1e-12) for y in rows)
    return min(math.ceil(min(needed, steps)), steps - LEAST)
