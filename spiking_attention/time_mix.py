"""Time-mix: RWKV-4's token mixer. Keys, values and a gate read a token and the one before; WKV mixes all before.

    shift(x)[t] = x[t-1], 0 before the first;     mix(x, m) = m x + (1 - m) shift(x)
    y = WKV(W_k mix(x, m_k), W_v mix(x, m_v));    out = W_o (sigmoid(W_r mix(x, m_r)) y)

Paper: Peng et al. 2023, arXiv:2305.13048; in a spiking language model: Zhu et al. 2023, "SpikeGPT", arXiv:2302.13939,
where a LIF neuron per channel follows `out`. x and out are [T, B, C], T the tokens; everything here is real-valued.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.neurons import Neuron, neuron
from spikeloom.spiking_attention.gates import gated
from spikeloom.spiking_attention.wkv import WKV
from spikeloom.synapses import Linear


@neuron(state={"last": 0.0})
def mix_three(x: Any, last: Any, *, time_mix_k: Any, time_mix_v: Any, time_mix_r: Any) -> Any:
    """One token: `(x, last) -> (mix_k, mix_v, mix_r, x)`, the same three mixtures of a token with the one before."""
    k = x * time_mix_k + last * (1.0 - time_mix_k)
    v = x * time_mix_v + last * (1.0 - time_mix_v)
    r = x * time_mix_r + last * (1.0 - time_mix_r)
    return k, v, r, x


class TimeMix(nn.Module):
    """Token mixer on [T, B, C], causal, with the state of a stream in `mix` (last token) and `wkv` (p, q, o).

    The mixing weights start at 0.5, decay and bonus at 0; `spikeloom.models.spikegpt_init` has the published values.

    Args:
        features: channels C.
    """

    def __init__(self, features: int) -> None:
        super().__init__()

        def halves() -> nn.Parameter:
            return nn.Parameter(torch.full((features,), 0.5))

        self.mix = Neuron(mix_three, time_mix_k=halves(), time_mix_v=halves(), time_mix_r=halves())
        self.key = Linear(features, features, bias=False)
        self.value = Linear(features, features, bias=False)
        self.receptance = Linear(features, features, bias=False)
        self.wkv = WKV(torch.zeros(features), torch.zeros(features))
        self.output = Linear(features, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """All tokens: [T, B, C] -> [T, B, C]."""
        return self.mixed(*self.mix(x))

    def mixed(self, k: Tensor, v: Tensor, r: Tensor) -> Tensor:
        """What follows the three mixtures, each [T, B, C], in the order of `mixes`."""
        y = self.wkv(self.key(k), self.value(v))
        out: Tensor = self.output(gated(self.receptance(r), y))
        return out

    def mixes(self) -> tuple[Tensor, ...]:
        """The mixing weights [C] of the key, the value and the gate."""
        mix: Any = self.mix
        return mix.time_mix_k, mix.time_mix_v, mix.time_mix_r
