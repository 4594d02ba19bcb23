"""QCFS: the activation whose conversion is exact for constant currents - a clip and floor with a learned threshold.

    h(x) = theta clip(floor(L clip(x / theta, 0, 1) + 1/2) / L, 0, 1)

The floor passes the gradient: d/dx = 1 inside (0, theta), else 0; d/dtheta = h / theta - x / theta inside, 1 above, 0
below. The converted neuron has threshold theta and starts at theta / 2; T steps need not be L.

theta starts at 4 to 8: from 1 users saw it become negative. It is held at >= 0.001 in the forward pass.

Paper: Bu et al., ICLR 2022, "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency SNNs".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SMALLEST = 1e-3


def floor_through(x: Tensor) -> Tensor:
    """Floor, with the gradient of the identity."""
    return x.floor().detach() + (x - x.detach())  # the second term is exactly 0


class QCFS(nn.Module):
    """The activation, with one learned threshold for the layer; any shape.

    Args:
        L: levels above 0; 4 for small images, 8 for ImageNet in the paper.
        theta: threshold before training.
    """

    def __init__(self, L: int = 8, theta: float = 8.0) -> None:
        super().__init__()
        if L < 1 or not theta >= SMALLEST:
            raise ValueError(f"QCFS got L = {L} and theta = {theta}; expected L >= 1 and theta >= {SMALLEST}.")
        self.L = L
        self.thresh = nn.Parameter(torch.tensor([float(theta)]))

    @property
    def v_threshold(self) -> Tensor:
        """The threshold in use, `[]`."""
        return self.thresh.detach().clamp(min=SMALLEST).reshape(())

    def forward(self, x: Tensor) -> Tensor:
        """Clip and quantise."""
        theta = self.thresh.clamp(min=SMALLEST)
        unit = (x / theta).clamp(0, 1)
        return floor_through(unit * self.L + 0.5) / self.L * theta

    def extra_repr(self) -> str:
        return f"L={self.L}, theta={self.v_threshold.item():.4g}"
