"""Real N-MNIST recordings, read from the folders of the original archives.

G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor, "Converting Static Image Datasets to Spiking Neuromorphic Datasets
Using Saccades", Frontiers in Neuroscience 9:437, 2015 (CC BY-SA 4.0).

A file is a bare sequence of 5-byte events, big-endian: x; y; polarity (bit 7) and time bits 22..16; time bits 15..8;
time bits 7..0. Two things are not obvious:

* An event with y = 240 is no event but a clock overflow: all that follow are 2**13 us later than their 23 bits say,
  once for each overflow (the rule of the publishers' own reader, which tonic and others kept).
* p is kept as stored. The publishers call 1 "ON"; yet in the 700 recordings that we measured the events of p = 1 lie on
  the *trailing* edge of the moving bright digit, where its intensity falls. `SaccadeConfig.swap_polarity` follows suit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from spikeloom.datasets.events import Events
from spikeloom.datasets.packed import PackedEvents

SENSOR = 34  # height and width in pixels

_OVERFLOW_ROW = 240
_OVERFLOW_US = 2**13
_MAX_TIME_US = 2**23 - 1

_HELP = (
    "Expected ROOT/Train/<label>/<id>.bin and ROOT/Test/<label>/<id>.bin, labels 0 to 9. Get Train.zip and Test.zip "
    "from https://www.garrickorchard.com/datasets/n-mnist and unpack both into ROOT."
)


class NMNIST(Dataset[tuple[Events, int]]):
    """The recordings of a split as a data set of (Events, label), ordered by label and id; read when asked for.

    root: the folder that holds `Train/` and `Test/`. labels: `[N]` int64.
    """

    def __init__(self, root: str | Path, split: Literal["train", "test"] = "train") -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; expected 'train' or 'test'.")
        folder = Path(root) / split.capitalize()
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}. {_HELP}")
        self.files = [file for label in range(10) for file in sorted((folder / str(label)).glob("*.bin"))]
        if not self.files:
            raise FileNotFoundError(f"There is no recording under {folder}. {_HELP}")
        self.labels = torch.tensor([int(file.parent.name) for file in self.files])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        return read_bin(self.files[index]), int(self.labels[index])

    def pack(self, indices: Sequence[int] | None = None) -> PackedEvents:
        """Read all recordings (or those of `indices`) into one store, labels included."""
        chosen = list(range(len(self)) if indices is None else indices)
        return PackedEvents.from_events([self[index][0] for index in chosen], self.labels[chosen])


def read_bin(path: str | Path, height: int = SENSOR, width: int = SENSOR) -> Events:
    """Read one recording; another sensor size reads N-Caltech101, which has the same format."""
    data = np.fromfile(path, dtype=np.uint8)
    if len(data) == 0 or len(data) % 5:
        raise ValueError(
            f"{path} is {len(data)} bytes long; a recording is a whole number of 5-byte events, at least one. "
            "The copy or download was probably cut off: unpack the archive again."
        )
    x, y, high, middle, low = data.reshape(-1, 5).T.astype(np.int64)
    overflow = y == _OVERFLOW_ROW
    t = ((high & 0x7F) << 16 | middle << 8 | low) + np.cumsum(overflow) * _OVERFLOW_US
    real = ~overflow
    try:
        return Events.from_arrays(t[real], x[real], y[real], high[real] >> 7, height, width)
    except ValueError as error:
        raise ValueError(f"{path} is not a recording of this format or sensor. {error}") from error


def write_bin(path: str | Path, events: Events) -> None:
    """Write a recording in the format that `read_bin` reads (times below 2**23 us = 8.4 s, no overflow events)."""
    last = int(events.t[-1]) if len(events) else 0
    if events.height > _OVERFLOW_ROW or events.width > 256 or len(events) == 0 or last > _MAX_TIME_US:
        raise ValueError(
            f"{len(events)} events up to {last} us of a sensor of {events.height} x {events.width} do not fit the "
            f"format: it holds 1 or more events, {_OVERFLOW_ROW} rows, 256 columns and times to {_MAX_TIME_US} us. "
            "PackedEvents.save takes any."
        )
    t, x, y, p = (column.cpu().numpy().astype(np.int64) for column in (events.t, events.x, events.y, events.p))
    data = np.stack((x, y, p << 7 | t >> 16, t >> 8 & 0xFF, t & 0xFF), axis=1)
    data.astype(np.uint8).tofile(path)
