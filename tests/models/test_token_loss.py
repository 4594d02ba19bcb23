"""Around a language model: the loss and its penalty, the distribution of the next token, the rate by tokens."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spikeloom.models import language_loss, next_token_probabilities
from spikeloom.training.token_schedule import rate_at_token


def test_the_penalty_is_a_gradient_alone() -> None:
    """That of half the mean square of the largest logits, not scaled by a factor on the loss."""
    logits = torch.randn(4, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.arange(8).view(4, 2) % 7
    loss = language_loss(logits, targets, 0.3)
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert torch.equal(loss, plain)
    extra = 0.15 * logits.amax(2).square().mean()
    (found,) = torch.autograd.grad(10 * loss, logits)
    (expected,) = torch.autograd.grad(10 * plain + extra, logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15)
    assert torch.equal(language_loss(logits, targets, 0.0), plain)
    for wrong in ((logits[0], targets[0]), (logits, targets.T), (logits, targets.double())):
        with pytest.raises(ValueError, match=r"expected logits \[T, B, V\] and token ids \[T, B\]"):
            language_loss(*wrong)


def test_the_penalty_has_a_second_derivative() -> None:
    logits = torch.randn(4, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.arange(8).view(4, 2) % 7
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    found = []
    for loss in (language_loss(logits, targets, 0.3), plain + 0.15 * logits.amax(2).square().mean()):
        (slope,) = torch.autograd.grad(loss, logits, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), logits)[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-15)


def test_sampling_keeps_what_it_should() -> None:
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).log()
    for top_p, kept in ((0.0, 1), (0.49, 1), (0.6, 3), (0.89, 3), (0.95, 4), (1.0, 4), (2.0, 4)):
        assert int((next_token_probabilities(logits, top_p) > 0).sum()) == kept, top_p
    cold = next_token_probabilities(torch.tensor([[0.0, -1.0], [3.0, 3.0]]), 1.0, 1e-3)
    torch.testing.assert_close(cold, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    hot = next_token_probabilities(logits, 0.6, 2.0)
    root = torch.tensor([0.5, 0.2, 0.2]).sqrt()
    torch.testing.assert_close(hot[:3], root / root.sum())
    for wrong in ({"temperature": 0.0}, {"top_p": -0.1}, {"top_p": math.nan}):
        with pytest.raises(ValueError, match="expected temperature > 0 and top_p >= 0"):
            next_token_probabilities(logits, **wrong)
    with pytest.raises(ValueError, match="NaN"):
        next_token_probabilities(torch.tensor([0.0, math.nan]))


def test_the_rate_follows_the_tokens() -> None:
    rate = [rate_at_token(n, 1.0, 0.1, 10, 110) for n in (0, 5, 10, 60, 110, 500)]
    assert rate == pytest.approx([0.1, 0.55, 1.0, 0.55, 0.1, 0.1])
    with pytest.raises(ValueError, match="expected 0 < lowest <= lr"):
        rate_at_token(0, 1e-5, 1e-4, 0, 10)
