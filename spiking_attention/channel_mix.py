"""Channel-mix: RWKV-4's feed-forward layer with a gate, on a token and the one before.

    shift(x)[t] = x[t-1], 0 before the first;   mix(x, m) = m x + (1 - m) shift(x)
    out = sigmoid(W_r mix(x, m_r)) (W_v relu(W_k mix(x, m_k))^2)

Paper: Peng et al. 2023, arXiv:2305.13048; in a spiking language model: Zhu et al. 2023, "SpikeGPT", arXiv:2302.13939,
where a LIF neuron per channel follows `out`. x and out are [T, B, C], the hidden layer is [T, B, 4 C]; all real-valued.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.neurons import Neuron, neuron
from spikeloom.spiking_attention.gates import gated, squared
from spikeloom.synapses import Linear


@neuron(state={"last": 0.0})
def mix_two(x: Any, last: Any, *, time_mix_k: Any, time_mix_r: Any) -> Any:
    """One token: `(x, last) -> (mix_k, mix_r, x)`, two mixtures of a token with the one before."""
    return x * time_mix_k + last * (1.0 - time_mix_k), x * time_mix_r + last * (1.0 - time_mix_r), x


class ChannelMix(nn.Module):
    """Gated feed-forward layer on [T, B, C], with the state of a stream (last token) in `mix`.

    The mixing weights start at 0.5; `spikeloom.models.spikegpt_init` has the published values.

    Args:
        features: channels C; the hidden layer has 4 C.
    """

    def __init__(self, features: int) -> None:
        super().__init__()

        def halves() -> nn.Parameter:
            return nn.Parameter(torch.full((features,), 0.5))

        self.mix = Neuron(mix_two, time_mix_k=halves(), time_mix_r=halves())
        self.key = Linear(features, 4 * features, bias=False)
        self.value = Linear(4 * features, features, bias=False)
        self.receptance = Linear(features, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """All tokens: [T, B, C] -> [T, B, C]."""
        return self.mixed(*self.mix(x))

    def mixed(self, k: Tensor, r: Tensor) -> Tensor:
        """What follows the two mixtures, each [T, B, C], in the order of `mixes`."""
        hidden = squared(self.key(k))
        return gated(self.receptance(r), self.value(hidden))

    def mixes(self) -> tuple[Tensor, ...]:
        """The mixing weights [C] of the key and the gate."""
        mix: Any = self.mix
        return mix.time_mix_k, mix.time_mix_r
