"""Separable convolution on integer spikes: the token mixer in front of every block of Spike-driven Transformer V3.

    out = BN(W2 S(BN(D S(BN(W1 S(x))))))           W1: C -> ratio C and W2: ratio C -> C pointwise, D depthwise k x k

Paper: Yao et al. 2025, arXiv:2411.16061; `SepConv_Spike` in the authors' code (BICLab/Spike-Driven-Transformer-V3,
commit 00fcd1f). No map has a bias.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.spiking_attention.integer import integer_neuron
from spikeloom.spiking_attention.layout import to_tokens
from spikeloom.spiking_attention.normed import PointwiseNorm
from spikeloom.synapses import DepthwiseConv2d, NormNeuron, Projection


class Depthwise(nn.Module):
    """Depthwise convolution (no bias) -> BatchNorm -> integer spikes on `[T, B, C, H, W]`."""

    def __init__(self, channels: int, kernel: int, max_spikes: int) -> None:
        super().__init__()
        self.synapse = DepthwiseConv2d(channels, kernel, bias=False)
        self.fire = NormNeuron(channels, integer_neuron(max_spikes))

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        spikes: Tensor = self.fire(self.synapse(x))
        return spikes


class SepConv(nn.Module):
    """Separable convolution on maps `[T, B, C, H, W]` of membranes, a branch in the same shape out.

    Args:
        dim: C.
        ratio: channels inside per channel outside.
        kernel: side of the depthwise kernel, odd: 7 in the convolutional blocks, 3 in the attention blocks.
        max_spikes: of the integer neurons, 4 ("1 x 4") or 8.
    """

    def __init__(self, dim: int, *, ratio: int = 2, kernel: int = 7, max_spikes: int = 4) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"SepConv got kernel={kernel}; expected an odd size (an even one changes the map's size).")
        if ratio < 1 or ratio != int(ratio):
            raise ValueError(f"SepConv got ratio={ratio}; expected a whole number >= 1 (the paper's code has 2).")
        self.dim = dim
        self.neuron = integer_neuron(max_spikes)
        self.pw1 = Projection(dim, ratio * dim, neuron=integer_neuron(max_spikes))
        self.dw = Depthwise(ratio * dim, kernel, max_spikes)
        self.pw2 = PointwiseNorm(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        tokens, restore = to_tokens(x, "TBCHW", self.dim, "SepConv")
        maps = self.dw(restore(self.pw1(self.neuron(tokens))))
        return restore(self.pw2(maps.flatten(3).transpose(2, 3)))
