"""Data: spikes and audio as frames, and augmentation."""

from __future__ import annotations

import numpy as np
import torch
from spikeloom_tests.golden.delays.stored import Stored, near, same

from spikeloom.datasets.log_mel import log_mel
from spikeloom.datasets.sequence_augment import mask_and_mix
from spikeloom.datasets.spike_bins import bin_spikes


def check_spikes(file: Stored) -> None:
    """Counts bit by bit, in the type of the stored times."""
    config = file.config
    ours = bin_spikes(file["in.t"], file["in.x"], config["duration_ms"], config["sensor"], config["n_bins"])
    assert torch.equal(ours, file["out.binned"])
    same(ours.sum(1), file["out.frame_totals"], "events per frame")


def check_audio(file: Stored) -> None:
    """Decibels, and filters that hold nothing."""
    config = file.config
    ours = log_mel(file["in.waveform"], config["sample_rate"], config["n_mels"], config["f_max"])
    near(ours, file["out.logmel"], 5e-3, "log-mel")
    assert bool((ours[:, 87:] == -100).all())
    corrected = log_mel(file["in.waveform"], f_max=4000)
    assert int((corrected == -100).all(0).sum()) == 7


def check_augment(file: Stored) -> None:
    """The same draws."""
    config = file.config
    generator = np.random.RandomState(config["numpy_seed"])
    x, y = mask_and_mix(file["in.x"], file["in.y"], config["time_mask_size"], config["neuron_mask_size"], generator)
    same(x, file["out.x"], "x")
    near(y, file["out.y"], 1e-6, "y")
