"""Convolutional block of Spike-driven Transformer V3: a separable convolution, then a channel mixer of two others.

    x = x + SepConv(x)
    x = x + BN(C2 S(BN(C1 S(x))))                  C1: C -> ratio C and C2: ratio C -> C, 3 x 3

Paper: Yao et al. 2025, arXiv:2411.16061; `MS_ConvBlock_spike_SepConv` in the authors' code
(BICLab/Spike-Driven-Transformer-V3, commit 00fcd1f). No convolution has a bias.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.spiking_attention.integer import integer_neuron
from spikeloom.spiking_attention.normed import ConvNorm
from spikeloom.spiking_attention.sepconv import SepConv
from spikeloom.synapses import ConvNeuron


class ConvBlock(nn.Module):
    """The block on maps `[T, B, C, H, W]` of membranes, in the same shape out.

    Args:
        dim: C.
        ratio: channels between the two convolutions per channel outside.
        kernel: side of the separable convolution's depthwise kernel.
        max_spikes: of the integer neurons, 4 ("1 x 4") or 8.
    """

    def __init__(self, dim: int, *, ratio: float = 4.0, kernel: int = 7, max_spikes: int = 4) -> None:
        super().__init__()
        if int(ratio * dim) < 1:
            raise ValueError(f"ConvBlock got ratio={ratio} at dim={dim}; expected at least one channel inside.")
        self.sep = SepConv(dim, kernel=kernel, max_spikes=max_spikes)
        self.neuron = integer_neuron(max_spikes)
        self.conv1 = ConvNeuron(dim, int(ratio * dim), neuron=integer_neuron(max_spikes))
        self.conv2 = ConvNorm(int(ratio * dim), dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = x + self.sep(x)
        branch: Tensor = self.conv2(self.conv1(self.neuron(x)))
        return x + branch
