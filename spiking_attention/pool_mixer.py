"""Pooling in the place of attention: the mixers that the Max-Former paper compares for what frequencies they keep.

    u' = P(u),    s' = LIF(u')                         P: 3 x 3, stride 1, the largest value or the mean

The membranes themselves are pooled, and nothing is added: the stream is replaced. Max pooling passes high frequencies
on, average pooling is a low-pass filter. At the border the window has fewer pixels, and the mean is over those.

Paper: Fang et al. 2025, "Spiking Neural Networks Need High-Frequency Information", arXiv:2505.18608, ablations.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention.membrane import Pair
from spikeloom.synapses import AvgPool2d, MaxPool2d

PoolKind = Literal["max", "avg"]


def pooling(kind: PoolKind, stride: int) -> nn.Module:
    """3 x 3 pooling of maps, padded by 1; the mean does not count padding.

    Raises:
        ValueError: the kind is neither "max" nor "avg".
    """
    if kind not in ("max", "avg"):
        raise ValueError(f"got kind={kind!r}; expected 'max' or 'avg'.")
    if kind == "max":
        return MaxPool2d(3, stride, 1)
    return AvgPool2d(3, stride, 1, count_include_pad=False)


class PoolMixer(nn.Module):
    """`(s, u) -> (LIF(u'), u')` on maps `[T, B, C, H, W]`; s is not read and may be None.

    Args:
        kind: "max" or "avg".
        last: no neuron follows: the result is (None, u').
    """

    def __init__(self, kind: PoolKind, *, last: bool = False) -> None:
        super().__init__()
        self.pool = pooling(kind, 1)
        self.neuron = None if last else LIF()

    def forward(self, spikes: Tensor | None, u: Tensor) -> Pair:
        """Run all time steps."""
        u = self.pool(u)
        return None if self.neuron is None else self.neuron(u), u
