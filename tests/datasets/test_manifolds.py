"""Random manifolds: one spike per unit, classes by timing alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.datasets import Sequences, random_manifolds

SMALL: dict[str, Any] = {"classes": 4, "units": 12, "steps": 40, "samples": 100}


def times(data: Sequences) -> Tensor:
    """Step of the spike of each unit `[R, N]`."""
    return data.values.view(len(data), -1, data.channels).argmax(1)


def test_every_unit_fires_once() -> None:
    """So whatever counts spikes sees the same in all samples, and is right once in `classes` times."""
    data = random_manifolds(**SMALL)
    assert (data.values.dtype, len(data), data.channels, len(data.names)) == (torch.uint8, 400, 12, 4)
    assert data.lengths.tolist() == [40] * 400
    x, _ = data.batch(torch.arange(400))
    assert torch.equal(x.sum(0), torch.ones(400, 12))
    assert data.labels is not None
    assert data.labels.bincount().tolist() == [100] * 4


def test_timing_tells_the_classes_apart() -> None:
    """The nearest sample of the training part by spike times is of the right class."""
    train, test = random_manifolds(**SMALL), random_manifolds("test", **SMALL)
    nearest = torch.cdist(times(test).float(), times(train).float()).argmin(1)
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels[nearest] == test.labels).float().mean() > 0.95


def test_parts_share_manifolds_and_nothing_else() -> None:
    parts = [random_manifolds(part, **SMALL) for part in ("train", "valid", "test")]
    assert not any(torch.equal(a.values, b.values) for a, b in zip(parts, parts[1:] + parts[:1], strict=True))
    more = random_manifolds(**{**SMALL, "samples": 30})
    assert torch.equal(times(more)[:30], times(parts[0])[:30])  # neither the range nor the points depend on the number
    assert torch.equal(random_manifolds(**SMALL).values, parts[0].values)
    assert not torch.equal(random_manifolds(**SMALL, seed=1).values, parts[0].values)


def test_a_larger_alpha_is_smoother() -> None:
    """On a curve (D = 1) neighbouring samples are nearer to each other, relative to all."""

    def roughness(alpha: float) -> float:
        data = random_manifolds(classes=2, units=8, dims=1, alpha=alpha, steps=200, samples=60)
        gaps = torch.cdist(times(data)[:60].float(), times(data)[:60].float()).fill_diagonal_(torch.inf)
        return float(gaps.min(1).values.mean() / gaps[gaps.isfinite()].mean())

    assert roughness(0.8) > 1.5 * roughness(2.0)


def test_all_steps_are_used() -> None:
    data = random_manifolds(**SMALL)
    spikes = data.values.view(400, 40, 12).sum((0, 2))
    assert int(spikes.min()) > 0
    assert int(spikes.sum()) == 400 * 12


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"part": "dev"}, "part is 'dev'; expected one of train, valid, test"),
        ({"classes": 1}, "classes=1"),
        ({"steps": 1}, "two or more classes and steps"),
        ({"units": 0}, "one or more of units"),
        ({"alpha": 0.0}, "an alpha above 0"),
        ({"alpha": float("nan")}, "an alpha above 0"),
        ({"seed": -1}, "a seed of 0 or more"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        random_manifolds(**settings)
