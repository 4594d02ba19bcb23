"""Integer LIF (ILIF): fires 0 to `max_spikes` spikes in one step, and can be run as that many binary steps.

    h[t] = v[t-1] - v[t-1] / tau + x[t]
    s[t] = round(clamp(h[t] / v_threshold, 0, max_spikes))     gradient 1 inside the interval, else 0
    v[t] = h[t] - s[t] v_threshold
    output s[t] / norm

`rounding="half_even"` rounds ties to even and passes gradient on the closed interval; `"half_up"` is
floor(. + 1/2) with gradient on the open interval. With T = 1 from rest and norm = 4 these are `MultiSpike` of
`Model_Base` and `Multispike` of `Model_Large` of Spike-Driven-Transformer-V3 (commit 00fcd1f).

Paper: Luo, Yao, Chou, Xu, Li 2024, "Integer-Valued Training and Spike-Driven Inference", arXiv:2407.20708, with
beta = 1 - 1 / tau (the paper's state is ours after the decay); Yao et al. 2025, arXiv:2411.16061.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.kernels import clamp, detach, floor, round, where
from spikeloom.neurons.dynamics import charge, reset
from spikeloom.neurons.module import AT_LEAST_ONE, POSITIVE, WHOLE, Neuron, neuron

ROUNDINGS = ("half_even", "half_up")


@neuron(state={"v": 0.0}, limits={"tau": AT_LEAST_ONE, "v_threshold": POSITIVE, "max_spikes": WHOLE, "norm": POSITIVE})
def ilif(
    x: Any,
    v: Any,
    *,
    tau: Any = 4.0 / 3.0,
    v_threshold: Any = 1.0,
    max_spikes: Any = 4.0,
    norm: Any = 1.0,
    rounding: str = "half_even",
    detach_reset: bool = True,
) -> Any:
    """One time step: `(x, v) -> (s / norm, v)`."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding {rounding!r}; known: {', '.join(ROUNDINGS)}")
    h = charge(x, v, tau, None, decay_input=False)
    level = h / v_threshold
    if rounding == "half_even":
        s = round(clamp(level, 0.0, max_spikes))
    else:
        inside = (level > 0.0) & (level < max_spikes)
        s = floor(where(inside, level, detach(clamp(level, 0.0, max_spikes))) + 0.5)
    return s / norm, reset(h, s, v_threshold, None, detach_reset)


class ILIF(Neuron):
    """Integer LIF neurons on [T, *neurons] inputs.

    Args:
        tau: membrane time constant in steps, >= 1; the default is the paper's beta = 1/4, infinite does not leak.
        v_threshold: membrane that one spike stands for, > 0.
        max_spikes: most spikes in one step, a whole number.
        norm: the output is divided by this; `max_spikes` keeps it in [0, 1].
        rounding: `half_even` or `half_up`.
        detach_reset: no gradient through the reset.
        backend: `auto`, `reference`, `cpu` or `cuda`.
    """

    def __init__(
        self,
        tau: float | Tensor = 4.0 / 3.0,
        v_threshold: float | Tensor = 1.0,
        max_spikes: int = 4,
        norm: float = 1.0,
        *,
        rounding: str = "half_even",
        detach_reset: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            ilif,
            backend=backend,
            tau=tau,
            v_threshold=v_threshold,
            max_spikes=max_spikes,
            norm=norm,
            rounding=rounding,
            detach_reset=detach_reset,
        )
