"""Exponential integrate-and-fire (EIF): near the threshold the membrane runs away exponentially.

    h[t] = v[t-1] + (x[t] + v_rest - v[t-1] + delta_T exp((v[t-1] - theta_rh) / delta_T)) / tau

Firing and reset are those of LIF.

Paper: Fourcaud-Trocmé, Hansel, van Vreeswijk, Brunel 2003, doi:10.1523/JNEUROSCI.23-37-11628.2003; Gerstner et al.
2014, "Neuronal Dynamics", chapter 5.2. Default values and order of operations as in SpikingJelly's EIFNode.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.kernels import exp, spike
from spikeloom.kernels.tape import Surrogate
from spikeloom.neurons.dynamics import reset
from spikeloom.neurons.module import AT_LEAST_ONE, POSITIVE, Neuron, neuron


@neuron(state={"v": "v_reset"}, limits={"tau": AT_LEAST_ONE, "delta_T": POSITIVE, "alpha": POSITIVE})
def eif(
    x: Any,
    v: Any,
    *,
    tau: Any = 2.0,
    delta_T: Any = 1.0,
    theta_rh: Any = 0.8,
    v_threshold: Any = 1.0,
    v_rest: Any = 0.0,
    v_reset: Any = -0.1,
    detach_reset: bool = True,
    surrogate: str | Surrogate = "sigmoid",
    alpha: Any = 4.0,
) -> Any:
    """One time step: `(x, v) -> (s, v)`."""
    h = v + (x + v_rest - v + delta_T * exp((v - theta_rh) / delta_T)) / tau
    s = spike(h - v_threshold, surrogate, alpha)
    return s, reset(h, s, v_threshold, v_reset, detach_reset)


class EIF(Neuron):
    """Exponential integrate-and-fire neurons on [T, *neurons] inputs.

    Args:
        tau: membrane time constant in steps, >= 1.
        delta_T: sharpness of the run-away, > 0; towards 0 the neuron becomes a LIF.
        theta_rh: rheobase threshold, where the run-away begins.
        v_threshold: a neuron whose membrane is >= this fires.
        v_rest: where the membrane leaks to.
        v_reset: membrane after a spike and before the first step; None: soft reset, and 0 before the first step. A soft
            reset can leave the membrane in the run-away, where it overflows.
        detach_reset, surrogate, alpha, backend: as in `LIF`.
    """

    def __init__(
        self,
        tau: float | Tensor = 2.0,
        delta_T: float | Tensor = 1.0,
        theta_rh: float | Tensor = 0.8,
        v_threshold: float | Tensor = 1.0,
        v_rest: float | Tensor = 0.0,
        v_reset: float | Tensor | None = -0.1,
        *,
        detach_reset: bool = True,
        surrogate: str | Surrogate = "sigmoid",
        alpha: float | Tensor | None = 4.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            eif,
            backend=backend,
            tau=tau,
            delta_T=delta_T,
            theta_rh=theta_rh,
            v_threshold=v_threshold,
            v_rest=v_rest,
            v_reset=v_reset,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
