"""Izhikevich: a quadratic membrane with a recovery current `w`.

    h[t] = v[t-1] + (x[t] + a0 (v[t-1] - v_rest) (v[t-1] - v_c) - w[t-1]) / tau
    s[t] = 1 if h[t] >= v_threshold else 0
    w[t] = w[t-1] + (a (h[t] - v_rest) - w[t-1]) / tau_w + b s[t]
    v[t] = v_reset where s[t], else h[t]                       (soft reset: h[t] - s[t] v_threshold)

`detach_reset` concerns the membrane alone; gradient flows through the spike that drives `w`.

Paper: Izhikevich 2003, doi:10.1109/TNN.2003.820440, in the adaptive form of Gerstner et al. 2014, "Neuronal Dynamics",
chapter 6.1. Default values and order of operations as in SpikingJelly's IzhikevichNode; its defaults a = b = 0 leave
`w` at 0.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.kernels import spike
from spikeloom.kernels.tape import Surrogate
from spikeloom.neurons.dynamics import reset
from spikeloom.neurons.module import AT_LEAST_ONE, POSITIVE, Neuron, neuron


@neuron(
    state={"v": "v_reset", "w": "w_rest"},
    limits={"tau": AT_LEAST_ONE, "tau_w": AT_LEAST_ONE, "a0": POSITIVE, "alpha": POSITIVE},
)
def izhikevich(
    x: Any,
    v: Any,
    w: Any,
    *,
    tau: Any = 2.0,
    v_c: Any = 0.8,
    a0: Any = 1.0,
    v_threshold: Any = 1.0,
    v_reset: Any = 0.0,
    v_rest: Any = -0.1,
    w_rest: Any = 0.0,
    tau_w: Any = 2.0,
    a: Any = 0.0,
    b: Any = 0.0,
    detach_reset: bool = True,
    surrogate: str | Surrogate = "sigmoid",
    alpha: Any = 4.0,
) -> Any:
    """One time step: `(x, v, w) -> (s, v, w)`."""
    h = v + (x + a0 * (v - v_rest) * (v - v_c) - w) / tau
    s = spike(h - v_threshold, surrogate, alpha)
    w = w + (a * (h - v_rest) - w) / tau_w + b * s
    return s, reset(h, s, v_threshold, v_reset, detach_reset), w


class Izhikevich(Neuron):
    """Izhikevich neurons on [T, *neurons] inputs.

    Args:
        tau, tau_w: time constants of membrane and recovery in steps, >= 1.
        v_c, a0, v_rest: critical membrane, strength (> 0) and resting membrane of the quadratic term.
        v_threshold: a neuron whose membrane is >= this fires.
        v_reset: membrane after a spike and before the first step; None: soft reset, and 0 before the first step.
        w_rest: recovery before the first step.
        a: how much the membrane drives the recovery.
        b: how much one spike raises the recovery.
        detach_reset, surrogate, alpha, backend: as in `LIF`.
    """

    def __init__(
        self,
        tau: float | Tensor = 2.0,
        v_c: float | Tensor = 0.8,
        a0: float | Tensor = 1.0,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | Tensor | None = 0.0,
        v_rest: float | Tensor = -0.1,
        w_rest: float | Tensor = 0.0,
        tau_w: float | Tensor = 2.0,
        a: float | Tensor = 0.0,
        b: float | Tensor = 0.0,
        *,
        detach_reset: bool = True,
        surrogate: str | Surrogate = "sigmoid",
        alpha: float | Tensor | None = 4.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            izhikevich,
            backend=backend,
            tau=tau,
            v_c=v_c,
            a0=a0,
            v_threshold=v_threshold,
            v_reset=v_reset,
            v_rest=v_rest,
            w_rest=w_rest,
            tau_w=tau_w,
            a=a,
            b=b,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
