"""Fixtures of the training tests: a few small recordings, and a recipe that trains on them in a second."""

from pathlib import Path

import pytest
import torch

from spikeloom.datasets import NMNIST, Events, pack_store, write_bin
from spikeloom.training import Augment, Data, Optim, Recipe

TRAIN, TEST = 4, 2  # recordings per digit


def blob(label: int, generator: torch.Generator) -> Events:
    """Events scattered about a place and a time that tell the label."""
    count = 80
    centre_x, centre_y = 4 + 6 * (label % 5), 8 + 16 * (label // 5)
    scatter = torch.randint(-2, 3, (2, count), generator=generator)
    t = torch.randint(0, 300_000, (count,), generator=generator)
    p = torch.randint(0, 2, (count,), generator=generator)
    return Events.from_arrays(t, centre_x + scatter[0], centre_y + scatter[1], p, 34, 34)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as N-MNIST is: 40 recordings for training, 20 for testing."""
    root = tmp_path_factory.mktemp("nmnist")
    generator = torch.Generator().manual_seed(0)
    for part, count in (("Train", TRAIN), ("Test", TEST)):
        for label in range(10):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                write_bin(folder / f"{number:05d}.bin", blob(label, generator))
    return root


@pytest.fixture
def stores(recordings: Path, tmp_path: Path) -> Path:
    """A folder with these recordings as train.events and test.events, to be changed as a test likes."""
    for part in ("train", "test"):
        pack_store(tmp_path / f"{part}.events", NMNIST(recordings, part), 34, 34)  # type: ignore[arg-type]
    return tmp_path


@pytest.fixture
def tiny(recordings: Path) -> Recipe:
    """Three epochs of five steps, with augmentation and dropout, so that all random numbers are drawn."""
    return Recipe(
        model="conv_snn_tiny",
        model_args={"dropout": 0.2},
        data=Data("nmnist", root=str(recordings), T=3),
        augment=Augment(shift_px=1, drop=0.2),
        optim=Optim(lr=5e-3),
        epochs=3,
        batch_size=8,
    )
