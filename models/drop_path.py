"""DropPath (stochastic depth): in training, a residual branch is left out for some samples.

Huang et al. 2016, "Deep Networks with Stochastic Depth", arXiv:1603.09382. One decision per sample for all its time
steps: a branch that comes and goes from step to step would be noise in the neurons behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Zero the branch of a sample with probability `rate`, scale the others by 1 / (1 - rate); in training only.

    Args:
        rate: 0 <= rate < 1.
        axis: of the samples.

    Raises:
        ValueError: the rate is out of range.
    """

    def __init__(self, rate: float = 0.0, axis: int = 1) -> None:
        super().__init__()
        check_rate(rate, "DropPath got rate")
        self.rate, self.axis = rate, axis

    def forward(self, branch: Tensor) -> Tensor:
        """The branch, or what is left of it."""
        if not self.training or self.rate == 0:
            return branch
        shape = [1] * branch.ndim
        shape[self.axis] = branch.shape[self.axis]
        kept = torch.empty(shape, dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.rate)
        return branch * (kept / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"{self.rate}, axis={self.axis}"


def check_rate(rate: float, where: str) -> None:
    """Raise unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"{where}={rate}; expected 0 <= rate < 1.")
