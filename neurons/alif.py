"""Adaptive LIF (ALIF): every spike raises the threshold, which falls back slowly.

    h[t] = the charge of LIF
    s[t] = 1 if h[t] >= v_threshold + beta a[t-1] else 0
    a[t] = a[t-1] - a[t-1] / tau_a + s[t]
    v[t] = v_reset where s[t], else h[t]                       (soft reset: h[t] - s[t] v_threshold)

`detach_reset` concerns the membrane alone: gradient through the adaptation is what long memory is learned by.

Paper: Bellec, Salaj, Subramoney, Legenstein, Maass 2018, "Long short-term memory and learning-to-learn in networks of
spiking neurons" (LSNN), arXiv:1803.09574; in the form of Bellec et al. 2020, doi:10.1038/s41467-020-17236-y,
Methods, with 1 - 1 / tau_a for exp(-1 / tau_a).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.kernels import spike
from spikeloom.kernels.tape import Surrogate
from spikeloom.neurons.dynamics import charge, reset
from spikeloom.neurons.module import AT_LEAST_ONE, POSITIVE, Neuron, neuron


@neuron(state={"v": "v_reset", "a": 0.0}, limits={"tau": AT_LEAST_ONE, "tau_a": AT_LEAST_ONE, "alpha": POSITIVE})
def alif(
    x: Any,
    v: Any,
    a: Any,
    *,
    tau: Any = 2.0,
    tau_a: Any = 100.0,
    beta: Any = 0.2,
    v_threshold: Any = 1.0,
    v_reset: Any = 0.0,
    decay_input: bool = True,
    detach_reset: bool = True,
    surrogate: str | Surrogate = "sigmoid",
    alpha: Any = 4.0,
) -> Any:
    """One time step: `(x, v, a) -> (s, v, a)`."""
    h = charge(x, v, tau, v_reset, decay_input)
    s = spike(h - (v_threshold + beta * a), surrogate, alpha)
    a = charge(s, a, tau_a, None, decay_input=False)
    return s, reset(h, s, v_threshold, v_reset, detach_reset), a


class ALIF(Neuron):
    """LIF neurons with an adaptive threshold, on [T, *neurons] inputs.

    Args:
        tau: membrane time constant in steps, >= 1.
        tau_a: time constant of the adaptation in steps, >= 1; about as long as what is to be remembered.
        beta: how much one spike raises the threshold.
        v_threshold: threshold of a neuron that has not fired lately.
        v_reset, decay_input, detach_reset, surrogate, alpha, backend: as in `LIF`.
    """

    def __init__(
        self,
        tau: float | Tensor = 2.0,
        tau_a: float | Tensor = 100.0,
        beta: float | Tensor = 0.2,
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
            alif,
            backend=backend,
            tau=tau,
            tau_a=tau_a,
            beta=beta,
            v_threshold=v_threshold,
            v_reset=v_reset,
            decay_input=decay_input,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
