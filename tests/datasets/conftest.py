"""Shared by the data set tests: a seeded generator, random recordings, and the folder of real N-MNIST samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spikeloom.datasets import Events, PackedEvents

MakePacked = Callable[..., PackedEvents]


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.fixture
def make_packed(generator: torch.Generator) -> MakePacked:
    """Random recordings of the given lengths on a sensor of 5 x 7 (odd, and not square), times up to 10,000 us."""

    def make(*lengths: int) -> PackedEvents:
        def draw(length: int, below: int) -> torch.Tensor:
            return torch.randint(0, below, (length,), generator=generator)

        return PackedEvents.from_events(
            [Events.from_arrays(draw(n, 10_001), draw(n, 7), draw(n, 5), draw(n, 2), 5, 7) for n in lengths],
            labels=range(len(lengths)),
        )

    return make


@pytest.fixture(scope="session")
def nmnist_root() -> Path:
    root = Path(__file__).resolve().parents[3] / "shared" / "data" / "nmnist"
    if not root.is_dir():
        pytest.skip(f"real N-MNIST samples are not at {root}")
    return root
