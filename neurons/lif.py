"""Leaky integrate-and-fire (LIF).

    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau          (decay_input)
    h[t] = v[t-1] - (v[t-1] - v_reset) / tau + x[t]            (otherwise)
    s[t] = 1 if h[t] >= v_threshold else 0
    v[t] = v_reset where s[t], else h[t]                       (soft reset: h[t] - s[t] v_threshold)

Paper: Lapicque 1907; Gerstner, Kistler, Naud, Paninski 2014, "Neuronal Dynamics", chapter 1.3 (forward Euler,
step 1). Surrogate gradient: Neftci, Mostafa, Zenke 2019, doi:10.1109/MSP.2019.2931595.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.kernels import spike
from spikeloom.kernels.tape import Surrogate
from spikeloom.neurons.dynamics import charge, reset
from spikeloom.neurons.module import AT_LEAST_ONE, POSITIVE, Neuron, neuron


@neuron(state={"v": "v_reset"}, limits={"tau": AT_LEAST_ONE, "alpha": POSITIVE})
def lif(
    x: Any,
    v: Any,
    *,
    tau: Any = 2.0,
    v_threshold: Any = 1.0,
    v_reset: Any = 0.0,
    decay_input: bool = True,
    detach_reset: bool = True,
    surrogate: str | Surrogate = "sigmoid",
    alpha: Any = 4.0,
) -> Any:
    """One time step: `(x, v) -> (s, v)`."""
    h = charge(x, v, tau, v_reset, decay_input)
    s = spike(h - v_threshold, surrogate, alpha)
    return s, reset(h, s, v_threshold, v_reset, detach_reset)


class LIF(Neuron):
    """Leaky integrate-and-fire neurons on [T, *neurons] inputs.

    Args:
        tau: membrane time constant in steps, >= 1; an `nn.Parameter` is learned.
        v_threshold: a neuron whose membrane is >= this fires.
        v_reset: membrane at rest, after a spike and before the first step; None is a soft reset: rest at 0, and
            `v_threshold` is subtracted after a spike.
        decay_input: divide the input by `tau` too.
        detach_reset: no gradient through the reset.
        surrogate: name in `SURROGATES`, or a function `(u, alpha) -> derivative`.
        alpha: sharpness of the surrogate; None takes the surrogate's own default.
        backend: `auto`, `reference`, `cpu` or `cuda`.
    """

    def __init__(
        self,
        tau: float | Tensor = 2.0,
        v_threshold: float | Tensor = 1.0,
        v_reset: float | Tensor | None = 0.0,
        *,
        decay_input: bool = True,
        detach_reset: bool = True,
        surrogate: str | Surrogate = "sigmoid",
        alpha: float | Tensor | None = 4.0,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            lif,
            backend=backend,
            tau=tau,
            v_threshold=v_threshold,
            v_reset=v_reset,
            decay_input=decay_input,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
