"""Moving shapes: the order of the motions is the class, and nothing else tells it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeloom.datasets import frames_by_time
from spikeloom.datasets.moving_shapes import CLASSES, ORDERS, MovingShapesConfig, moving_shapes
from spikeloom.datasets.packed import PackedEvents

T = 16


@pytest.fixture(scope="module")
def parts() -> tuple[PackedEvents, PackedEvents]:
    return moving_shapes("train", per_class=300), moving_shapes("test", per_class=100)


def test_every_class_has_each_stroke_once() -> None:
    assert len(set(ORDERS)) == len(CLASSES)
    assert all(sorted(order) == [0, 1, 2, 3] and order[0] == 0 for order in ORDERS)


def test_recordings_are_what_training_takes(parts: tuple[PackedEvents, PackedEvents]) -> None:
    train, test = parts
    assert (len(train), len(test), train.height, train.width) == (1200, 400, 32, 32)
    assert train.labels is not None
    assert train.labels[::300].tolist() == [0, 1, 2, 3]
    assert int(train.t.max()) < MovingShapesConfig().duration_us
    assert 500 < train.lengths.double().mean() < 4000
    assert train.p.double().mean() == pytest.approx(0.5, abs=0.05), "what grows dark grows bright again"


def test_draws_are_by_seed_and_part(parts: tuple[PackedEvents, PackedEvents]) -> None:
    first, again, other = (moving_shapes("test", per_class=4, seed=seed) for seed in (0, 0, 1))
    for name in ("t", "x", "y", "p", "offsets", "labels"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert len(first.t) != len(other.t)
    assert len(moving_shapes("train", per_class=4).t) != len(first.t)


def test_the_strokes_of_a_class_are_in_its_order() -> None:
    """Where the events of each stroke lie, from the shape's place, is its direction."""
    config = MovingShapesConfig(noise_hz=0.0, offset=0.0, pause=(2.0, 2.0), reach=(9.0, 9.0), radius=(2.5, 2.5))
    recordings = moving_shapes("train", config, per_class=20, seed=3)
    sides = np.array([[1, 0], [0, -1], [-1, 0], [0, 1]])
    firsts = set()
    for number, events in enumerate(recordings):
        x, y = events.x.double().numpy() - 15.5, events.y.double().numpy() - 15.5
        t = events.t.numpy() / config.duration_us * 14  # four strokes of about 1, five pauses of 2
        windows = [abs(t - 2.5 - 3 * k) < 1.2 for k in range(4)]
        found = [int((sides @ np.array([x[w].mean(), y[w].mean()])).argmax()) for w in windows]
        assert tuple((direction - found[0]) % 4 for direction in found) == ORDERS[number // 20]
        firsts.add(found[0])
    assert firsts == {0, 1, 2, 3}


def _accuracy(train: Tensor, labels: Tensor, test: Tensor, true: Tensor) -> float:
    """Of a linear classifier by ridge regression."""
    mean, deviation = train.mean(0), train.std(0) + 1e-3
    A, B = (train - mean) / deviation, (test - mean) / deviation
    targets = torch.nn.functional.one_hot(labels, 4).double() - 0.25
    kernel = A @ A.T + len(A) * torch.eye(len(A), dtype=A.dtype)
    scores = B @ (A.T @ torch.linalg.solve(kernel, targets))
    return float((scores.argmax(1) == true).double().mean())


def test_neither_sums_over_time_nor_single_frames_tell_the_class(parts: tuple[PackedEvents, PackedEvents]) -> None:
    end = MovingShapesConfig().duration_us
    train, test = (frames_by_time(part, T, end_us=end).double().flatten(2) for part in parts)
    labels, true = (part.labels for part in parts)
    assert labels is not None
    assert true is not None
    assert _accuracy(train.sum(0), labels, test.sum(0), true) < 0.33
    for frame in (3, 6, 12):
        assert _accuracy(train[frame], labels, test[frame], true) < 0.35


def test_noise_is_added() -> None:
    plain, noisy = (moving_shapes("test", MovingShapesConfig(noise_hz=hz), per_class=8) for hz in (0.0, 5.0))
    assert len(noisy.t) - len(plain.t) == pytest.approx(32 * 5 * 32 * 32, rel=0.1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: moving_shapes("valid"), "part is 'valid'"),  # type: ignore[arg-type]
        (lambda: moving_shapes(per_class=0), "per_class=0"),
        (lambda: moving_shapes(seed=-1), "seed=-1"),
        (lambda: MovingShapesConfig(steps=0), "steps is 0"),
        (lambda: MovingShapesConfig(noise_hz=-1), "noise_hz is -1"),
        (lambda: MovingShapesConfig(mismatch=0.9), "mismatch is 0.9"),
        (lambda: MovingShapesConfig(radius=(3.0, 2.0)), r"radius is \(3.0, 2.0\)"),
    ],
    ids=["part", "per_class", "seed", "steps", "noise", "mismatch", "radius"],
)
def test_bad_input_is_refused(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
