"""Leaky integrator (LI): a membrane that never fires; its potential is the output. For read-outs.

    v[t] = v[t-1] + (x[t] - v[t-1]) / tau                      (decay_input)
    v[t] = v[t-1] - v[t-1] / tau + x[t]                        (otherwise)

Paper: Gerstner, Kistler, Naud, Paninski 2014, "Neuronal Dynamics", chapter 1.3.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.neurons.dynamics import charge
from spikeloom.neurons.module import AT_LEAST_ONE, Neuron, neuron


@neuron(state={"v": 0.0}, limits={"tau": AT_LEAST_ONE})
def li(x: Any, v: Any, *, tau: Any = 2.0, decay_input: bool = True) -> Any:
    """One time step: `(x, v) -> (v, v)`."""
    v = charge(x, v, tau, None, decay_input)
    return v, v


class LI(Neuron):
    """Leaky integrators on [T, *neurons] inputs; the output is the membrane at every step.

    Args:
        tau: membrane time constant in steps, >= 1; infinite with `decay_input=False` sums the input.
        decay_input: divide the input by `tau` too.
        backend: `auto`, `reference`, `cpu` or `cuda`.
    """

    def __init__(self, tau: float | Tensor = 2.0, *, decay_input: bool = True, backend: str = "auto") -> None:
        super().__init__(li, backend=backend, tau=tau, decay_input=decay_input)
