"""Current-based LIF (CubaLIF): a synaptic current that decays on its own charges the membrane.

    i[t] = i[t-1] - i[t-1] / tau_syn + x[t]
    h[t] = v[t-1] + (i[t] - (v[t-1] - v_reset)) / tau          (decay_input)
    h[t] = v[t-1] - (v[t-1] - v_reset) / tau + i[t]            (otherwise)

Firing and reset are those of LIF; the current is not reset.

Paper: Gerstner, Kistler, Naud, Paninski 2014, "Neuronal Dynamics", chapter 1.3 with an exponential synapse; `CubaLIF`
of Pedersen et al. 2024, "Neuromorphic intermediate representation", doi:10.1038/s41467-024-52259-9.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.kernels import spike
from spikeloom.kernels.tape import Surrogate
from spikeloom.neurons.dynamics import charge, reset
from spikeloom.neurons.module import AT_LEAST_ONE, POSITIVE, Neuron, neuron


@neuron(state={"i": 0.0, "v": "v_reset"}, limits={"tau": AT_LEAST_ONE, "tau_syn": AT_LEAST_ONE, "alpha": POSITIVE})
def cuba_lif(
    x: Any,
    i: Any,
    v: Any,
    *,
    tau: Any = 2.0,
    tau_syn: Any = 2.0,
    v_threshold: Any = 1.0,
    v_reset: Any = 0.0,
    decay_input: bool = True,
    detach_reset: bool = True,
    surrogate: str | Surrogate = "sigmoid",
    alpha: Any = 4.0,
) -> Any:
    """One time step: `(x, i, v) -> (s, i, v)`."""
    i = charge(x, i, tau_syn, None, decay_input=False)
    h = charge(i, v, tau, v_reset, decay_input)
    s = spike(h - v_threshold, surrogate, alpha)
    return s, i, reset(h, s, v_threshold, v_reset, detach_reset)


class CubaLIF(Neuron):
    """Current-based LIF neurons on [T, *neurons] inputs.

    Args:
        tau: membrane time constant in steps, >= 1.
        tau_syn: time constant of the synaptic current in steps, >= 1; 1 makes the neuron a LIF.
        v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, backend: as in `LIF`.
    """

    def __init__(
        self,
        tau: float | Tensor = 2.0,
        tau_syn: float | Tensor = 2.0,
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
            cuba_lif,
            backend=backend,
            tau=tau,
            tau_syn=tau_syn,
            v_threshold=v_threshold,
            v_reset=v_reset,
            decay_input=decay_input,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )
