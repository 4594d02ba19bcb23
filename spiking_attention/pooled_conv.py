"""Convolution whose membranes are pooled in front of the neuron: what Max-Former adds to keep high frequencies.

    s = LIF(P(BN(C x)))                                P: 3 x 3, stride 2, the largest value or the mean

Paper: Fang et al. 2025, "Spiking Neural Networks Need High-Frequency Information", arXiv:2505.18608. `ConvNeuron` with
pool="before" is the same for max pooling and always fires; here the neuron may be left out, and the mean taken.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention.pool_mixer import PoolKind, pooling
from spikeloom.synapses import BatchNorm2d, Conv2d, SpikeConv2d
from spikeloom.synapses.norm_pool import norm_then_pool


class PooledConv(nn.Module):
    """Conv2d -> BatchNorm -> pooling (-> LIF) on maps: membranes are pooled, and the neuron comes after.

    Args:
        in_channels, out_channels: C, C'. kernel: side of the kernel. kind: of the pooling. fires: with the neuron.
        spikes: the input is known to be zeros and ones, so that backward may keep it as bits, see `SpikeConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        kind: PoolKind,
        *,
        fires: bool,
        spikes: bool = False,
    ) -> None:
        super().__init__()
        conv = SpikeConv2d if spikes else Conv2d
        self.synapse = conv(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = BatchNorm2d(out_channels)
        self.pool = pooling(kind, 2)
        self.neuron = LIF() if fires else None

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        membranes = norm_then_pool(self.norm, self.pool, self.synapse(x))
        if self.neuron is None:
            return membranes
        spikes: Tensor = self.neuron(membranes)
        return spikes
