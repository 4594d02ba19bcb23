"""Small sequences in the place of a data set, and a recipe that trains a network with delays on them in a second."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from spikeloom.datasets.sequences import Sequences
from spikeloom.training import Augment, Data, Loss, Optim, Recipe, sources

CHANNELS, CLASSES = 6, 3


def tiny_part(data: Data, part: str) -> Sequences:
    """Two spikes per recording, on two channels; the class is how far apart they come."""
    count, seed = {"train": (36, 0), "test": (18, 1), "validation": (9, 2)}[part]
    generator = torch.Generator().manual_seed(seed)
    recordings, labels = [], []
    for number in range(count):
        label = number % CLASSES
        length = int(torch.randint(14, 19, (1,), generator=generator))
        start = int(torch.randint(0, 4, (1,), generator=generator))
        values = torch.zeros(length, CHANNELS, dtype=torch.uint8)
        values[start, 0] = values[start + 3 * label + 1, 1] = 1
        values[start, 2:] = 1
        recordings.append(values)
        labels.append(label)
    return Sequences.from_list(recordings, labels)


def tiny_source(validates: bool = False) -> sources.Source:
    """What the recipe's data set is."""
    return sources.Source(tiny_part, CLASSES, "small", channels=lambda data: CHANNELS, validates=validates)


def tiny_recipe() -> Recipe:
    """Five epochs of five steps of batches whose lengths differ; dropout and changes draw random numbers."""
    return Recipe(
        model="delays_shd_2l_1kc",
        model_args={"hidden": 16, "max_delay": 9, "dropout": 0.2, "sparsity": 0.2},
        data=Data("tiny_sequences"),
        augment=Augment(channel_shift=0.4),
        optim=Optim(lr=2e-3, weight_decay=1e-5, schedule="delays", clip_norm=None),
        loss=Loss("sum"),
        epochs=5,
        batch_size=8,
        bf16=False,
    )


def use(monkeypatch: pytest.MonkeyPatch, validates: bool = False) -> Recipe:
    """The recipe, whose data set there is until the test ends."""
    monkeypatch.setitem(sources.SOURCES, "tiny_sequences", tiny_source(validates))
    return tiny_recipe()


def fixed_steps(recipe: Recipe) -> Recipe:
    """The same with batches of one shape."""
    return replace(recipe, data=replace(recipe.data, steps=16, drop_last=True))
