"""Convolution onto the membrane stream, the residual addition of MS-ResNet; depth-wise, the token mixer of Max-Former.

    u' = u + BN(C s + b),    s' = LIF(u')

Papers: Hu, Deng, Wu, Yao, Li 2024 (MS-ResNet), arXiv:2112.08954; Fang et al. 2025, "Spiking Neural Networks Need
High-Frequency Information" (Max-Former), arXiv:2505.18608: depth-wise kernels of 3, 5 or 7 in the early stages, because
a local filter keeps the high frequencies that LIF neurons take away.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention.membrane import Pair
from spikeloom.synapses import BatchNorm2d, Conv2d, NormNeuron, SpikeConv2d


class MembraneConv(nn.Module):
    """Conv2d -> BatchNorm -> + u -> LIF on maps: spikes `[T, B, C, H, W]` onto the stream u `[T, B, C', H', W']`.

    Args:
        in_channels, out_channels: C, C'.
        kernel: side of the kernel, odd; the map is padded by half of it.
        stride, groups, bias: of the convolution.
        last: no neuron follows: the result is (None, u').
        spikes: the input is zeros and ones, so that backward may keep it as bits, see `SpikeConv2d`; False: other
            values come too.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        last: bool = False,
        spikes: bool = True,
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"MembraneConv got kernel={kernel}; expected an odd size (an even one changes the map's size)."
            )
        self.synapse = (SpikeConv2d if spikes else Conv2d)(
            in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias
        )
        self.last = last
        if last:
            self.norm = BatchNorm2d(out_channels)
        else:
            self.fire = NormNeuron(out_channels, LIF(), emit=True)

    def forward(self, spikes: Tensor, u: Tensor) -> Pair:
        """Run all time steps."""
        if self.last:
            return None, u + self.norm(self.synapse(spikes))
        y, offset = self.fire.current(self.synapse, spikes)
        fired, total = self.fire(y, u, offset=offset)
        return fired, total


def membrane_depthwise(dim: int, kernel: int, *, last: bool = False) -> MembraneConv:
    """The depth-wise token mixer on a pair (s, u) with s = LIF(u), maps `[T, B, C, H, W]`; with bias."""
    return MembraneConv(dim, dim, kernel, groups=dim, bias=True, last=last)
