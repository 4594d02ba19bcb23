"""Quadratic integrate-and-fire (QIF): above `v_c` the membrane runs away quadratically.

    h[t] = v[t-1] + (x[t] + a0 (v[t-1] - v_rest) (v[t-1] - v_c)) / tau

Firing and reset are those of LIF.

Paper: Latham, Richmond, Nelson, Nirenberg 2000, doi:10.1152/jn.2000.83.2.808; Gerstner et al. 2014, "Neuronal
Dynamics", chapter 5.3. Default values and order of operations as in SpikingJelly's QIFNode.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.kernels import spike
from spikeloom.kernels.tape import Surrogate
from spikeloom.neurons.dynamics import reset
from spikeloom.neurons.module import AT_LEAST_ONE, POSITIVE, Neuron, neuron


@neuron(state={"v": "v_reset"}, limits={"tau": AT_LEAST_ONE, "a0": POSITIVE, "alpha": POSITIVE})
def qif(
    x: Any,
    v: Any,
    *,
    tau: Any = 2.0,
    v_c: Any = 0.8,
    a0: Any = 1.0,
    v_threshold: Any = 1.0,
    v_rest: Any = 0.0,
    v_reset: Any = -0.1,
    detach_reset: bool = True,
    surrogate: str | Surrogate = "sigmoid",
    alpha: Any = 4.0,
) -> Any:
    """One time step: `(x, v) -> (s, v)`."""
    h = v + (x + a0 * (v - v_rest) * (v - v_c)) / tau
    s = spike(h - v_threshold, surrogate, alpha)
    return s, reset(h, s, v_threshold, v_reset, detach_reset)


class QIF(Neuron):
    """Quadratic integrate-and-fire neurons on [T, *neurons] inputs.

    Args:
        tau: membrane time constant in steps, >= 1.
        v_c: critical membrane: below it the membrane leaks to `v_rest`, above it runs away.
        a0: strength of the run-away, > 0.
        v_threshold: a neuron whose membrane is >= this fires.
        v_rest: where the membrane leaks to.
        v_reset: membrane after a spike and before the first step; None: soft reset, and 0 before the first step. A soft
            reset can leave the membrane in the run-away, where it overflows.
        detach_reset, surrogate, alpha, backend: as in `LIF`.
    """

    def __init__(
        self,
        tau: float | Tensor = 2.0,
        v_c: float | Tensor = 0.8,
        a0: float | Tensor = 1.0,
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
            qif,
            backend=backend,
            tau=tau,
            v_c=v_c,
            a0=a0,
            v_threshold=v_threshold,
            v_rest=v_rest,
            v_reset=v_reset,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
