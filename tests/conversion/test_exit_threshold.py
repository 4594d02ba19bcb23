"""Confidence, calibration error and the choice of the threshold, against hand calculation and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from spikeloom.conversion.confidence import (
    at_exit,
    calibration_error,
    confidences,
    exit_steps,
    oracle_steps,
    predictions,
    smoothed,
)
from spikeloom.conversion.pareto import all_candidates, choose_threshold, pareto_front, sweep_thresholds
from spikeloom.conversion.smoothing import alpha_grid, chosen_alpha
from spikeloom.energy import early_exit
from spikeloom.energy.exits import confidences as mean_confidences


def random_case(seed: int, T: int = 5, N: int = 30, K: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(T, N, K, generator=generator), torch.randint(K, (N,), generator=generator)


def test_confidence_by_hand() -> None:
    logits = torch.tensor([[[2.0, 0.0]], [[0.0, 6.0]]])
    assert predictions(logits).tolist() == [[0], [1]]
    assert confidences(logits, 2.0)[:, 0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))])
    p = torch.tensor([[1.0, 0.0], [1.0, 3.0]]).softmax(-1)
    entropy = 1 + (p * p.log()).sum(-1) / math.log(2)
    torch.testing.assert_close(confidences(logits, 2.0, "entropy")[:, 0], entropy.double(), rtol=0, atol=1e-6)
    assert confidences(logits, 2.0, "margin")[:, 0].tolist() == pytest.approx((p.amax(1) - p.amin(1)).tolist())


def test_the_exit_is_strict_and_counted_from_one() -> None:
    certain = torch.tensor([[0.5, 0.4, 0.1], [0.6, 0.9, 0.2], [0.7, 0.2, 0.3]], dtype=torch.float64)
    assert exit_steps(certain, 0.5).tolist() == [2, 2, 3]
    assert exit_steps(certain, 0.45).tolist() == [1, 2, 3]
    assert at_exit(certain, exit_steps(certain, 0.5)).tolist() == [0.6, 0.9, 0.3]


def test_calibration_error_bins_are_open_below() -> None:
    certain = torch.tensor([0.1, 0.1000001, 0.95, 1.0], dtype=torch.float64)
    right = torch.tensor([True, False, True, True])
    assert calibration_error(certain, right) == pytest.approx((0.9 + 0.1000001 + 0.05) / 4)
    for k in range(1, 10):  # the right edge belongs to the bin
        edge = torch.tensor([k / 10, k / 10 - 0.05], dtype=torch.float64)
        both = calibration_error(edge, torch.tensor([True, False]))
        assert both == pytest.approx(abs(1 - k / 10 - (k / 10 - 0.05)) / 2)


def test_the_oracle_waits_for_the_first_right_answer() -> None:
    right = torch.tensor([[False, True, False], [True, False, False], [True, False, False]])
    assert oracle_steps(right).tolist() == [2, 1, 3]


def test_energy_exits_agree_where_alpha_grows_with_the_step() -> None:
    """spikeloom.energy divides by t: equal to alpha = t at each step."""
    logits, _ = random_case(0)
    theirs = torch.from_numpy(mean_confidences(logits))
    for t in range(5):
        torch.testing.assert_close(confidences(logits, t + 1.0)[t], theirs[t], rtol=0, atol=1e-12)
    assert early_exit(logits, 0.9).max() <= 5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("coarse", [False, True])
def test_all_candidates_are_those_of_brute_force(seed: int, coarse: bool) -> None:
    logits, labels = random_case(seed)
    certain = confidences(logits, 2.0)
    if coarse:  # many equal confidences
        certain = (certain * 8).round() / 8
    right = predictions(logits) == labels
    found = all_candidates(certain, right)
    expected = sweep_thresholds(certain, right, certain.unique().tolist())
    assert [found.point(i) for i in range(len(expected))] == expected
    front = pareto_front(found)
    for point in expected:  # nothing beats the front, and each point of it is the smallest of its kind
        assert any(p.mean_steps <= point.mean_steps and p.correct >= point.correct for p in front)
    for p in front:
        same = [e.threshold for e in expected if (e.mean_steps, e.correct) == (p.mean_steps, p.correct)]
        assert p.threshold == min(same)
    for tolerance in (0.0, 0.05, 0.2):
        allowed = int(right[-1].sum()) - math.floor(tolerance * 30 + 1e-9)
        best = min((e.mean_steps, e.threshold) for e in expected if e.correct >= allowed)
        chosen = choose_threshold(front, int(right[-1].sum()), tolerance)
        assert chosen.mean_steps == best[0]
        assert chosen.correct >= allowed


def test_the_largest_candidate_never_exits() -> None:
    logits, labels = random_case(3)
    certain, right = confidences(logits, 1.0), predictions(logits) == labels
    last = all_candidates(certain, right).point(-1)
    assert (last.mean_steps, last.correct) == (5.0, int(right[-1].sum()))


def test_alpha_has_the_least_error_of_its_grid() -> None:
    logits, labels = random_case(1, N=200)
    logits[torch.arange(5)[:, None], torch.arange(200), labels] += 0.7
    T = len(logits)
    right = predictions(logits)[-1] == labels
    errors = {a: calibration_error(confidences(logits, a)[-1], right) for a in alpha_grid(T)}
    assert errors[chosen_alpha("ece", logits, labels)] == min(errors.values())
    assert min(errors.values()) < errors[min(errors)]
    assert chosen_alpha("T", logits, labels) == T
    assert chosen_alpha(7, logits, labels) == 7.0
    assert chosen_alpha("ece", logits, predictions(logits)[-1]) == T  # all right: nothing to learn


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"alpha": "2"}, "alpha"),
        ({"logits": torch.zeros(2, 3)}, r"\[T, N, K\]"),
        ({"logits": torch.zeros(2, 3, 1)}, "two or more classes"),
        ({"logits": torch.full((2, 3, 4), math.nan)}, "NaN"),
    ],
    ids=["zero", "nan", "text", "axes", "one class", "logits"],
)
def test_bad_confidence_input(given: dict[str, object], says: str) -> None:
    arguments = {"logits": torch.zeros(2, 3, 4), "alpha": 1.0, **given}
    with pytest.raises(ValueError, match=says):
        smoothed(**arguments)  # type: ignore[arg-type]


def test_bad_choices() -> None:
    logits, labels = random_case(0)
    certain, right = confidences(logits, 1.0), predictions(logits) == labels
    with pytest.raises(ValueError, match="tolerance"):
        choose_threshold(pareto_front(all_candidates(certain, right)), 3, 1.0)
    with pytest.raises(ValueError, match="alpha='best'"):
        chosen_alpha("best", logits, labels)
    with pytest.raises(ValueError, match="rule='variance'"):
        confidences(logits, 1.0, "variance")
