"""Losses on the logits of every time step, `[T, B, K]`, and labels `[B]`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from spikeloom.training.recipe import Loss


def rate_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the mean over time: L = CE(1/T sum_t o[t], y)."""
    return F.cross_entropy(logits.mean(0), labels, label_smoothing=label_smoothing)


def tet_loss(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, lam: float = 0.05, mean: float = 1.0
) -> Tensor:
    """Temporal efficient training: L = (1 - lam) 1/T sum_t CE(o[t], y) + lam 1/T sum_t MSE(o[t], mean).

    Deng, Li, Zhang, Gu 2022, "Temporal Efficient Training of Spiking Neural Network via Gradient Re-weighting",
    arXiv:2202.11946, section 4 (L_TET, L_MSE and L_TOTAL).
    """
    T = logits.shape[0]
    each_step = F.cross_entropy(logits.flatten(0, 1), labels.repeat(T), label_smoothing=label_smoothing)
    return (1 - lam) * each_step + lam * (logits - mean).square().mean()


def make_loss(config: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss `(logits [T, B, K], labels [B]) -> scalar` of a recipe, computed in float32."""
    if config.name == "rate":
        return lambda logits, labels: rate_loss(logits.float(), labels, config.label_smoothing)
    return lambda logits, labels: tet_loss(
        logits.float(), labels, config.label_smoothing, config.tet_lambda, config.tet_mean
    )
