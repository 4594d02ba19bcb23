"""The neuron of DIET-SNN: a leak and a threshold that are learned, one number each per layer, and a soft reset.

    h[t] = leak u[t-1] + x[t]
    z[t] = h[t] / v_threshold - 1
    s[t] = 1 if z[t] > 0 else 0                        (strict: a membrane at the threshold does not fire)
    u[t] = h[t] - v_threshold s[t]
    ds / dz = gamma max(0, 1 - |z|)

Nothing is detached over time, but the reset passes no gradient through s; the threshold inside it gets its own. The
leak multiplies the membrane behind the reset, so in the first step, and with T = 1 at all, its gradient is 0.

Paper: Rathi and Roy, "DIET-SNN: A Low-Latency Spiking Neural Network With Direct Input Encoding and Leakage and
Threshold Optimization", IEEE Transactions on Neural Networks and Learning Systems 2021, arXiv:2008.03658.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.kernels import detach, maximum, spike
from spikeloom.neurons.module import POSITIVE, Limit, Neuron, neuron

AT_MOST_ONE = Limit(lambda value: value <= 1, "<= 1 (above 1 a membrane grows without input)")


def tent(z: Any, gamma: Any) -> Any:
    """gamma max(0, 1 - |z|)."""
    return gamma * maximum(1.0 - abs(z), 0.0)


@neuron(state={"u": 0.0}, limits={"leak": AT_MOST_ONE, "v_threshold": POSITIVE, "gamma": POSITIVE})
def diet(x: Any, u: Any, *, leak: Any = 1.0, v_threshold: Any = 1.0, gamma: Any = 0.3) -> Any:
    """One time step: `(x, u) -> (s, u)`."""
    h = leak * u + x
    z = h / v_threshold - 1.0
    s = 1.0 - spike(0.0 - z, tent, gamma)  # 1 where z > 0; the tent is even, so the derivative in z is its value at z
    return s, h - v_threshold * detach(s)


class DIET(Neuron):
    """DIET-SNN neurons on [T, *neurons] inputs; the leak and the threshold are parameters of shape [].

    Args:
        leak: what is left of the membrane after a step, <= 1; 1 is no leak.
        v_threshold: a neuron whose membrane is above this fires, > 0.
        gamma: height of the surrogate derivative.
        backend: `auto`, `reference`, `cpu` or `cuda`.

    An optimiser knows nothing of these limits: call `clamp_` after each of its steps.
    """

    leak: nn.Parameter
    v_threshold: nn.Parameter

    def __init__(
        self, leak: float = 1.0, v_threshold: float = 1.0, *, gamma: float = 0.3, backend: str = "auto"
    ) -> None:
        super().__init__(
            diet,
            backend=backend,
            leak=nn.Parameter(_number(leak)),
            v_threshold=nn.Parameter(_number(v_threshold)),
            gamma=gamma,
        )

    @torch.no_grad()
    def clamp_(self, smallest: float = 1e-3) -> None:
        """Put the leak back to <= 1 and the threshold to >= `smallest`."""
        self.leak.clamp_(max=1.0)
        self.v_threshold.clamp_(min=smallest)


def _number(value: float) -> Tensor:
    return torch.tensor(float(value))
