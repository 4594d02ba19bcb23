"""The losses against their formulas."""

import math
from typing import Literal

import pytest
import torch

from spikeloom.training import Loss, rate_loss, tet_loss
from spikeloom.training.losses import hard, make_loss

LOGITS = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [0.0, 0.0]]])  # [T = 2, B = 2, K = 2]
LABELS = torch.tensor([0, 1])


def ce(right: float, wrong: float, smoothing: float = 0.0) -> float:
    """Cross entropy of two logits, by hand."""
    total = math.log(math.exp(right) + math.exp(wrong))
    return (1 - smoothing / 2) * (total - right) + smoothing / 2 * (total - wrong)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rate_loss_is_the_cross_entropy_of_the_mean(smoothing: float) -> None:
    expected = (ce(2.0, 0.0, smoothing) + ce(1.0, 0.0, smoothing)) / 2
    assert rate_loss(LOGITS, LABELS, smoothing).item() == pytest.approx(expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_tet_loss_is_the_mean_of_every_steps_cross_entropy_and_the_regulariser(smoothing: float) -> None:
    steps = [ce(1.0, 0.0, smoothing), ce(2.0, 0.0, smoothing), ce(3.0, 0.0, smoothing), ce(0.0, 0.0, smoothing)]
    squares = [(value - 0.5) ** 2 for value in LOGITS.flatten().tolist()]
    expected = 0.9 * sum(steps) / 4 + 0.1 * sum(squares) / 8
    assert tet_loss(LOGITS, LABELS, smoothing, lam=0.1, mean=0.5).item() == pytest.approx(expected)


def test_one_step_without_regulariser_makes_them_equal() -> None:
    assert tet_loss(LOGITS[:1], LABELS, lam=0.0).item() == pytest.approx(rate_loss(LOGITS[:1], LABELS).item())


@pytest.mark.parametrize("name", ["rate", "tet"])
def test_shares_of_one_class_are_labels_and_mixing_is_linear(name: Literal["rate", "tet"]) -> None:
    loss = make_loss(Loss(name, label_smoothing=0.1))
    first, second = torch.eye(2)[LABELS], torch.eye(2)[1 - LABELS]
    torch.testing.assert_close(loss(LOGITS, first), loss(LOGITS, LABELS))
    mixed = loss(LOGITS, 0.3 * first + 0.7 * second)
    torch.testing.assert_close(mixed, 0.3 * loss(LOGITS, LABELS) + 0.7 * loss(LOGITS, 1 - LABELS))


def test_the_class_of_shares_is_the_largest() -> None:
    assert hard(torch.tensor([[0.3, 0.7], [0.9, 0.1]])).tolist() == [1, 0]
    assert hard(LABELS) is LABELS


def test_make_loss_follows_the_recipe_and_computes_in_float32() -> None:
    half = LOGITS.bfloat16()
    rate = make_loss(Loss("rate", label_smoothing=0.1))(half, LABELS)
    assert rate.dtype == torch.float32
    assert torch.equal(rate, rate_loss(LOGITS, LABELS, 0.1))
    tet = make_loss(Loss("tet", tet_lambda=0.2, tet_mean=0.0))(half, LABELS)
    assert torch.equal(tet, tet_loss(LOGITS, LABELS, 0.0, 0.2, 0.0))
