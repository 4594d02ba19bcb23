"""The membrane shortcut: the residual stream of the Spike-driven Transformer carries membrane inputs, not spikes.

    u' = u + BN(W s + b),    s' = LIF(u')

Every linear map reads spikes s, every addition is on real-valued u. A layer therefore takes and gives the pair (s, u)
with s = LIF(u): the neuron of the next layer follows the addition at once, and normalisation, addition and neuron are
one kernel. u becomes such a pair by `LIF()(u)`.

Paper: Hu, Deng, Wu, Yao, Li 2024 (MS-ResNet), arXiv:2112.08954; Yao et al. 2023, arXiv:2307.01694, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention.layout import Layout, to_tokens
from spikeloom.synapses import BatchNorm1d, NormNeuron, SpikeLinear

Pair = tuple[Tensor | None, Tensor]
"""(s, u) of one shape; s is None where no neuron follows."""


class MembraneProjection(nn.Module):
    """Linear -> BatchNorm -> + u -> LIF on tokens: `[T, B, N, C]` spikes onto the stream u `[T, B, N, C']`.

    Args:
        in_features, out_features: C, C'.
        last: no neuron follows: the result is (None, u).
    """

    def __init__(self, in_features: int, out_features: int, *, last: bool = False) -> None:
        super().__init__()
        self.synapse = SpikeLinear(in_features, out_features, bias=True)
        self.last = last
        if last:
            self.norm = BatchNorm1d(out_features)
        else:
            self.fire = NormNeuron(out_features, LIF(), emit=True)

    def forward(self, x: Tensor, u: Tensor) -> Pair:
        """Run all time steps."""
        if self.last:
            y = self.synapse(x)
            rows = y.flatten(0, 2).unsqueeze(0)  # [1, T B N, C]: channels last, as batch normalisation reads them best
            return None, u + self.norm(rows).view(y.shape)
        y, offset = self.fire.current(self.synapse, x)
        spikes, total = self.fire(y.transpose(2, 3), u.transpose(2, 3), offset=offset)
        return spikes.transpose(2, 3), total.transpose(2, 3)


def pair_tokens(
    spikes: Tensor, u: Tensor, layout: Layout, dim: int, mixer: str
) -> tuple[Tensor, Tensor, Callable[[Pair], Pair]]:
    """A pair as tokens `[T, B, N, C]`, and the way back for a pair of that shape.

    Raises:
        ValueError: spikes and u differ in shape, or do not fit the layout.
    """
    if spikes.shape != u.shape:
        raise ValueError(
            f"{mixer} got spikes of shape {list(spikes.shape)} and a stream u of shape {list(u.shape)}; expected one "
            "shape: the spikes are those of a neuron on u, such as LIF()(u)."
        )
    s, _ = to_tokens(spikes, layout, dim, mixer)
    u, restore = to_tokens(u, layout, dim, mixer)
    return s, u, lambda pair: (None if pair[0] is None else restore(pair[0]), restore(pair[1]))
