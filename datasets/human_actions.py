"""Recordings of human actions in numbered class folders: PAF and E-FAction.

    PAF         DAVIS346, 346 x 260, AEDAT 2.0, 10 classes, 450 recordings
    E-FAction   DAVIS346, 346 x 260, AEDAT 4, 128 classes by the paper of SpikMamba, 1,024 recordings

PAF: S. Miao et al. 2019, "Neuromorphic Vision Datasets for Pedestrian Detection, Action Recognition, and Fall
Detection", Frontiers in Neurorobotics 13:38. E-FAction: as used by SpikMamba, arXiv:2410.16746, whose code labels both
by class folder, number - 1. Neither has a split that is public. Two lists in the root, `train.txt` and `test.txt`, of
paths below it, one a line, say which recordings are which; without them our rule holds: of each class, in the order of
names, every fifth recording tests, beginning with the fifth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from spikeloom.datasets.aedat4 import read_aedat4
from spikeloom.datasets.events import Events
from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.raw_columns import to_events

HEIGHT, WIDTH = 260, 346
SPLIT_RULE = "of each class every fifth recording, by name, tests, so a class needs 5 recordings or more"

_FOLDER = re.compile(r"(?:[A-Za-z]+[_ -]?)?(\d{1,4})")
_MAGIC = b"#!AER-DAT2.0"
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
"""What no line of text holds."""
_NO_PIXEL, _X, _Y, _POLARITY = 0x8000_0000, 0x003F_F000, 0x7FC0_0000, 0x800


def read_davis346(path: str | Path) -> Events:
    """Read the pixels' events of an AEDAT 2.0 file of a DAVIS346; times count from the earliest event.

    Lines that begin with '#', then 8 bytes an event, big-endian: address, microseconds. Bit 31 of the address marks
    what is no pixel's event (frames, inertial data); bits 22 to 30 are y, 12 to 21 are 345 - x, bit 11 is 1 - p: the
    orientation and polarity of SpikMamba's code. Events off the sensor are left out, as there.

    Raises:
        ValueError: another format, or a file that was cut off.
    """
    data = Path(path).read_bytes()
    if not data.startswith(_MAGIC):
        raise ValueError(f"{path} begins with {data[:12]!r}; an AEDAT 2.0 file begins with '#!AER-DAT2.0'.")
    start = _events_from(path, data)
    if (len(data) - start) % 8:
        raise ValueError(
            f"{path} has {len(data) - start} bytes behind its header, which ends at byte {start}; expected a multiple "
            "of 8. The copy or download was probably cut off."
        )
    address, t = np.frombuffer(data, dtype=">u4", offset=start).reshape(-1, 2).T.astype(np.int64)
    x, y = WIDTH - 1 - ((address & _X) >> 12), (address & _Y) >> 22
    kept = ((address & _NO_PIXEL) == 0) & (x >= 0) & (x < WIDTH) & (y < HEIGHT)
    p = 1 - ((address & _POLARITY) >> 11)
    return to_events(path, t[kept], x[kept], y[kept], p[kept], HEIGHT, WIDTH, rebase=True)


def _events_from(path: str | Path, data: bytes) -> int:
    """The byte behind the header's lines. The first event's can be a '#', too (y = 140 to 143): no line has its zeros.

    Raises:
        ValueError: the file ends within a line.
    """
    start = 0
    while data[start : start + 1] == b"#":
        end = data.find(b"\n", start)
        if _CONTROL.search(data, start, len(data) if end < 0 else end):
            break
        if end < 0:
            raise ValueError(f"{path} ends at byte {len(data)}, within the line of its header from byte {start} on.")
        start = end + 1
    return start


def _read_aedat4(path: str | Path) -> Events:
    return read_aedat4(path, HEIGHT, WIDTH)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


class NumberedActions(Dataset[tuple[Events, int]]):
    """The recordings of a split as a data set of (Events, label), ordered by class; read when asked for.

    labels: `[N]` int64, number of the class folder - 1. files: their paths. says: one line on what was found.

    Args:
        root: holds a folder for each class, `<number>` or `<word><number>`, with recordings at any depth.
        split: "train" or "test", see the module.

    Raises:
        FileNotFoundError: class folders, recordings or listed files are missing; says what to download.
        ValueError: an unknown split; a class folder whose number is no class; a recording that is listed twice.
    """

    name: ClassVar[str]
    classes: ClassVar[int]
    expected: ClassVar[int]
    suffix: ClassVar[str] = ".aedat4"
    page: ClassVar[str]
    read: ClassVar[staticmethod[[str | Path], Events]]

    def __init__(self, root: str | Path, split: Literal["train", "test"] = "train") -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split is {split!r}; expected 'train' or 'test'.")
        self.root = Path(root)
        found = self._recordings()
        lists = [self.root / f"{part}.txt" for part in ("train", "test")]
        if any(path.is_file() for path in lists):
            chosen = self._listed(split, found)
            rule = f"{split}.txt"
        else:
            tests = {path for files in found.values() for path in files[4::5]}
            kept = [(path, label) for label, files in found.items() for path in files]
            chosen = [(path, label) for path, label in kept if (path in tests) == (split == "test")]
            rule = "every fifth of a class tests, which is our rule"
        self.files = [path for path, _ in chosen]
        self.labels = torch.tensor([label for _, label in chosen], dtype=torch.int64)
        count = sum(len(files) for files in found.values())
        gap = "" if count >= self.expected else f"; partial: {count:,} of {self.expected:,} recordings were found"
        self.says = f"{self.name} {split}: {len(self):,} recordings of {len(found)} classes ({rule}){gap}"

    def _recordings(self) -> dict[int, list[Path]]:
        """Sorted files by label."""
        found: dict[int, list[Path]] = {}
        folders = sorted(self.root.iterdir()) if self.root.is_dir() else []
        for folder in folders:
            number = _FOLDER.fullmatch(folder.name)
            if not folder.is_dir() or number is None:
                continue
            label = int(number[1]) - 1
            if not 0 <= label < self.classes or label in found:
                why = "is there twice" if label in found else f"is not 1 to {self.classes}"
                raise ValueError(f"{folder}: class {label + 1} {why}; expected a folder for each class of {self.name}.")
            found[label] = sorted(path for path in folder.rglob(f"*{self.suffix}") if path.is_file())
        if not any(found.values()):
            raise FileNotFoundError(f"{self.root} has no <class number>/...{self.suffix}. {self._help()}")
        return dict(sorted(found.items()))

    def _listed(self, split: str, found: dict[int, list[Path]]) -> list[tuple[Path, int]]:
        """Those of a list of paths below the root."""
        path, other = (self.root / f"{part}.txt" for part in (split, "test" if split == "train" else "train"))
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}, only the other part's list; expected both lists, or none.")
        labels = {file: label for label, files in found.items() for file in files}
        names = _lines(path)
        both = Counter(Path(name) for name in (*names, *(_lines(other) if other.is_file() else ())))
        twice = [str(name) for name, count in both.items() if count > 1]
        if twice:
            raise ValueError(
                f"{path} and {other.name} have {len(twice)} recordings twice ({', '.join(twice[:3])}); expected each "
                "in one list, once: what tests must not train."
            )
        missing = [name for name in names if self.root / name not in labels]
        if missing or not names:
            raise FileNotFoundError(
                f"{path} lists {len(names)} recordings, of which {len(missing)} are not in the class folders of "
                f"{self.root} ({', '.join(missing[:3])}). {self._help()}"
            )
        return [(self.root / name, labels[self.root / name]) for name in names]

    def _help(self) -> str:
        return (
            f"Expected ROOT/<1 to {self.classes}>/<name>{self.suffix}, {self.expected:,} recordings of {self.name}, "
            f"class folders numbered as in its documentation. Get them from {self.page} and unpack them into ROOT."
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        return self.read(self.files[index]), int(self.labels[index])

    def pack(self, indices: Sequence[int] | None = None) -> PackedEvents:
        """Read all recordings (or those of `indices`) into one store, labels included."""
        chosen = list(range(len(self)) if indices is None else indices)
        return PackedEvents.from_events([self[index][0] for index in chosen], self.labels[chosen])


class PAF(NumberedActions):
    """PAF's action recordings, AEDAT 2.0, ten classes; see `NumberedActions`."""

    name, classes, expected, suffix = "PAF", 10, 450, ".aedat"
    page = "https://doi.org/10.3389/fnbot.2019.00038 (the article links to the files)"
    read = staticmethod(read_davis346)


class EFAction(NumberedActions):
    """E-FAction's recordings, AEDAT 4, 128 classes; see `NumberedActions`."""

    name, classes, expected, suffix = "E-FAction", 128, 1024, ".aedat4"
    page = "the authors of the data set (SpikMamba's repository, Typistchen/SpikMamba, names none)"
    read = staticmethod(_read_aedat4)
