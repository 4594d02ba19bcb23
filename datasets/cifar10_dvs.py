"""CIFAR10-DVS: 10,000 recordings of CIFAR-10 images that move on a monitor, seen by a 128 x 128 event camera.

H. Li, H. Liu, X. Ji, G. Li, L. Shi, "CIFAR10-DVS: An Event-Stream Dataset for Object Classification", Frontiers in
Neuroscience 11:309, 2017.

A file is AEDAT 2.0: lines that begin with '#' (the first with '#!AER-DAT2.0'), then 8 bytes an event, big-endian: a
32-bit address and a 32-bit time in microseconds. jAER's DVS128 camera lays the address out as

    bit 0         polarity, 0 = ON, 1 = OFF
    bits 1 .. 7   raw x
    bits 8 .. 14  raw y
    bits 15, 31   set: not a pixel's event (synchronisation, special); left out here

jAER itself shows raw x mirrored (column 127 - x) and counts raw y from the bottom (row 127 - y). Published results,
however, rest on SpikingJelly's conversion, which exchanges the axes: column = 127 - raw y, row = 127 - raw x, p = 1 for
ON. Recordings are read in that orientation; exchange `x` and `y` to see what jAER shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from spikeloom.datasets.events import Events
from spikeloom.datasets.image_classes import CIFAR10
from spikeloom.datasets.packed import PackedEvents

CLASSES = CIFAR10
SENSOR = 128  # height and width in pixels
TRAIN_FRACTION = 0.9
SPLIT_RULE = "of each class the first 90 %, rounded up, train and the rest test, so a class needs 10 recordings or more"

_PER_CLASS = 1_000
_NOT_A_PIXEL = 0x8000_8000
_HELP = (
    "Expected ROOT/<class>/cifar10_<class>_<i>.aedat, i = 0 to 999, for the classes "
    f"{', '.join(CLASSES)}. Get the ten archives (airplane.zip ... truck.zip) from "
    "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671 and unpack them into ROOT (or ROOT/extract)."
)


class CIFAR10DVS(Dataset[tuple[Events, int]]):
    """The recordings of a split as a data set of (Events, label), ordered by class; read when asked for.

    root: the folder of the ten class folders, or one with them in `extract/`. The set has no published split; the
    recipes of the Spikformer family train on the first 90 % of each class (rounded up) and test on the rest.
    order: what "first" means. "name": sorted by file name (0, 1, 10, 100, 101, ...), which is what those recipes do;
    "number": by i. labels: `[N]` int64. says: one line on what was found.
    """

    def __init__(
        self,
        root: str | Path,
        split: Literal["train", "test"] = "train",
        order: Literal["name", "number"] = "name",
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; expected 'train' or 'test'.")
        if order not in ("name", "number"):
            raise ValueError(f"order is {order!r}; expected 'name' or 'number'.")
        folder = Path(root) / "extract" if (Path(root) / "extract").is_dir() else Path(root)
        missing = [name for name in CLASSES if not (folder / name).is_dir()]
        if missing:
            raise FileNotFoundError(f"{folder} has no folder {', '.join(missing)}. {_HELP}")
        self.files: list[Path] = []
        labels: list[int] = []
        found = 0
        for label, name in enumerate(CLASSES):
            files = _recordings(folder / name, name, order)
            first = math.ceil(len(files) * TRAIN_FRACTION)
            chosen = files[:first] if split == "train" else files[first:]
            self.files += chosen
            labels += [label] * len(chosen)
            found += len(files)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        whole = _PER_CLASS * len(CLASSES)
        gap = f"; partial: {found:,} of {whole:,} recordings were found" if found < whole else ""
        self.says = f"CIFAR10-DVS {split}: {len(self.files):,} recordings{gap}"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        return read_aedat2(self.files[index]), int(self.labels[index])

    def pack(self, indices: Sequence[int] | None = None) -> PackedEvents:
        """Read all recordings (or those of `indices`) into one store, labels included."""
        chosen = list(range(len(self)) if indices is None else indices)
        return PackedEvents.from_events([self[index][0] for index in chosen], self.labels[chosen])


def read_aedat2(path: str | Path, *, rebase: bool = True) -> Events:
    """Read one AEDAT 2.0 recording of a DVS128 (see the module's header).

    rebase: times count from the earliest event; False: the times of the file.
    """
    data = Path(path).read_bytes()
    start = _header_bytes(data)
    if start == 0:
        raise ValueError(
            f"{path} begins with {data[:12]!r}; an AEDAT 2.0 file begins with the line '#!AER-DAT2.0'. Is it another "
            "file under this name?"
        )
    if (len(data) - start) % 8:
        raise ValueError(
            f"{path} has {len(data) - start} bytes after its header; expected a whole number of 8-byte events, "
            f"{(len(data) - start) // 8 * 8} or {(len(data) - start) // 8 * 8 + 8}. The copy or download was probably "
            "cut off: unpack the archive again."
        )
    address, t = np.frombuffer(data, dtype=">u4", offset=start).reshape(-1, 2).T.astype(np.int64)
    pixel = (address & _NOT_A_PIXEL) == 0
    address, t = address[pixel], t[pixel]
    raw_x, raw_y = address >> 1 & 0x7F, address >> 8 & 0x7F
    if rebase:
        t = t - t.min(initial=2**32)
    return Events.from_arrays(t, SENSOR - 1 - raw_y, SENSOR - 1 - raw_x, 1 - (address & 1), SENSOR, SENSOR)


def _header_bytes(data: bytes) -> int:
    """Length of the header; 0 where it is not of AEDAT 2.0."""
    if not data.startswith(b"#!AER-DAT2.0"):
        return 0
    end = 0
    while data[end : end + 1] == b"#":
        line_end = data.find(b"\n", end)
        if line_end < 0:
            return 0
        end = line_end + 1
    return end


def _recordings(folder: Path, name: str, order: str) -> list[Path]:
    """The recordings of one class, in order."""
    prefix = f"cifar10_{name}_"
    files = sorted(file for file in folder.glob(f"{prefix}*.aedat") if file.stem[len(prefix) :].isdigit())
    if not files:
        raise FileNotFoundError(f"There is no recording {prefix}<i>.aedat in {folder}. {_HELP}")
    return files if order == "name" else sorted(files, key=lambda file: int(file.stem[len(prefix) :]))
