"""Losses on the logits of every time step, `[T, B, K]`, and targets: labels `[B]`, or shares of the classes `[B, K]`.

Shares are what mixed samples have. Label smoothing is applied to either, so that mixing smoothed labels and smoothing
mixed ones are the same. Networks with delays have read-outs of their own (models/delay_readout.py), which make a score
per class of all steps, for the loss and the decision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from torch import Tensor
from torch.nn import functional as F

from spikeloom.models.delay_readout import Readout, delay_loss, read_out
from spikeloom.training.recipe import Loss

READOUTS = get_args(Readout)
"""Losses that are read-outs of networks with delays."""


def rate_loss(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the mean over time: L = CE(1/T sum_t o[t], y)."""
    return F.cross_entropy(logits.mean(0), targets, label_smoothing=label_smoothing)


def tet_loss(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, lam: float = 0.05, mean: float = 1.0
) -> Tensor:
    """Temporal efficient training: L = (1 - lam) 1/T sum_t CE(o[t], y) + lam 1/T sum_t MSE(o[t], mean).

    Deng, Li, Zhang, Gu 2022, "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting",
    arXiv:2202.11946, section 4 (L_TET, L_MSE and L_TOTAL).
    """
    repeated = targets.expand(logits.shape[0], *targets.shape).flatten(0, 1)  # [T B] or [T B, K]
    each_step = F.cross_entropy(logits.flatten(0, 1), repeated, label_smoothing=label_smoothing)
    return (1 - lam) * each_step + lam * (logits - mean).square().mean()


def hard(targets: Tensor) -> Tensor:
    """Labels `[B]` as they are, shares `[B, K]` as the class with the largest one."""
    return targets if targets.ndim == 1 else targets.argmax(1)


def make_loss(config: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss `(logits [T, B, K], targets [B] or [B, K]) -> scalar` of a recipe, computed in float32."""
    if config.name == "rate":
        return lambda logits, targets: rate_loss(logits.float(), targets, config.label_smoothing)
    if config.name in READOUTS:
        return lambda logits, targets: delay_loss(
            logits.float(), smooth(targets, logits.shape[2], config.label_smoothing), config.name
        )
    return lambda logits, targets: tet_loss(
        logits.float(), targets, config.label_smoothing, config.tet_lambda, config.tet_mean
    )


def smooth(targets: Tensor, classes: int, label_smoothing: float) -> Tensor:
    """Labels `[B]` or shares `[B, K]`, as shares of which so much is spread over all classes; 0: as they are."""
    if label_smoothing == 0:
        return targets
    shares = targets if targets.ndim == 2 else F.one_hot(targets, classes).float()
    return (1 - label_smoothing) * shares + label_smoothing / classes


def decide(logits: Tensor, loss: str = "rate") -> Tensor:
    """The class `[B]` of outputs `[T, B, K]`: the largest mean over time, or by the read-out that the loss is of."""
    scores = read_out(logits.float(), loss) if loss in READOUTS else logits.float().mean(0)
    return scores.argmax(1)
