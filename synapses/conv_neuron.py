"""`ConvNeuron`: convolution, batch normalisation and neuron over frames; max pooling before or after."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from spikeloom.neurons import LIF, Neuron
from spikeloom.synapses.layers import BatchNorm2d, Conv2d, MaxPool2d
from spikeloom.synapses.norm_neuron import NormNeuron
from spikeloom.synapses.norm_pool import norm_then_pool
from spikeloom.synapses.spike_conv import SpikeConv2d

Pool = Literal["none", "before", "after"]


class ConvNeuron(nn.Module):
    """Conv2d (no bias) -> BatchNorm -> neuron: `[T, B, C, H, W]` -> spikes `[T, B, C', H', W']`.

    Args:
        in_channels, out_channels: C, C'.
        kernel: side of the kernel.
        stride: of the convolution.
        padding: of the convolution; None is half of the kernel, rounded down.
        pool: max pooling 3 x 3 with stride 2 and padding 1, `before` the neuron (of its input), `after` it (of its
            spikes: their logical or) or `none`. Without pooling before it, normalisation and neuron are one kernel.
        neuron: None is `LIF()`.
        spikes: the input is known to be zeros and ones, so that backward may keep it as bits, see `SpikeConv2d`.
            Whoever swaps the neuron in front for one with other outputs (`ILIF`) builds this with `spikes=False`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        padding: int | None = None,
        pool: Pool = "none",
        neuron: Neuron | None = None,
        spikes: bool = False,
    ) -> None:
        super().__init__()
        if pool not in ("none", "before", "after"):
            raise ValueError(f"ConvNeuron got pool={pool!r}; expected 'none', 'before' or 'after' the neuron.")
        neuron = LIF() if neuron is None else neuron
        padding = kernel // 2 if padding is None else padding
        conv = SpikeConv2d if spikes else Conv2d
        self.synapse = conv(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.pool_at = pool
        if pool == "before":
            self.norm = BatchNorm2d(out_channels)
            self.pool: nn.Module = MaxPool2d(3, 2, 1)
            self.neuron = neuron
        else:
            self.fire = NormNeuron(out_channels, neuron)
            self.pool = MaxPool2d(3, 2, 1) if pool == "after" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = self.synapse(x)
        if self.pool_at == "before":
            spikes: Tensor = self.neuron(norm_then_pool(self.norm, self.pool, x))
            return spikes
        pooled: Tensor = self.pool(self.fire(x))
        return pooled
