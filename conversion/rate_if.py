"""The converted neuron: integrate and fire, reset by subtraction, with a membrane that may start above or below 0.

    h[t] = v[t-1] + x[t] + shift          v[0] = v_init
    s[t] = 1 if h[t] >= v_threshold else 0
    v[t] = h[t] - s[t] v_threshold

Charge is conserved: v_threshold sum_t s[t] = sum_t (x[t] + shift) + v_init - v[T], exactly. For a constant x the number
of spikes is clip(floor((T x + v_init) / v_threshold), 0, T), and with v_init = v_threshold / 2 the mean output is the
QCFS activation with L = T.

Paper: Rueckauer et al. 2017, "Conversion of Continuous-Valued Deep Networks to Efficient Event-Driven Networks for
Image Classification", section 2.2; the membrane's start: Bu et al., ICLR 2022.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.kernels import spike
from spikeloom.neurons.dynamics import reset
from spikeloom.neurons.module import POSITIVE, Neuron, neuron


@neuron(state={"v": "v_init"}, limits={"v_threshold": POSITIVE})
def if_(x: Any, v: Any, *, v_threshold: Any = 1.0, v_init: Any = 0.0, shift: Any = 0.0) -> Any:
    """One time step: `(x, v) -> (s, v)`."""
    h = v + (x + shift)
    s = spike(h - v_threshold, "sigmoid", 4.0)
    return s, reset(h, s, v_threshold, None, True)


class RateIF(Neuron):
    """The converted neuron on `[T, B, ...]` currents; spikes are 0 or 1.

    Args:
        v_threshold: a number, or a tensor that broadcasts against `[B, ...]`, such as `[C, 1, 1]`; > 0.
        v_init: membrane before the first step.
        shift: current that is added in every step.
    """

    def __init__(
        self,
        v_threshold: float | Tensor,
        v_init: float | Tensor = 0.0,
        shift: float | Tensor = 0.0,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(if_, backend=backend, v_threshold=v_threshold, v_init=v_init, shift=shift)
