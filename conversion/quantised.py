"""Activations with a learned clip that convert with that clip as threshold.

    ClippedReLU     h(x) = clip(x, 0, theta)                              TCL, Ho & Chang, DAC 2021
    QuantisedReLU   h(x) = scale round(clip(x / scale, 0, 2^bits - 1))    LSQ, Esser et al., ICLR 2020

The gradient of the scale is LSQ's: h / scale - x / scale inside, 2^bits - 1 above, 0 below, times
1 / sqrt(N (2^bits - 1)) for N elements of a sample. Round half up, as the converted neuron does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from spikeloom.conversion.qcfs import SMALLEST, floor_through


class ClippedReLU(nn.Module):
    """A ReLU with a learned upper end; any shape."""

    def __init__(self, theta: float = 4.0) -> None:
        super().__init__()
        if not theta >= SMALLEST:
            raise ValueError(f"ClippedReLU got theta = {theta}; expected >= {SMALLEST}.")
        self.theta = nn.Parameter(torch.tensor(float(theta)))

    @property
    def v_threshold(self) -> Tensor:
        """The threshold in use, `[]`."""
        return self.theta.detach().clamp(min=SMALLEST)

    def forward(self, x: Tensor) -> Tensor:
        """Clip."""
        return torch.minimum(torch.relu(x), self.theta.clamp(min=SMALLEST))


class QuantisedReLU(nn.Module):
    """A ReLU on 2^bits levels with a learned step; the threshold is (2^bits - 1) steps. Shape `[B, ...]`."""

    def __init__(self, bits: int = 2, scale: float = 1.0) -> None:
        super().__init__()
        if not 1 <= bits <= 8 or not scale >= SMALLEST:
            raise ValueError(f"QuantisedReLU got {bits} bits and scale {scale}; expected 1 to 8, and >= {SMALLEST}.")
        self.bits = bits
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    @property
    def v_threshold(self) -> Tensor:
        """The threshold in use, `[]`."""
        return self.scale.detach().clamp(min=SMALLEST) * (2**self.bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Clip and quantise."""
        top = 2**self.bits - 1
        share = 1 / math.sqrt(max(x[0].numel(), 1) * top)
        scale = self.scale * share + (self.scale * (1 - share)).detach()
        scale = scale.clamp(min=SMALLEST)
        return floor_through((x / scale).clamp(0, top) + 0.5) * scale

    def extra_repr(self) -> str:
        return f"bits={self.bits}, scale={self.scale.item():.4g}"
