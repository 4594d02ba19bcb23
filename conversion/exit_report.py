"""What early exit gives and saves on labelled samples, told from one run of all T steps with its operations counted.

The network must be causal, so that what a sample costs up to its exit is the sum over its first steps
(`spikeloom.energy.prefix`). The synaptic operations are those that a run with a shrinking batch really executes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spikeloom.conversion.confidence import (
    at_exit,
    calibration_error,
    confidences,
    exit_steps,
    oracle_steps,
    predictions,
)
from spikeloom.conversion.held_out import outputs_of
from spikeloom.conversion.pareto import ExitPoint, sweep_thresholds
from spikeloom.energy import Counts, EnergyModel, Policy, count, prefix_energy
from spikeloom.energy.prefix import by_arrival

SWEPT = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
ROWS = 10


def thinned(front: Sequence[ExitPoint]) -> tuple[float, ...]:
    """The thresholds of at most `ROWS` points, evenly from the first to the last."""
    last = len(front) - 1
    kept = {round(last * k / (ROWS - 1)) for k in range(ROWS)} if last >= ROWS else range(last + 1)
    return tuple(front[index].threshold for index in sorted(kept))


@dataclass(frozen=True)
class ExitCost:
    """Means per sample: synaptic operations and pJ, of all T steps and up to the exit; `counts`: the whole run's."""

    sop_fixed: float
    sop_exit: float
    energy_fixed_pj: float
    energy_exit_pj: float
    counts: Counts


@dataclass(frozen=True)
class ExitReport:
    """Early exit against T steps.

    Attributes:
        point: the threshold that was used: mean steps, accuracy. fixed: the same of T steps.
        histogram: samples that stopped after step 1, 2, ..., T.
        ece: calibration error after T steps; ece_exit: of the confidences at the exits.
        oracle: an exit at the first right answer: no rule of confidence is better.
        sweep: other thresholds. accuracy_by_step: after 1, 2, ..., T steps without exits.
        steps: of each sample, int64 `[N]`. cost: None if nothing was counted. energy_ratios: of `sweep`.
    """

    T: int
    alpha: float
    point: ExitPoint
    fixed: ExitPoint
    oracle: ExitPoint
    ece: float
    ece_exit: float
    histogram: tuple[int, ...]
    accuracy_by_step: tuple[float, ...]
    sweep: tuple[ExitPoint, ...]
    steps: Tensor
    cost: ExitCost | None
    energy_ratios: tuple[float, ...]

    @property
    def saved(self) -> float:
        """Part of the steps that is saved, 0 to 1."""
        return 1 - self.point.mean_steps / self.T

    @property
    def lost(self) -> float:
        """Accuracy of T steps minus that of early exit; below 0: early exit is better."""
        return self.fixed.accuracy - self.point.accuracy

    @property
    def as_good_fixed(self) -> int:
        """The fewest steps that, given to every sample, are at least as accurate as early exit; 0: no number is."""
        good = [t for t, accuracy in enumerate(self.accuracy_by_step, start=1) if accuracy >= self.point.accuracy]
        return good[0] if good else 0

    def table(self) -> str:
        """Thresholds, mean steps, accuracy, and energy relative to T steps where it was counted."""
        rows = [(f"{p.threshold:.6f}", p) for p in self.sweep]
        rows += [("T steps", self.fixed), ("oracle", self.oracle)]
        ratios = [f"{ratio:8.1%}" for ratio in self.energy_ratios] or [""] * len(rows)
        head = f"{'threshold':>9}  {'steps':>6}  {'accuracy':>8}" + ("    energy" if self.energy_ratios else "")
        lines = [
            f"{name:>9}  {p.mean_steps:6.2f}  {p.accuracy:8.2%}  {r}" for (name, p), r in zip(rows, ratios, strict=True)
        ]
        return "\n".join([head, *(line.rstrip() for line in lines)])

    def __str__(self) -> str:
        p, cost = self.point, self.cost
        lines = [
            f"{p.samples} samples, threshold {p.threshold:.6f}, alpha {self.alpha:.4g}: {p.mean_steps:.2f} of {self.T} "
            f"steps ({self.saved:.1%} fewer), accuracy {p.accuracy:.2%} against {self.fixed.accuracy:.2%}",
            f"calibration error {self.ece:.3f} after {self.T} steps, {self.ece_exit:.3f} at the exits; oracle "
            f"{self.oracle.accuracy:.2%} at {self.oracle.mean_steps:.2f} steps",
            f"as accurate with one number of steps for all samples: {self.as_good_fixed or 'none'}",
        ]
        if cost is not None:
            lines.append(
                f"synaptic operations {cost.sop_exit:,.0f} against {cost.sop_fixed:,.0f} per sample "
                f"({cost.sop_exit / max(cost.sop_fixed, 1):.1%}), energy {cost.energy_exit_pj / 1e3:.3g} against "
                f"{cost.energy_fixed_pj / 1e3:.3g} nJ ({cost.energy_exit_pj / max(cost.energy_fixed_pj, 1e-12):.1%})"
            )
        widest = max(self.histogram)
        bars = [f"{t:4} {n:6} {'#' * round(40 * n / widest)}".rstrip() for t, n in enumerate(self.histogram, start=1)]
        return "\n".join([*lines, self.table(), "step  samples that stop there", *bars])


def measure(
    model: nn.Module,
    given: Iterable[tuple[Tensor, Tensor]],
    alpha: float,
    threshold: float,
    rule: str,
    swept_at: Iterable[float],
    priced: tuple[str | EnergyModel, Policy] | None,
) -> ExitReport:
    """Run all steps of checked batches, and tell what exits at a threshold give.

    Args:
        swept_at: other thresholds for the table. priced: energy model and policy; None counts nothing.
    """
    counts = None
    if priced is None:
        found = outputs_of(model, given)
    else:
        with count(model) as run:
            found = outputs_of(model, given)
        counts = run.counts()
    right = predictions(found.logits) == found.labels
    certain = confidences(found.logits, alpha, rule)
    T, N = right.shape
    steps, best = exit_steps(certain, threshold), oracle_steps(right)
    swept = sweep_thresholds(certain, right, sorted({*swept_at, threshold}))
    cost: ExitCost | None = None
    ratios: tuple[float, ...] = ()
    if counts is not None and priced is not None:
        exits = [*(exit_steps(certain, p.threshold) for p in swept), torch.full((N,), T), best]
        cost, ratios = _cost(counts, steps, exits, *priced)
    probability = confidences(found.logits, alpha)
    return ExitReport(
        T=T,
        alpha=alpha,
        point=next(p for p in swept if p.threshold == threshold),
        fixed=ExitPoint(1.0, float(T), int(right[-1].sum()), N),
        oracle=ExitPoint(0.0, float(best.double().mean()), int(at_exit(right, best).sum()), N),
        ece=calibration_error(probability[-1], right[-1]),
        ece_exit=calibration_error(at_exit(probability, steps), at_exit(right, steps)),
        histogram=tuple(torch.bincount(steps, minlength=T + 1)[1:].tolist()),
        accuracy_by_step=tuple(right.double().mean(1).tolist()),
        sweep=tuple(swept),
        steps=steps,
        cost=cost,
        energy_ratios=ratios,
    )


def _cost(
    counts: Counts, steps: Tensor, exits: list[Tensor], model: str | EnergyModel, policy: Policy
) -> tuple[ExitCost, tuple[float, ...]]:
    """The cost of some exits, and the energy of others relative to T steps."""
    energy = prefix_energy(counts, model, policy)
    sop = np.zeros(energy.shape)
    for layer in by_arrival(counts).layers:
        sop += layer.sop.cumsum(0)
    samples = np.arange(counts.samples)
    at = (steps.numpy() - 1, samples)
    whole = float(energy[-1].mean())
    ratios = [float(energy[chosen.numpy() - 1, samples].mean()) / whole if whole else 1.0 for chosen in exits]
    cost = ExitCost(float(sop[-1].mean()), float(sop[at].mean()), whole, float(energy[at].mean()), counts)
    return cost, tuple(ratios)
