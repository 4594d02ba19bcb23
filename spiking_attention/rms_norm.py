"""Root-mean-square normalisation of tokens: x / sqrt(mean(x^2) + eps) w, over the last axis.

Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", arXiv:1910.07467.
"""

from __future__ import annotations

from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` that computes in its weight's type, so that under autocast its result is float32, as that of
    `LayerNorm` is there, and a residual stream keeps its precision.

    Args:
        features: of the last axis. eps: added to the mean square.
    """

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__(features, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[..., features]`."""
        return super().forward(x.to(self.weight.dtype))
