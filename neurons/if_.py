"""Integrate-and-fire (IF): a membrane without leak.

    h[t] = v[t-1] + x[t]
    s[t] = 1 if h[t] >= v_threshold else 0
    v[t] = v_reset where s[t], else h[t]              (soft reset: h[t] - s[t] v_threshold)

Paper: Lapicque 1907; Gerstner, Kistler, Naud, Paninski 2014, "Neuronal Dynamics", chapter 1.3, without leak.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.kernels import spike
from spikeloom.kernels.tape import Surrogate
from spikeloom.neurons.dynamics import reset
from spikeloom.neurons.module import POSITIVE, Neuron, neuron


@neuron(state={"v": "v_reset"}, limits={"alpha": POSITIVE})
def if_(
    x: Any,
    v: Any,
    *,
    v_threshold: Any = 1.0,
    v_reset: Any = 0.0,
    detach_reset: bool = True,
    surrogate: str | Surrogate = "sigmoid",
    alpha: Any = 4.0,
) -> Any:
    """One time step: `(x, v) -> (s, v)`."""
    h = v + x
    s = spike(h - v_threshold, surrogate, alpha)
    return s, reset(h, s, v_threshold, v_reset, detach_reset)


class IF(Neuron):
    """Integrate-and-fire neurons on [T, *neurons] inputs.

    Args:
        v_threshold: a neuron whose membrane is >= this fires.
        v_reset: membrane after a spike and before the first step; None subtracts `v_threshold` instead (soft reset).
        detach_reset: no gradient through the reset.
        surrogate: name in `SURROGATES`, or a function `(u, alpha) -> derivative`.
        alpha: sharpness of the surrogate; None takes the surrogate's own default.
        backend: `auto`, `reference`, `cpu` or `cuda`.
    """

    def __init__(
        self,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | Tensor | None = 0.0,
        *,
        detach_reset: bool = True,
        surrogate: str | Surrogate = "sigmoid",
        alpha: float | Tensor | None = 4.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            if_,
            backend=backend,
            v_threshold=v_threshold,
            v_reset=v_reset,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
