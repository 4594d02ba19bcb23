"""Spikes and audio as the frames of the delay networks, and their augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spikeloom.datasets.log_mel import halved, log_mel, mel_filters
from spikeloom.datasets.sequence_augment import mask_and_mix
from spikeloom.datasets.spike_bins import bin_spikes


def test_spikes_by_hand() -> None:
    """Time from the first spike; the last frame takes a spike at its very end."""
    times = torch.tensor([0.5, 0.504, 0.512, 0.52], dtype=torch.float64)
    frames = bin_spikes(times, torch.tensor([0, 4, 5, 699]))
    assert frames.shape == (2, 140)
    assert frames[0, 0] == 2
    assert frames[1, 1] == 1
    assert frames[1, 139] == 1
    assert frames.sum() == 4
    assert bin_spikes(torch.tensor([0.1]), torch.tensor([3])).shape == (1, 140)


def test_the_type_of_the_times_decides_at_borders() -> None:
    times = torch.rand(2000, generator=torch.Generator().manual_seed(0)).sort().values.half()
    units = torch.zeros(2000, dtype=torch.long)
    coarse, fine = bin_spikes(times, units), bin_spikes(times.float(), units)
    assert coarse.sum() == fine.sum() == 2000
    assert not torch.equal(coarse, fine)


@pytest.mark.parametrize(
    ("times", "units", "says"),
    [
        ([0.2, 0.1], [1, 2], "sort times and units"),
        ([0.1, 0.2], [1, 700], "from 1 to 700; expected whole numbers from 0 to 699"),
        ([], [], "one or more spikes"),
        ([0.1], [1, 2], r"both \[events\]"),
    ],
)
def test_spikes_that_are_none_are_refused(times: list[float], units: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        bin_spikes(torch.tensor(times, dtype=torch.float32), torch.tensor(units, dtype=torch.long))


@pytest.mark.parametrize("duration", [0.0, float("nan"), float("inf")])
def test_frames_of_no_duration_are_refused(duration: float) -> None:
    with pytest.raises(ValueError, match=r"expected a duration > 0 ms"):
        bin_spikes(torch.tensor([0.1, 0.2]), torch.tensor([1, 2]), duration)


def test_a_tone_is_in_its_filter() -> None:
    """1 kHz after halving the rate; nothing above 4 kHz; the empty filters at the floor."""
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
    frames = log_mel(tone, f_max=4000)
    assert frames.shape == (101, 140)
    loudest = int(mel_filters(140, 50.0, 4000.0)[:, 32].argmax())  # bin 32 is 1000 Hz
    assert int(frames[50].argmax()) == loudest
    assert bool((log_mel(tone)[:, 87:] == -100).all())
    high = torch.sin(2 * torch.pi * 6000 * torch.arange(16000, dtype=torch.float64) / 16000)
    assert halved(high)[100:-100].abs().max() < 0.01
    assert halved(tone.double())[100:-100].abs().max() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("shape", "rate", "says"),
    [((1, 16000), 8000, "at 8000 Hz; expected 16000"), ((2, 100), 16000, "one channel"), ((16001,), 16000, "to 16000")],
)
def test_other_audio_is_refused(shape: Any, rate: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        log_mel(torch.zeros(shape), rate)


def test_augmentation_is_drawn_from_its_generator() -> None:
    x, shares = torch.rand(6, 20, 10) + 1, torch.eye(6)
    first = mask_and_mix(x, shares, 5, 4, np.random.RandomState(0))
    again = mask_and_mix(x, shares, 5, 4, np.random.RandomState(0))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert bool((first[0] == 0).any())
    torch.testing.assert_close(first[1].sum(1), torch.ones(6))
    assert torch.equal(first[1][5], shares[5])  # the last one is never mixed
    assert not torch.equal(first[1], shares)
    assert bool((x >= 1).all())
    with pytest.raises(ValueError, match="below 20 and 10"):
        mask_and_mix(x, shares, 20, 4, np.random.RandomState(0))
