"""Surrogate derivatives of the Heaviside step, one formula each.

`u` is the distance to the threshold. `alpha` follows SpikingJelly's convention, where every derivative integrates
to 1 over the real line, so `alpha` sets the width alone:

| name | derivative | SpikingJelly | alpha |
| --- | --- | --- | --- |
| sigmoid | a s (1 - s), s = 1 / (1 + exp(-a u)) | Sigmoid | 4 |
| atan | (a / 2) / (1 + (pi a u / 2)^2) | ATan | 2 |
| triangle | max(0, a - a^2 abs(u)) | PiecewiseQuadratic | 1 |
| fast_sigmoid | a / (2 (1 + a abs(u))^2) | SoftSign | 2 |
| rectangle | a where abs(u) < 1 / (2 a), else 0 | Rect | 1 |
| gaussian | a / sqrt(pi) exp(-(a u)^2) | Erf | 2 |

snnTorch's `fast_sigmoid(slope=k)` is (2 / k) times ours at alpha = k; Norse's `superspike` likewise.
Source: Neftci, Mostafa, Zenke 2019 (doi:10.1109/MSP.2019.2931595) for the idea; Zenke & Ganguli 2018 for fast_sigmoid;
Fang et al. 2021 (PLIF) for atan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import lang
from spikeloom.kernels.tape import Surrogate


@dataclass(frozen=True)
class SurrogateEntry:
    """A named surrogate: its derivative and the default sharpness."""

    derivative: Surrogate
    alpha: float


def sigmoid_derivative(u: Any, alpha: Any) -> Any:
    """alpha s (1 - s) with s = sigmoid(alpha u)."""
    s = lang.sigmoid(alpha * u)
    return alpha * (s * (1.0 - s))


def atan_derivative(u: Any, alpha: Any) -> Any:
    """(alpha / 2) / (1 + (pi alpha u / 2)^2)."""
    scaled = (math.pi / 2) * alpha * u
    return (0.5 * alpha) / (1.0 + scaled * scaled)


def triangle_derivative(u: Any, alpha: Any) -> Any:
    """max(0, alpha - alpha^2 |u|)."""
    return lang.maximum(alpha - (alpha * alpha) * abs(u), 0.0)


def fast_sigmoid_derivative(u: Any, alpha: Any) -> Any:
    """alpha / (2 (1 + alpha |u|)^2)."""
    slope = 1.0 + alpha * abs(u)
    return alpha / (2.0 * (slope * slope))


def rectangle_derivative(u: Any, alpha: Any) -> Any:
    """alpha where |u| < 1 / (2 alpha), else 0."""
    return lang.where(abs(u) < 0.5 / alpha, alpha, 0.0)


def gaussian_derivative(u: Any, alpha: Any) -> Any:
    """alpha / sqrt(pi) exp(-(alpha u)^2)."""
    scaled = alpha * u
    return (alpha * (1.0 / math.sqrt(math.pi))) * lang.exp(-(scaled * scaled))


SURROGATES: dict[str, SurrogateEntry] = {
    "sigmoid": SurrogateEntry(sigmoid_derivative, 4.0),
    "atan": SurrogateEntry(atan_derivative, 2.0),
    "triangle": SurrogateEntry(triangle_derivative, 1.0),
    "fast_sigmoid": SurrogateEntry(fast_sigmoid_derivative, 2.0),
    "rectangle": SurrogateEntry(rectangle_derivative, 1.0),
    "gaussian": SurrogateEntry(gaussian_derivative, 2.0),
}
"""The named surrogates. A function `(u, alpha) -> derivative` may be given instead of a name anywhere."""


def spike(u: Any, surrogate: str | Surrogate = "sigmoid", alpha: Any = None) -> Any:
    """Heaviside step of `u` (1 where u >= 0, else 0) with a surrogate derivative.

    Args:
        u: distance to the threshold, usually `h - v_threshold`.
        surrogate: a name in `SURROGATES`, or a function `(u, alpha) -> derivative` written with loom operations.
        alpha: sharpness, passed to the surrogate and not differentiated; None takes the named surrogate's default.
    """
    rule, default = resolve_surrogate(surrogate)
    alpha = default if alpha is None else alpha
    recorded = lang.record("spike", u, alpha, surrogate=rule)
    return recorded if recorded is not None else _Spike.apply(u, alpha, rule)


def resolve_surrogate(surrogate: str | Surrogate) -> tuple[Surrogate, float]:
    """Derivative and default alpha of a surrogate given by name or as a function.

    Raises:
        ValueError: unknown name; the message gives the nearest and all known ones.
    """
    if callable(surrogate):
        return surrogate, 1.0
    if surrogate not in SURROGATES:
        near = get_close_matches(str(surrogate), SURROGATES, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"unknown surrogate {surrogate!r}{hint}; known: {', '.join(sorted(SURROGATES))}; or pass a "
            f"function (u, alpha) -> derivative"
        )
    entry = SURROGATES[surrogate]
    return entry.derivative, entry.alpha


class _Spike(torch.autograd.Function):
    """Heaviside with the derivative of a surrogate."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, alpha: Any, rule: Surrogate) -> Tensor:
        held = alpha.detach() if isinstance(alpha, Tensor) else u.new_tensor(alpha)
        ctx.save_for_backward(u, held)
        ctx.rule = rule
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        u, alpha = ctx.saved_tensors
        return grads[0] * ctx.rule(u, alpha), None, None
