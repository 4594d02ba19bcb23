"""Early exit: stop a sample at the first step at which the network is sure enough, and what that saves.

The confidence at step t is taken from the mean of the outputs of steps 1..t:

* "max_softmax": the largest probability of its softmax (C. Li et al., "Unleashing the potential of spiking neural
  networks with dynamic confidence", ICCV 2023; Y. Li et al., "SEENN", NeurIPS 2023);
* "entropy": 1 - H / log K of its softmax, 1 where all probability is on one class, 0 where it is uniform;
* "margin": the largest minus the second largest probability.

A sample stops at the first t whose confidence reaches the threshold, else at T. What it costs is the sum over its first
steps, as in `spikeloom.energy.prefix`: causal networks only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spikeloom.energy.counts import Counts, IntArray
from spikeloom.energy.models import EnergyModel
from spikeloom.energy.parts import FloatArray
from spikeloom.energy.prefix import by_arrival, prefix_energy
from spikeloom.energy.pricing import DEFAULT_MODEL
from spikeloom.energy.totals import DEFAULT_POLICY, Policy, Totals

RULES = ("max_softmax", "entropy", "margin")


@dataclass(frozen=True)
class ExitEnergy:
    """What each sample cost, arrays [N]: accumulates, effective MACs, pJ."""

    ac: IntArray
    mac: IntArray
    energy_pj: FloatArray


@dataclass(frozen=True)
class ExitRow:
    """One threshold: mean steps, accuracy (0 to 1), mean pJ per sample, and `ratio`, that over the pJ of T steps."""

    threshold: float
    mean_steps: float
    accuracy: float
    energy_pj: float
    ratio: float


def confidences(logits: Any, rule: str = "max_softmax") -> FloatArray:
    """Confidence after each step, [T, N].

    Args:
        logits: tensor or array [T, N, K], the output of each step (not its running sum).
        rule: "max_softmax", "entropy" or "margin".

    Raises:
        ValueError: another rule, shape, fewer than two classes, values that are not finite.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r}; expected one of {', '.join(RULES)}")
    running = _running_mean(logits)
    shifted = running - running.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    p = np.exp(log_p)
    if rule == "max_softmax":
        return p.max(-1)
    if rule == "entropy":
        return 1 + (p * log_p).sum(-1) / np.log(p.shape[-1])
    best = np.sort(p, -1)
    return best[..., -1] - best[..., -2]


def early_exit(logits: Any, threshold: float, rule: str = "max_softmax") -> IntArray:
    """Steps that each sample takes, [N], between 1 and T. Arguments and errors as `confidences`."""
    return _first(confidences(logits, rule), threshold)


def exit_energy(
    counts: Counts, steps_used: Any, model: str | EnergyModel = DEFAULT_MODEL, policy: Policy = DEFAULT_POLICY
) -> ExitEnergy:
    """What each sample costs if it stops after its number of steps.

    Args:
        steps_used: whole numbers [N] between 1 and T, such as `early_exit` gives.

    Raises:
        ValueError: other numbers; counts of a layer are known for the whole run only; as `price`.
    """
    steps = _steps(counts, steps_used)
    samples = np.arange(counts.samples)
    totals = Totals(by_arrival(counts), policy)
    energy = prefix_energy(counts, model, policy)
    at = (steps - 1, samples)
    return ExitEnergy(totals.ac.cumsum(0)[at], totals.mac_effective.cumsum(0)[at], energy[at])


def sweep(
    logits: Any,
    targets: Any,
    counts: Counts,
    thresholds: Iterable[float],
    rule: str = "max_softmax",
    model: str | EnergyModel = DEFAULT_MODEL,
    policy: Policy = DEFAULT_POLICY,
) -> list[ExitRow]:
    """Steps, accuracy and energy per threshold, on the samples that were counted, in their order.

    Args:
        logits: [T, N, K]; targets: class indices [N].

    Raises:
        ValueError: the three do not agree in T and N; as `confidences`, `exit_energy`.
    """
    certain = confidences(logits, rule)
    classes = _running_mean(logits).argmax(-1)
    labels = _array(targets)
    if certain.shape != (counts.T, counts.samples) or labels.shape != (counts.samples,):
        raise ValueError(
            f"logits of {certain.shape[0]} steps and {certain.shape[1]} samples, targets of shape {list(labels.shape)} "
            f"and counts of {counts.T} steps and {counts.samples} samples; expected the same steps and samples"
        )
    energy = prefix_energy(counts, model, policy)
    samples = np.arange(counts.samples)
    rows = []
    for threshold in thresholds:
        at = (_first(certain, threshold) - 1, samples)
        mean = float(energy[at].mean())
        whole = float(energy[-1].mean())
        right = float((classes[at] == labels).mean())
        rows.append(ExitRow(float(threshold), float(at[0].mean()) + 1, right, mean, mean / whole if whole else 1.0))
    return rows


def _array(values: Any) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _running_mean(logits: Any) -> FloatArray:
    """Mean of the outputs of steps 1..t in double precision, [T, N, K]."""
    values = _array(logits)
    if values.ndim != 3 or values.shape[2] < 2 or not values.size:
        raise ValueError(f"logits of shape {list(values.shape)}; expected [T, N, K] with two or more classes K")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("logits hold NaN or infinity; there is no confidence in those")
    return values.cumsum(0) / np.arange(1, len(values) + 1)[:, None, None]


def _first(certain: FloatArray, threshold: float) -> IntArray:
    """The first step, from 1, at which the threshold is reached, else the last."""
    if np.isnan(threshold):
        raise ValueError("the threshold is NaN; expected a number")
    reached = certain >= threshold
    reached[-1] = True
    return reached.argmax(0).astype(np.int64) + 1


def _steps(counts: Counts, steps_used: Any) -> IntArray:
    steps = _array(steps_used)
    whole = steps.shape == (counts.samples,) and np.issubdtype(steps.dtype, np.integer)
    if not whole or (steps < 1).any() or (steps > counts.T).any():
        raise ValueError(
            f"steps_used is {steps_used!r}; expected one whole number between 1 and {counts.T} for each of the "
            f"{counts.samples} samples"
        )
    return steps.astype(np.int64)
