"""`Projection`: linear map, batch normalisation and neuron over tokens: what spiking transformers are made of."""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.neurons import LIF, Neuron
from spikeloom.synapses.layers import Linear
from spikeloom.synapses.norm_neuron import NormNeuron
from spikeloom.synapses.spike_linear import SpikeLinear
from spikeloom.synapses.time_axis import check_axes


class Projection(nn.Module):
    """Linear -> BatchNorm -> neuron on tokens: `[T, B, N, C]` -> spikes `[T, B, N, C']`.

    The statistics of a channel are taken over T, B and N. A 1 x 1 convolution on `[T, B, C, N]` is the same map: only
    the axes' order in memory differs, and tokens with their channels last are what a matrix product reads best.

    Args:
        in_features, out_features: C, C'.
        bias: of the linear map.
        neuron: None is `LIF()`.
        spikes: the input is known to be zeros and ones, so that backward may keep it as bits, see `SpikeLinear`.
            Whoever swaps the neuron in front for one with other outputs (`ILIF`) builds this with `spikes=False`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        neuron: Neuron | None = None,
        spikes: bool = False,
    ) -> None:
        super().__init__()
        self.synapse = (SpikeLinear if spikes else Linear)(in_features, out_features, bias=bias)
        self.fire = NormNeuron(out_features, LIF() if neuron is None else neuron)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        check_axes(x, "Projection", "T B N C")
        y, offset = self.fire.current(self.synapse, x)
        spikes: Tensor = self.fire(y.transpose(2, 3), offset=offset)
        return spikes.transpose(2, 3)
