"""Parametric LIF (PLIF): one learned time constant per layer, 1 / tau = sigmoid(w).

    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) sigmoid(w)     (decay_input)
    h[t] = v[t-1] - (v[t-1] - v_reset) sigmoid(w) + x[t]       (otherwise)

Firing and reset are those of LIF. Any `w` gives a tau > 1.

Paper: Fang, Yu, Chen, Masquelier, Huang, Tian 2021, "Incorporating Learnable Membrane Time Constant to Enhance Learning
of Spiking Neural Networks", arXiv:2007.05785. Initial value and state-dict key `w` as in SpikingJelly.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.kernels import sigmoid, spike
from spikeloom.kernels.tape import Surrogate
from spikeloom.neurons.dynamics import reset
from spikeloom.neurons.module import POSITIVE, Neuron, neuron


@neuron(state={"v": "v_reset"}, limits={"alpha": POSITIVE})
def plif(
    x: Any,
    v: Any,
    *,
    w: Any = 0.0,
    v_threshold: Any = 1.0,
    v_reset: Any = 0.0,
    decay_input: bool = True,
    detach_reset: bool = True,
    surrogate: str | Surrogate = "sigmoid",
    alpha: Any = 4.0,
) -> Any:
    """One time step: `(x, v) -> (s, v)`."""
    rate = sigmoid(w)
    above_rest = v if v_reset is None else v - v_reset
    h = v + (x - above_rest) * rate if decay_input else v - above_rest * rate + x
    s = spike(h - v_threshold, surrogate, alpha)
    return s, reset(h, s, v_threshold, v_reset, detach_reset)


class PLIF(Neuron):
    """LIF neurons with one learned time constant, on [T, *neurons] inputs.

    Args:
        init_tau: time constant before learning, in steps, > 1: w = -ln(init_tau - 1). A tensor gives several, for
            example [C, 1, 1] one per channel.
        v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, backend: as in `LIF`.

    Attributes:
        w: what is learned, of the shape of `init_tau`.
    """

    w: nn.Parameter

    def __init__(
        self,
        init_tau: float | Tensor = 2.0,
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
            plif,
            backend=backend,
            w=nn.Parameter(_start(init_tau)),
            v_threshold=v_threshold,
            v_reset=v_reset,
            decay_input=decay_input,
            detach_reset=detach_reset,
            surrogate=surrogate,
            alpha=alpha,
        )

    @property
    def tau(self) -> Tensor:
        """The time constant as it is now."""
        return 1.0 / torch.sigmoid(self.w)

    def extra_repr(self) -> str:
        known = self.w.numel() == 1 and not self.w.is_meta
        return (f"tau={self.tau.item():.4g}, " if known else "") + super().extra_repr()


def _start(tau: float | Tensor) -> Tensor:
    """The `w` of a time constant."""
    if not (tau > 1 if not isinstance(tau, Tensor) else tau.is_meta or bool((tau > 1).all())):
        raise ValueError(f"plif: init_tau must be > 1 time step, because tau = 1 + exp(-w); got {tau}")
    if isinstance(tau, Tensor):
        return 0.0 - torch.log(tau.detach() - 1.0)
    return torch.tensor(0.0 - math.log(tau - 1.0))
