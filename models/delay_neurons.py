"""Neurons that only the delay networks use: a step without membrane, a parametric integrator, the synapse filter.

    Heaviside        s[t] = 1 if x[t] >= v_threshold else 0
    PLI              v[t] = v[t-1] - v[t-1] sigmoid(w) + x[t]
    SynapseFilter    o[t] = o[t-1] - (1 - s[t]) o[t-1] / tau + s[t];  learned: 1 / tau = sigmoid(w)

Starting value of both w: -ln(tau - 1). Source: the options of the code of arXiv:2306.17670.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from spikeloom.kernels import sigmoid, spike
from spikeloom.kernels.tape import Surrogate
from spikeloom.neurons import AT_LEAST_ONE, POSITIVE, Neuron, neuron


@neuron(limits={"alpha": POSITIVE})
def heaviside(x: Any, *, v_threshold: Any = 1.0, surrogate: str | Surrogate = "atan", alpha: Any = 5.0) -> Any:
    """One time step: `x -> s`."""
    return spike(x - v_threshold, surrogate, alpha)


@neuron(state={"v": 0.0})
def pli(x: Any, v: Any, *, w: Any = 0.0) -> Any:
    """One time step: `(x, v) -> (v, v)`."""
    v = v - v * sigmoid(w) + x
    return v, v


@neuron(state={"o": 0.0}, limits={"tau": AT_LEAST_ONE})
def synapse_filter(s: Any, o: Any, *, tau: Any = 2.0) -> Any:
    """One time step: `(s, o) -> (o, o)`."""
    o = o - (1.0 - s) * o / tau + s
    return o, o


@neuron(state={"o": 0.0})
def learned_synapse_filter(s: Any, o: Any, *, w: Any = 0.0) -> Any:
    """One time step: `(s, o) -> (o, o)`."""
    o = o - (1.0 - s) * o * sigmoid(w) + s
    return o, o


class Heaviside(Neuron):
    """Spikes without a membrane, on `[T, *neurons]`."""

    def __init__(self, v_threshold: float = 1.0, *, alpha: float = 5.0) -> None:
        super().__init__(heaviside, v_threshold=v_threshold, alpha=alpha)


class PLI(Neuron):
    """Leaky integrators with one learned time constant, on `[T, *neurons]`; `init_tau` in steps, > 1."""

    def __init__(self, init_tau: float) -> None:
        super().__init__(pli, w=learned_tau(init_tau))


class SynapseFilter(Neuron):
    """Low-pass of spikes that a spike adds 1 to, on `[T, *neurons]`; `tau` in steps, >= 1, > 1 if learned."""

    def __init__(self, tau: float, learned: bool = False) -> None:
        if learned:
            super().__init__(learned_synapse_filter, w=learned_tau(tau))
        else:
            super().__init__(synapse_filter, tau=tau)


def learned_tau(tau: float) -> nn.Parameter:
    """The w of a time constant 1 / sigmoid(w).

    Raises:
        ValueError: tau is not above 1 step.
    """
    if not tau > 1:
        raise ValueError(f"A learned time constant starts at {tau} steps; expected > 1, as tau = 1 + exp(-w).")
    return nn.Parameter(torch.tensor(-math.log(tau - 1.0)))
