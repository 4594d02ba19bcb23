"""WKV: the attention of RWKV-4, a weighted mean of all values up to now, computed as a recurrence over tokens.

    y[t] = (sum_{i<t} e^{(t-1-i) w + k[i]} v[i] + e^{u + k[t]} v[t]) / (sum_{i<t} e^{(t-1-i) w + k[i]} + e^{u + k[t]})

with w = -exp(time_decay) < 0 and u = time_first, both per channel. Numerator and denominator without the present token
are p e^o and q e^o: the exponent o is the largest so far, so that no exponential exceeds 1.

    m = max(o, u + k[t]);   y[t] = (e^{o-m} p + e^{u+k[t]-m} v[t]) / (e^{o-m} q + e^{u+k[t]-m})
    m = max(w + o, k[t]);   p, q, o = e^{w+o-m} p + e^{k[t]-m} v[t],  e^{w+o-m} q + e^{k[t]-m},  m

Paper: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", arXiv:2305.13048. k, v and y are [T, B, C];
p, q and o are [B, C]. On a GPU long texts are computed in chunks of tokens side by side (see `kernels.wkv`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from spikeloom.kernels import detach, exp, maximum
from spikeloom.kernels.wkv import takes, weighted_means
from spikeloom.kernels.wkv.chunked import NOTHING
from spikeloom.neurons import Neuron, neuron


@neuron(state={"p": 0.0, "q": 0.0, "o": NOTHING})
def wkv(k: Any, v: Any, p: Any, q: Any, o: Any, *, time_decay: Any, time_first: Any) -> Any:
    """One token: `(k, v, p, q, o) -> (y, p, q, o)`.

    o is a scale that cancels, so it has no gradient; those of p e^o and q e^o are exact.
    """
    o = detach(o)
    bonus = time_first + k
    m = detach(maximum(o, bonus))
    past, present = exp(o - m), exp(bonus - m)
    y = (past * p + present * v) / (past * q + present)
    decayed = o - exp(time_decay)
    m = detach(maximum(decayed, k))
    past, present = exp(decayed - m), exp(k - m)
    return y, past * p + present * v, past * q + present, m


class WKV(Neuron):
    """`wkv(k, v)`: keys and values [T, B, C] -> weighted means [T, B, C]; state (p, q, o), each [B, C].

    Args:
        time_decay: logarithm of the decay per token, [C]; a parameter.
        time_first: what the exponent of the present token has more, [C]; a parameter.
        backend: `auto`, `reference`, `cpu` or `cuda`.
    """

    def __init__(self, time_decay: Tensor, time_first: Tensor, *, backend: str = "auto") -> None:
        if time_decay.ndim != 1 or time_decay.shape != time_first.shape:
            raise ValueError(
                f"WKV got time_decay {list(time_decay.shape)} and time_first {list(time_first.shape)}; expected one "
                "value per channel in each, [C]."
            )
        super().__init__(wkv, backend=backend, time_decay=nn.Parameter(time_decay), time_first=nn.Parameter(time_first))

    def forward(self, *inputs: Tensor, state: tuple[Tensor, ...] | None = None, return_state: bool = False) -> Any:
        """All tokens; see `Neuron.forward`. o has no gradient."""
        values = self.runtime()
        given: Any = (*inputs, values["time_decay"], values["time_first"], state)
        if self.backend in ("auto", "cuda") and len(inputs) == 2 and takes(*given):
            y, end = weighted_means(*given)
            return (y, end) if return_state else y
        return super().forward(*inputs, state=state, return_state=return_state)
