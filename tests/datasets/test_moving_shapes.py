"""Moving shapes: the order of the motions is the class, told by a memory over silence and by nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.datasets import frames_by_time
from spikeloom.datasets.moving_shapes import CLASSES, ORDERS, MovingShapesConfig, moving_shapes
from spikeloom.datasets.packed import PackedEvents
from spikeloom.training import get_recipe

T = get_recipe("spikmamba_small").data.T
SIDES = torch.tensor([[1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
"""(x, y) of the four directions."""


@pytest.fixture(scope="module")
def parts() -> tuple[PackedEvents, PackedEvents]:
    return moving_shapes("train", per_class=600), moving_shapes("test", per_class=200)


def test_every_class_has_the_same_strokes_in_another_order() -> None:
    assert len(set(ORDERS)) == len(CLASSES)
    assert all(order[0] == 0 and len(set(order)) == len(order) for order in ORDERS)
    together = [sorted(sorted((first + turn) % 4 for turn in order) for first in range(4)) for order in ORDERS]
    assert all(sets == together[0] for sets in together), "whichever comes first, drawn evenly"


def test_a_mirrored_or_reversed_recording_is_of_the_other_class() -> None:
    for order, other in (ORDERS, ORDERS[::-1]):
        assert tuple(-turn % 4 for turn in order) == other
        assert tuple((turn - order[1]) % 4 for turn in order[::-1]) == other


def test_recordings_are_what_training_takes(parts: tuple[PackedEvents, PackedEvents]) -> None:
    train, test = parts
    assert (len(train), len(test), train.height, train.width) == (1200, 400, 32, 32)
    assert train.labels is not None
    assert train.labels[::600].tolist() == [0, 1]
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
    config = MovingShapesConfig(
        noise_hz=0.0, offset=0.0, stroke=(0.1, 0.1), pause=(0.6, 0.6), reach=(9.0, 9.0), radius=(2.5, 2.5)
    )
    firsts = set()
    for number, events in enumerate(moving_shapes("train", config, per_class=40, seed=3)):
        middle = torch.stack((events.x, events.y)).double() - 15.5
        stroke = events.t / config.duration_us // 0.5  # strokes of 0.1 begin at 0.05 to 0.15 and 0.7 later
        found = [int((SIDES @ middle[:, stroke == k].mean(1)).argmax()) for k in range(2)]
        assert tuple((direction - found[0]) % 4 for direction in found) == ORDERS[number // 40]
        firsts.add(found[0])
    assert firsts == {0, 1, 2, 3}


def test_the_silence_is_longer_than_membranes_remember() -> None:
    """At the recipe's T it has ten empty frames, over which a membrane with tau = 2 keeps less than 0.1 %."""
    quiet = moving_shapes("train", MovingShapesConfig(noise_hz=0.0), per_class=100)
    events = frames_by_time(quiet, T, end_us=MovingShapesConfig().duration_us).sum((2, 3, 4))
    for recording in events.T:
        gaps = (recording.nonzero().flatten().diff() - 1).sort(descending=True).values
        assert int(gaps[0]) >= 10
        assert int(gaps[1]) <= 2, "one silence; a stroke may be still where it turns"


def test_the_rest_can_be_set() -> None:
    short = moving_shapes("train", MovingShapesConfig(noise_hz=0.0, pause=(8 / T, 8 / T)), per_class=50)
    events = frames_by_time(short, T, end_us=MovingShapesConfig().duration_us).sum((2, 3, 4))
    gaps = [int((recording.nonzero().flatten().diff() - 1).max()) for recording in events.T]
    assert set(gaps) <= {7, 8, 9}, "eight frames, which begin anywhere, and slow ends of strokes"


def _accuracy(train: Tensor, labels: Tensor, test: Tensor, true: Tensor) -> float:
    """Of a linear classifier by ridge regression."""
    mean, deviation = train.mean(0), train.std(0) + 1e-3
    A, B = (train - mean) / deviation, (test - mean) / deviation
    targets = torch.nn.functional.one_hot(labels, 2).double() - 0.5
    kernel = A @ A.T + len(A) * torch.eye(len(A), dtype=A.dtype)
    scores = B @ (A.T @ torch.linalg.solve(kernel, targets))
    return float((scores.argmax(1) == true).double().mean())


def _by_place(frames: Tensor) -> Tensor:
    """`[F, B, 2, H, W]` -> `[B, F 4]`: events right, up, left and down of the middle, as shares of a frame's."""
    counts = frames.sum(2)  # [F, B, H, W]
    middle = torch.arange(counts.shape[-1], dtype=counts.dtype) - (counts.shape[-1] - 1) / 2
    x, y = middle.expand(counts.shape[-2:]), middle[:, None].expand(counts.shape[-2:])
    places = torch.stack([((sx * x + sy * y) > 5).to(counts.dtype) for sx, sy in SIDES])
    found = torch.einsum("fbhw,dhw->bfd", counts, places)
    return (found / found.sum(2, keepdim=True).clamp(min=1)).flatten(1)


def _products(features: Tensor) -> Tensor:
    """`[B, F]` -> `[B, F + F F]`: with all products of two."""
    return torch.cat((features, torch.einsum("bi,bj->bij", features, features).flatten(1)), 1)


def test_neither_sums_over_time_nor_single_frames_tell_the_class(parts: tuple[PackedEvents, PackedEvents]) -> None:
    end = MovingShapesConfig().duration_us
    train, test = (frames_by_time(part, T, end_us=end).double() for part in parts)
    labels, true = (part.labels for part in parts)
    assert labels is not None
    assert true is not None
    for frame in (3, 4, 18, 20):
        assert _accuracy(train[frame].flatten(1), labels, test[frame].flatten(1), true) < 0.58
    assert _accuracy(train.sum(0).flatten(1), labels, test.sum(0).flatten(1), true) < 0.58
    sums = [_products(_by_place(part.sum(0, keepdim=True))) for part in (train, test)]
    assert _accuracy(sums[0], labels, sums[1], true) < 0.58, "nor do products of sums"
    halves = [_products(_by_place(torch.stack([half.sum(0) for half in part.chunk(2)]))) for part in (train, test)]
    assert _accuracy(halves[0], labels, halves[1], true) > 0.95, "what was where, first and then, does tell"


def test_noise_is_added() -> None:
    plain, noisy = (moving_shapes("test", MovingShapesConfig(noise_hz=hz), per_class=8) for hz in (0.0, 5.0))
    assert len(noisy.t) - len(plain.t) == pytest.approx(16 * 5 * 32 * 32, rel=0.1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: moving_shapes("valid"), "part is 'valid'"),  # type: ignore[arg-type]
        (lambda: moving_shapes(per_class=0), "per_class=0"),
        (lambda: moving_shapes(seed=-1), "seed=-1"),
        (lambda: MovingShapesConfig(steps=0), "steps is 0"),
        (lambda: MovingShapesConfig(noise_hz=-1), "noise_hz is -1"),
        (lambda: MovingShapesConfig(contrast=(1.0, 60.0)), "contrast is up to 60.0 at a threshold of 0.3"),
        (lambda: MovingShapesConfig(mismatch=0.9), "mismatch is 0.9"),
        (lambda: MovingShapesConfig(radius=(3.0, 2.0)), r"radius is \(3.0, 2.0\)"),
        (lambda: MovingShapesConfig(pause=(0.6, 0.7)), "two strokes of up to 0.17 and a pause of up to 0.7"),
    ],
    ids=["part", "per_class", "seed", "steps", "noise", "contrast", "mismatch", "radius", "pause"],
)
def test_bad_input_is_refused(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
