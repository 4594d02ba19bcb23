"""Which threshold of confidence to stop at: the fastest one that loses no more than is allowed, on held-out samples.

Candidates are all values that the confidence took, at any step, for any sample: between two of them nothing changes.
The largest one means that nothing ever exits, so there is always an answer. A sample leaves at the first confidence
above the threshold, that is at a record of its confidences; so as the threshold rises past a record the sample moves on
to its next one, and all candidates are told by one sort: O(N T log(N T)). Correct samples are counted, not averaged.

Paper: as in `confidence`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeloom.conversion.confidence import at_exit, exit_steps


@dataclass(frozen=True)
class ExitPoint:
    """One threshold: mean steps per sample, and how many of how many samples are right."""

    threshold: float
    mean_steps: float
    correct: int
    samples: int

    @property
    def accuracy(self) -> float:
        """Between 0 and 1."""
        return self.correct / self.samples


def sweep_thresholds(certain: Tensor, right: Tensor, thresholds: Iterable[float]) -> list[ExitPoint]:
    """What each of some thresholds gives.

    Args:
        certain: confidences `[T, N]`. right: bool `[T, N]`, whether the class after each step is the label.
    """
    points = []
    for threshold in thresholds:
        steps = exit_steps(certain, threshold)
        correct = int(at_exit(right, steps).sum())
        points.append(ExitPoint(float(threshold), float(steps.double().mean()), correct, certain.shape[1]))
    return points


@dataclass(frozen=True)
class Candidates:
    """All thresholds that differ, rising: thresholds float64 `[M]`, summed steps and correct samples int64 `[M]`."""

    thresholds: Tensor
    steps: Tensor
    correct: Tensor
    samples: int

    def point(self, index: int) -> ExitPoint:
        """One candidate."""
        mean = int(self.steps[index]) / self.samples
        return ExitPoint(float(self.thresholds[index]), mean, int(self.correct[index]), self.samples)


def all_candidates(certain: Tensor, right: Tensor) -> Candidates:
    """Every threshold that differs from the others. Arguments as `sweep_thresholds`."""
    N = certain.shape[1]
    thresholds = certain.unique()
    reached = torch.cat([torch.full_like(certain[:1], -math.inf), certain.cummax(0).values[:-1]])
    record = certain > reached
    record[-1] = True  # the last step is an exit for all that are left
    leaves = record[:-1]
    following = _following(record)
    step, sample = leaves.nonzero(as_tuple=True)
    after = following[step, sample]
    later = after - step
    gained = right[after, sample].long() - right[step, sample].long()
    order = certain[step, sample].argsort()
    levels = certain[step, sample][order]
    passed = torch.searchsorted(levels, thresholds, right=True)  # exit is strict: at the threshold a sample moves on
    start = torch.zeros(1, dtype=torch.long, device=certain.device)
    steps = N + torch.cat([start, later[order].cumsum(0)])[passed]
    correct = right[0].sum() + torch.cat([start, gained[order].cumsum(0)])[passed]
    return Candidates(thresholds, steps, correct, N)


def _following(record: Tensor) -> Tensor:
    """At each step, the index of the sample's next record."""
    T = len(record)
    found = torch.full_like(record, T - 1, dtype=torch.long)
    for step in range(T - 2, -1, -1):
        found[step] = torch.where(record[step + 1], step + 1, found[step + 1])
    return found


def pareto_front(candidates: Candidates) -> list[ExitPoint]:
    """The candidates that no other one beats in steps and correct samples, from fast to slow."""
    steps, correct = candidates.steps.tolist(), candidates.correct.tolist()
    front: list[ExitPoint] = []
    for index in sorted(range(len(steps)), key=lambda i: (steps[i], -correct[i], i)):
        if not front or correct[index] > front[-1].correct:
            front.append(candidates.point(index))
    return front


def choose_threshold(front: Sequence[ExitPoint], correct_at_end: int, tolerance: float = 0.0) -> ExitPoint:
    """The fastest point that is right on no fewer samples than the last step, but for a part `tolerance` of all.

    Raises:
        ValueError: tolerance is not in [0, 1).
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance={tolerance!r}; expected a part of the samples, 0 <= tolerance < 1 (0.002: 0.2 %)")
    allowed = math.floor(tolerance * front[0].samples + 1e-9)
    return next(point for point in front if point.correct >= correct_at_end - allowed)
