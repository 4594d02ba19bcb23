"""Linear maps with batch normalisation and no neuron: the ends of branches that are added to a stream of membranes."""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.synapses import BatchNorm2d, Conv2d, Linear, SpikeConv2d
from spikeloom.synapses.norm_pool import norm_then_pool
from spikeloom.synapses.time_axis import check_axes


class PointwiseNorm(nn.Module):
    """Linear -> BatchNorm on tokens: `[T, B, N, C]` -> `[T, B, N, C']`; statistics over T, B and N.

    Args:
        in_features, out_features: C, C'.
        bias: of the linear map.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.synapse = Linear(in_features, out_features, bias=bias)
        self.norm = BatchNorm2d(out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        check_axes(x, "PointwiseNorm", "T B N C")
        rows = self.synapse(x).transpose(2, 3).unsqueeze(3)  # [T, B, C', 1, N], channels last in memory
        normed: Tensor = self.norm(rows)
        return normed.squeeze(3).transpose(2, 3)


class ConvNorm(nn.Module):
    """Conv2d -> BatchNorm: `[T, B, C, H, W]` -> `[T, B, C', H', W']`, padded by half of the kernel.

    Args:
        in_channels, out_channels: C, C'.
        kernel: side of the kernel.
        stride, bias: of the convolution.
        spikes: the input is known to be zeros and ones, so that backward may keep it as bits, see `SpikeConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        bias: bool = False,
        spikes: bool = False,
    ) -> None:
        super().__init__()
        conv = SpikeConv2d if spikes else Conv2d
        self.synapse = conv(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=bias)
        self.norm = BatchNorm2d(out_channels)

    def forward(self, x: Tensor, pool: nn.Module | None = None) -> Tensor:
        """Run all time steps; `pool` is applied to the result, a max pooling in one pass with the normalisation."""
        y = self.synapse(x)
        if pool is not None:
            return norm_then_pool(self.norm, pool, y)
        normed: Tensor = self.norm(y)
        return normed
