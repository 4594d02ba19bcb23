"""Labelled recordings in files: the common part of the data set classes, and any folder of ROOT/<class>/<file>."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from spikeloom.datasets.event_files import read_events
from spikeloom.datasets.events import Events
from spikeloom.datasets.packed import PackedEvents

SUFFIXES = (".aedat", ".aedat4", ".bin", ".bs2", ".dat", ".h5", ".hdf5", ".mat", ".npy", ".npz", ".raw")


class RecordingFiles(Dataset[tuple[Events, int]]):
    """A data set of (Events, label); each recording is read when asked for.

    files: the recordings. labels: `[N]` int64. classes: names of the labels. height, width: of the sensor.
    """

    def __init__(
        self, files: Sequence[Path], labels: Sequence[int], classes: Sequence[str], height: int, width: int
    ) -> None:
        self.files = list(files)
        self.labels = torch.tensor(list(labels), dtype=torch.int64)
        self.classes = tuple(classes)
        self.height, self.width = height, width

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        return self.read(self.files[index]), int(self.labels[index])

    def read(self, path: Path) -> Events:
        """One recording; times count from its first event."""
        return read_events(path, self.height, self.width)

    def pack(self, indices: Sequence[int] | None = None) -> PackedEvents:
        """Read all recordings (or those of `indices`) into memory, labels included; `pack_store` takes any number."""
        chosen = list(range(len(self)) if indices is None else indices)
        return PackedEvents.from_events([self[index][0] for index in chosen], self.labels[chosen])


class EventFolder(RecordingFiles):
    """Your own recordings: ROOT/<class>/<file>, in any format of `read_events`, classes in alphabetical order."""

    def __init__(self, root: str | Path, height: int, width: int) -> None:
        """List the files.

        Raises:
            FileNotFoundError: there is no ROOT, or no recording in any folder of it.
        """
        if not Path(root).is_dir():
            raise FileNotFoundError(f"There is no folder {root}. Expected recordings {root}/<class>/<file>.")
        files, labels, classes = listed(Path(root), SUFFIXES)
        if not files:
            elsewhere = next((file for file in sorted(Path(root).rglob("*")) if is_recording(file, SUFFIXES)), None)
            seen = f" {elsewhere} lies at another depth: each class is one folder in ROOT." if elsewhere else ""
            raise FileNotFoundError(
                f"There is no recording ROOT/<class>/<file> under {root}; files end in {', '.join(SUFFIXES)}.{seen}"
            )
        super().__init__(files, labels, classes, height, width)


def listed(root: Path, suffixes: Sequence[str]) -> tuple[list[Path], list[int], list[str]]:
    """Files, labels and class names of ROOT/<class>/<file>, folders and files in alphabetical order."""
    folders = sorted(folder for folder in root.glob("*") if folder.is_dir())
    found = [[f for f in sorted(folder.iterdir()) if is_recording(f, suffixes)] for folder in folders]
    classes = [folder.name for folder, files in zip(folders, found, strict=True) if files]
    found = [files for files in found if files]
    labels = [label for label, files in enumerate(found) for _ in files]
    return [file for files in found for file in files], labels, classes


def is_recording(path: Path, suffixes: Sequence[str] = SUFFIXES) -> bool:
    """Whether a file is one by its suffix; hidden ones, such as the `._<name>` that macOS adds, are none."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def first_of_each(labels: Sequence[int], fraction: float, first: bool) -> list[int]:
    """Numbers of the first `fraction`, rounded up, of each class, or of the rest; labels are in ascending order."""
    chosen = []
    for label in sorted(set(labels)):
        numbers = [i for i, each in enumerate(labels) if each == label]
        cut = math.ceil(len(numbers) * fraction)
        chosen += numbers[:cut] if first else numbers[cut:]
    return chosen


def inner(root: str | Path, *names: str) -> Path:
    """The first folder ROOT/<name> there is, else ROOT: archives unpack into a folder of their own name, or not."""
    return next((Path(root) / name for name in names if (Path(root) / name).is_dir()), Path(root))


def missing(name: str, root: str | Path, layout: str, page: str, files: str) -> FileNotFoundError:
    """What to say where the files of a data set are not there."""
    return FileNotFoundError(
        f"There is no {name} under {root}. Expected {layout}. Get {files} from {page}, by a browser, and unpack it "
        f"into {root} (`spikeloom.datasets.unpack_archive` does so safely)."
    )


def check_split(split: str, *known: str) -> None:
    """Raise unless the split is one of `known`."""
    if split not in known:
        raise ValueError(f"split is {split!r}; expected {' or '.join(map(repr, known))}.")
