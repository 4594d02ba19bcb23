"""How sure a spiking classifier is after each time step, and how well that matches how often it is right.

    U[t] = sum of the logits of steps 1..t, over alpha
    c[t] = max softmax(U[t])            ("max_softmax"; "entropy": 1 - H / log K; "margin": largest minus second)
    exit: the first t with c[t] > threshold (strict), else T

alpha, the confidence smoothing, makes c[t] a calibrated probability; alpha = T is the mean of T steps. Everything is
computed in double precision. Steps are counted from 1.

Paper: C. Li, E. Jones, S. Furber, "Unleashing the Potential of Spiking Neural Networks with Dynamic Confidence", ICCV
2023, arXiv:2303.10276. The entropy rule: Y. Li et al., "SEENN: Towards Temporal Spiking Early-Exit Neural Networks",
NeurIPS 2023. `spikeloom.energy.early_exit` divides by t instead of by alpha and exits at c[t] >= threshold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spikeloom.energy.exits import RULES

BINS = 10


def smoothed(logits: Tensor, alpha: float) -> Tensor:
    """U: `[T, N, K]` logits of every step -> their running sum over alpha, float64.

    Raises:
        ValueError: another shape, fewer than two classes, values that are not finite, alpha not > 0.
    """
    if logits.ndim != 3 or logits.shape[2] < 2 or not logits.numel():
        raise ValueError(f"logits of shape {list(logits.shape)}; expected [T, N, K] with two or more classes K")
    if not torch.isfinite(logits).all():
        raise ValueError("logits hold NaN or infinity; there is no confidence in those")
    check_alpha(alpha)
    return logits.detach().double().cumsum(0) / alpha


def check_alpha(alpha: float) -> None:
    """Raise unless alpha is a number > 0."""
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha!r}; expected a number > 0 (T, the number of steps, is a good start)")


def check_rule(rule: str) -> None:
    """Raise unless the rule of confidence is known."""
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}; expected one of {', '.join(RULES)}")


def confidence_of(smooth: Tensor, rule: str = "max_softmax") -> Tensor:
    """Confidence in smoothed logits: `[..., K]` -> `[...]`."""
    check_rule(rule)
    if rule == "max_softmax":
        return smooth.softmax(-1).amax(-1)
    if rule == "entropy":
        log_p = smooth.log_softmax(-1)
        return 1 + (log_p.exp() * log_p).sum(-1) / math.log(smooth.shape[-1])
    best = smooth.softmax(-1).topk(2, dim=-1).values
    return best[..., 0] - best[..., 1]


def confidences(logits: Tensor, alpha: float, rule: str = "max_softmax") -> Tensor:
    """c: confidence after each step, `[T, N, K]` -> `[T, N]`. Raises as `smoothed`."""
    return confidence_of(smoothed(logits, alpha), rule)


def predictions(logits: Tensor) -> Tensor:
    """The class after each step, `[T, N, K]` -> int64 `[T, N]`: that of the largest sum so far."""
    return smoothed(logits, 1.0).argmax(-1)


def exit_steps(certain: Tensor, threshold: float) -> Tensor:
    """The step at which each sample stops: confidences `[T, N]` -> int64 `[N]`, between 1 and T."""
    reached = certain > threshold
    reached[-1] = True
    return reached.long().argmax(0) + 1


def at_exit(values: Tensor, steps: Tensor) -> Tensor:
    """What holds at each sample's exit: `[T, N, ...]` and steps `[N]` -> `[N, ...]`."""
    return values[steps - 1, torch.arange(len(steps), device=steps.device)]


def calibration_error(certain: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Expected calibration error (ECE): sum over bins of n/N |accuracy - mean confidence|.

    Bin k of `bins` holds the confidences in ((k-1)/bins, k/bins].

    Args:
        certain: confidences `[N]` between 0 and 1. right: bool `[N]`.
    """
    edges = torch.arange(1, bins, dtype=torch.float64, device=certain.device) / bins
    index = torch.bucketize(certain.double(), edges)
    gap = torch.zeros(bins, dtype=torch.float64, device=certain.device)
    gap.index_add_(0, index, right.double() - certain.double())
    return float(gap.abs().sum() / len(certain))


def oracle_steps(right: Tensor) -> Tensor:
    """The first step at which each sample is right, T where it never is: bool `[T, N]` -> int64 `[N]`."""
    first: Tensor = right.long().argmax(0) + 1
    return torch.where(right.any(0), first, len(right))
