"""Augmentation of event frames: each operation against torchvision's, one change for all frames, and determinism."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.datasets import augment_frames
from spikeloom.datasets.frame_augment import OPERATIONS, _maps, _squares, one_operation_each


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counts(T: int = 3, B: int = 40, H: int = 32, W: int = 48, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.randint(1, 9, (T, B, 2, H, W), generator=seeded(1)).to(dtype)


def test_only_the_given_generator_decides() -> None:
    frames = counts()
    torch.manual_seed(1)
    first = augment_frames(frames, seeded(3))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(first, augment_frames(frames, seeded(3)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not torch.equal(first, augment_frames(frames, seeded(4)))
    assert torch.equal(frames, counts())  # the input is left alone


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float16, torch.bool])
@pytest.mark.parametrize("cutout", ["side", "area"])
def test_shape_dtype_and_values_stay(dtype: torch.dtype, cutout: Any) -> None:
    frames = counts(dtype=dtype)
    changed = augment_frames(frames, seeded(0), cutout=cutout)
    assert changed.shape == frames.shape
    assert changed.dtype == dtype
    assert set(changed.unique().tolist()) <= set(frames.unique().tolist()) | {0}


def test_all_frames_and_channels_of_a_sample_undergo_the_same() -> None:
    one = torch.randint(1, 9, (1, 60, 1, 32, 48), generator=seeded(1))
    changed = augment_frames(one.expand(4, 60, 2, 32, 48), seeded(0))
    assert torch.equal(changed, changed[:1, :, :1].expand_as(changed))
    same = [torch.equal(changed[0, b, 0], one[0, b, 0]) for b in range(60)]
    assert 0 < sum(same) < 20  # identity unflipped: 1 in 12, and some magnitudes of 0


def test_a_samples_change_does_not_depend_on_the_frames() -> None:
    frames = counts(T=5)
    assert torch.equal(augment_frames(frames, seeded(2))[1:3], augment_frames(frames[1:3], seeded(2)))


@pytest.mark.parametrize("name", ["shear_x", "translate_x", "translate_y", "rotate"])
@pytest.mark.parametrize("step", [-15, -8, -1, 0, 3, 15])
def test_geometry_equals_torchvision(name: str, step: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    from spikeloom.datasets.affine import warp_nearest

    share = step / 15
    frames = counts(T=1, B=1, dtype=torch.float32)
    maps = _maps(torch.tensor([OPERATIONS.index(name)]), torch.tensor([share], dtype=torch.float64), 32, 48)
    ours = warp_nearest(frames, maps)[0, 0]
    shear = [math.degrees(0.3 * share), 0.0] if name == "shear_x" else [0.0, 0.0]
    shift = [int(5 * share) * (name == "translate_x"), int(5 * share) * (name == "translate_y")]
    if name == "rotate":
        expected = functional.rotate(frames[0, 0], 30.0 * share)
    else:
        expected = functional.affine(frames[0, 0], angle=0.0, translate=shift, scale=1.0, shear=shear)
    # a source that falls on the border of two pixels may go either way by rounding
    assert (ours != expected).float().mean() < 0.003
    if name.startswith("translate"):
        assert torch.equal(ours, expected)


def test_all_operations_occur_evenly() -> None:
    frames = torch.ones(1, 3000, 1, 12, 12)
    changed = one_operation_each(frames, seeded(0))[0, :, 0]
    lost = 144 - changed.sum((1, 2))
    assert changed.shape == (3000, 12, 12)
    # identity always, and the other operations at small magnitudes, lose nothing
    assert 0.16 < (lost == 0).float().mean() < 0.45
    wiped = (changed.sum((1, 2)) == 0).float().mean()  # cutout of 12 pixels and more: 1/6 of 19/31
    assert 0.08 < wiped < 0.125


def test_squares_lie_inside_and_have_their_side() -> None:
    side = torch.tensor([0, 1, 5, 12])
    for place in (0.0, 0.5, 1 - 1e-7):
        masks = _squares(side, torch.full((2, 4), place), 12, 20)
        assert masks.sum((1, 2)).tolist() == [0, 1, 25, 144]
    assert _squares(torch.tensor([5]), torch.full((2, 1), 1 - 1e-7), 12, 20)[0, 11, 19]
    assert _squares(torch.tensor([5]), torch.zeros(2, 1), 12, 20)[0, 0, 0]


@pytest.mark.parametrize(("cutout", "least", "most"), [("side", 1, 30), ("area", 4, 42)])
def test_cutout_sizes(monkeypatch: pytest.MonkeyPatch, cutout: Any, least: int, most: int) -> None:
    from spikeloom.datasets import frame_augment

    monkeypatch.setattr(frame_augment, "_MOST", {})  # nothing else changes anything
    frames = torch.ones(1, 400, 1, 128, 128, dtype=torch.uint8)
    erased = (128 * 128 - one_operation_each(frames, seeded(0), cutout=cutout)[0, :, 0].sum((1, 2))).double().sqrt()
    sides = erased[erased > 0]
    assert torch.equal(sides, sides.round())
    assert least <= sides.min() <= least + 6
    assert most - 3 <= sides.max() <= most
    assert 40 < len(sides) < 95  # one in six


def test_flip_comes_first_and_can_be_off() -> None:
    frames = counts()
    assert torch.equal(augment_frames(frames, seeded(0), flip_probability=0), _after(frames, flipped=False))
    assert torch.equal(augment_frames(frames, seeded(0), flip_probability=1), _after(frames, flipped=True))


def _after(frames: Tensor, flipped: bool) -> Tensor:
    generator = seeded(0)
    torch.rand(frames.shape[1], generator=generator)
    return one_operation_each(frames.flip(4) if flipped else frames, generator)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[T, B, C, H, W\]"):
        one_operation_each(torch.zeros(2, 2, 5, 5), seeded(0))
    with pytest.raises(ValueError, match="cutout is 'box'"):
        augment_frames(counts(), seeded(0), cutout="box")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="flip_probability is 2"):
        augment_frames(counts(), seeded(0), flip_probability=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cpu_generator_serves_the_gpu_alike() -> None:
    frames = counts()
    assert torch.equal(augment_frames(frames, seeded(3)), augment_frames(frames.cuda(), seeded(3)).cpu())
