"""Golden early exits: confidences, exit steps, sweep, oracle, calibration error and the Pareto threshold."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from spikeloom.conversion.confidence import (
    at_exit,
    calibration_error,
    confidences,
    exit_steps,
    oracle_steps,
    predictions,
)
from spikeloom.conversion.pareto import all_candidates, choose_threshold, pareto_front, sweep_thresholds


def check(path: Path, variant: str) -> None:
    """Compare everything that the file holds; in float32 the logits are rounded first."""
    with safe_open(path, "pt") as stored:  # type: ignore[no-untyped-call]
        file = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        config = json.loads(stored.metadata()["config"])
    exact = variant == "float64"
    logits, labels = file["in.logits"], file["in.labels"]
    certain = confidences(logits if exact else logits.float(), config["alpha"])
    classes = predictions(logits)
    right = classes == labels
    torch.testing.assert_close(certain, file["out.confidence"], rtol=0, atol=1e-12 if exact else 1e-6)
    assert torch.equal(classes, file["out.pred"])
    torch.testing.assert_close(right.double().mean(1), file["out.accuracy_per_t"], rtol=0, atol=1e-12)
    errors = torch.tensor([calibration_error(c, r) for c, r in zip(certain, right, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(errors, file["out.ece10_per_t"], rtol=0, atol=1e-9 if exact else 1e-2)
    for threshold in config["thresholds"]:
        assert torch.equal(exit_steps(certain, threshold), file[f"out.exit_t_th{threshold}"])
    rows = sweep_thresholds(certain, right, config["thresholds"])
    ours = torch.tensor([[row.threshold, row.mean_steps, row.accuracy] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(ours, file["out.sweep"], rtol=0, atol=1e-12)
    best = oracle_steps(right)
    assert torch.equal(best, file["out.oracle_exit_t"])
    summed = torch.tensor([at_exit(right, best).double().mean(), best.double().mean()], dtype=torch.float64)
    torch.testing.assert_close(summed, file["out.oracle"], rtol=0, atol=1e-12)
    point = choose_threshold(pareto_front(all_candidates(certain, right)), int(right[-1].sum()))
    found = torch.tensor([point.threshold, point.mean_steps, point.accuracy], dtype=torch.float64)
    expected = file["out.pareto_threshold_latency_accuracy"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12 if exact else 1e-6)
