"""DVS128 Gesture: 11 hand and arm gestures of 29 people, recorded under several lights by a 128 x 128 event camera.

A. Amir et al., "A Low Power, Fully Event-Based Gesture Recognition System", CVPR 2017 (CC BY 4.0).

The archive holds recordings `user<n>_<light>.aedat` (AEDAT 3.1), for each a table `user<n>_<light>_labels.csv` of
class (1 to 11), start and end in microseconds, and the lists `trials_to_train.txt` and `trials_to_test.txt` of
recordings. Each row of a table is one sample: its events with start <= t < end, label = class - 1. That gives 1,176
samples to train on and 288 to test, the numbers of SpikingJelly's and snnTorch's readers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from spikeloom.datasets.aedat3 import read_aedat3
from spikeloom.datasets.events import Events
from spikeloom.datasets.packed import PackedEvents

SENSOR = 128  # height and width in pixels
CLASSES = (
    "hand_clapping",
    "right_hand_wave",
    "left_hand_wave",
    "right_arm_clockwise",
    "right_arm_counter_clockwise",
    "left_arm_clockwise",
    "left_arm_counter_clockwise",
    "arm_roll",
    "air_drums",
    "air_guitar",
    "other_gestures",
)

_PAGE = "https://research.ibm.com/interactive/dvsgesture/"
_HELP = (
    "Expected ROOT/DvsGesture (or ROOT itself) with trials_to_train.txt, trials_to_test.txt and, for each recording "
    f"that they list, <name>.aedat and <name>_labels.csv. Get DvsGesture.tar.gz from {_PAGE} and unpack it into ROOT."
)


@dataclass(frozen=True)
class Gesture:
    """One sample: where it is in which recording, microseconds of the recording's clock; label = class - 1."""

    file: Path
    label: int
    start_us: int
    end_us: int


class DVSGesture(Dataset[tuple[Events, int]]):
    """The gestures of a split as a data set of (Events, label), ordered by recording; times count from their start.

    One access reads the whole recording: for training call `pack` (it reads each recording once) and save the result.
    gestures: the samples. labels: `[N]` int64.
    """

    def __init__(self, root: str | Path, split: Literal["train", "test"] = "train") -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; expected 'train' or 'test'.")
        folder = Path(root) / "DvsGesture" if (Path(root) / "DvsGesture").is_dir() else Path(root)
        trials = folder / f"trials_to_{split}.txt"
        if not trials.is_file():
            raise FileNotFoundError(f"There is no file {trials}. {_HELP}")
        files = [folder / line.strip() for line in trials.read_text().splitlines() if line.strip()]
        needed = [path for file in files for path in (file, labels_file(file))]
        missing = [path.name for path in needed if not path.is_file()]
        if missing or not files:
            raise FileNotFoundError(
                f"{trials} lists {len(files)} recordings; missing in {folder}: {', '.join(missing[:6])}"
                f"{' ...' if len(missing) > 6 else ''} ({len(missing)} files). {_HELP}"
            )
        self.gestures = [gesture for file in files for gesture in read_labels(file)]
        self.labels = torch.tensor([gesture.label for gesture in self.gestures], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.gestures)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        gesture = self.gestures[index]
        return cut(read_aedat3(gesture.file), gesture), gesture.label

    def pack(self, indices: Sequence[int] | None = None) -> PackedEvents:
        """Read all gestures (or those of `indices`) into one store, labels included."""
        chosen = list(range(len(self)) if indices is None else indices)
        clips: dict[int, Events] = {}
        for file in dict.fromkeys(self.gestures[index].file for index in chosen):
            recording = read_aedat3(file)
            for index in chosen:
                if self.gestures[index].file == file:
                    clips[index] = cut(recording, self.gestures[index])
        return PackedEvents.from_events([clips[index] for index in chosen], self.labels[chosen])


def labels_file(recording: Path) -> Path:
    """The table of a recording's gestures."""
    return recording.with_name(f"{recording.stem}_labels.csv")


def read_labels(recording: Path) -> list[Gesture]:
    """The gestures of a recording, in the order of its table."""
    path = labels_file(recording)
    header, *rows = path.read_text(encoding="utf-8-sig").splitlines() or [""]
    if [name.strip() for name in header.split(",")] != ["class", "startTime_usec", "endTime_usec"]:
        raise ValueError(f"{path} begins with {header!r}; expected the columns class,startTime_usec,endTime_usec.")
    gestures = []
    for number, row in enumerate(rows, start=2):
        if not row.strip():
            continue
        try:
            label, start, end = (int(cell) for cell in row.split(","))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is {row!r}; expected three whole numbers.") from error
        if not (1 <= label <= len(CLASSES) and 0 <= start < end):
            raise ValueError(
                f"{path}, line {number} has class {label} from {start} to {end} us; expected class 1 to "
                f"{len(CLASSES)} and 0 <= start < end."
            )
        gestures.append(Gesture(recording, label - 1, start, end))
    return gestures


def cut(recording: Events, gesture: Gesture) -> Events:
    """The events of a gesture, start <= t < end, with times from its start."""
    clip = recording.time_slice(gesture.start_us, gesture.end_us)
    return replace(clip, t=clip.t - gesture.start_us)


class EventClips(Dataset[tuple[Events, int]]):
    """Recordings `<root>/<label>/<name>.npz` as a data set of (Events, label), ordered by label and name.

    Each file holds the arrays t (microseconds, kept as stored), x, y, p of one recording: the layout of SpikingJelly's
    `events_np/train` and `events_np/test` for DVS128 Gesture. Label folders are numbers, 0 to classes - 1. labels:
    `[N]` int64.
    """

    def __init__(
        self, root: str | Path, height: int = SENSOR, width: int = SENSOR, classes: int = len(CLASSES)
    ) -> None:
        self.height, self.width = height, width
        folders = sorted(
            (path for path in Path(root).glob("*") if path.is_dir() and path.name.isdigit()),
            key=lambda path: int(path.name),
        )
        self.files = [file for folder in folders for file in sorted(folder.glob("*.npz"))]
        if not self.files:
            raise FileNotFoundError(
                f"There is no <label>/<name>.npz under {root}, labels being numbers. SpikingJelly writes such files of "
                f"DVS128 Gesture to ROOT/events_np/train and ROOT/events_np/test; the recordings are at {_PAGE}."
            )
        last = self.files[-1].parent
        if int(last.name) >= classes:
            raise ValueError(
                f"{last} is a folder of label {int(last.name)}; expected labels 0 to {classes - 1}. If the folders are "
                f"named by class, 1 to {classes}, rename them: labels are class - 1."
            )
        self.labels = torch.tensor([int(file.parent.name) for file in self.files], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        return read_clip(self.files[index], self.height, self.width), int(self.labels[index])

    def pack(self, indices: Sequence[int] | None = None) -> PackedEvents:
        """Read all clips (or those of `indices`) into one store, labels included."""
        chosen = list(range(len(self)) if indices is None else indices)
        return PackedEvents.from_events([self[index][0] for index in chosen], self.labels[chosen])


def read_clip(path: str | Path, height: int = SENSOR, width: int = SENSOR) -> Events:
    """Read one .npz of arrays t, x, y, p."""
    try:
        with Path(path).open("rb") as raw, np.lib.npyio.NpzFile(raw, allow_pickle=False) as file:
            missing = [name for name in ("t", "x", "y", "p") if name not in file.files]
            if missing:
                raise ValueError(f"it has the arrays {file.files}; expected t, x, y and p, missing {missing}")
            return Events.from_arrays(file["t"], file["x"], file["y"], file["p"], height, width)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a whole .npz of events on {height} x {width} pixels: {error}") from error
