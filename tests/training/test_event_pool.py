"""Frames of events whose counts are summed over squares of pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spikeloom_tests.training.tiny_files import write_clips
from torch.nn import functional as F

from spikeloom.training import Augment, Data, Recipe
from spikeloom.training.data import Batches, load_test, load_train

CPU = torch.device("cpu")


def test_counts_are_summed_over_squares(tmp_path: Path) -> None:
    whole = Data("dvs_gesture", root=str(write_clips(tmp_path, 4000)), T=2, split="number", encoding="count")
    recordings = load_test(whole)
    frames, pooled = (next(Batches(recordings, replace(whole, pool=n), 11, CPU).in_order())[0] for n in (1, 2))
    assert pooled.shape == (2, 11, 2, 64, 64)
    assert torch.equal(pooled.flatten(0, 1), F.avg_pool2d(frames.flatten(0, 1), 2) * 4)
    cropped = replace(whole, pool=4, crop=30)
    assert next(Batches(recordings, cropped, 11, CPU).in_order())[0].shape == (2, 11, 2, 30, 30)
    with pytest.raises(ValueError, match=r"Data\.crop is 34, but the frames of dvs_gesture have 32 x 32 pixels"):
        Batches(recordings, replace(cropped, crop=34), 11, CPU)


def test_binary_frames_say_whether_any_pixel_had_an_event(tiny: Recipe) -> None:
    recordings = load_train(tiny.data)[0]
    frames, pooled = (next(Batches(recordings, replace(tiny.data, pool=n), 8, CPU).in_order())[0] for n in (1, 2))
    assert torch.equal(pooled.flatten(0, 1), F.max_pool2d(frames.flatten(0, 1), 2))


@pytest.mark.parametrize("drop", [0.0, 1e-9], ids=["frames", "events"])
def test_shifts_are_of_whole_pixels_of_the_sensor(tiny: Recipe, drop: float) -> None:
    data = replace(tiny.data, encoding="count")
    recordings, augment = load_train(data)[0], Augment(shift_px=3, drop=drop)
    frames, pooled = (
        next(Batches(recordings, replace(data, pool=n), 8, CPU, augment).shuffled(0, 0))[0] for n in (1, 2)
    )
    assert torch.equal(pooled.flatten(0, 1), F.avg_pool2d(frames.flatten(0, 1), 2) * 4)


def test_squares_that_do_not_tile_the_sensor_are_refused(tiny: Recipe) -> None:
    with pytest.raises(ValueError, match=r"Data\.pool is 3, but the frames of nmnist have 34 x 34 pixels; .* divisor"):
        Batches(load_test(tiny.data), replace(tiny.data, pool=3), 8, CPU)
    with pytest.raises(ValueError, match=r"Data\.pool is 0; expected >= 1"):
        Data(pool=0)
