"""HARDVS: 300 classes of human activity, 107,646 recordings of about 5 s by a DAVIS346.

X. Wang et al., "HARDVS: Revisiting Human Activity Recognition with Dynamic Vision Sensors", AAAI 2024,
arXiv:2211.09648. The compact files are .npz of t, x, y, p; the official lists train_label.txt, val_label.txt and
test_label.txt hold a line `action_001/dvSave-... LABEL` for each recording. The class is the folder's number less 1.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from spikeloom.datasets.recording_files import RecordingFiles, check_split, inner, missing

CLASSES = tuple(f"action_{i:03}" for i in range(1, 301))
HEIGHT, WIDTH = 260, 346
_LINE = re.compile(r"(action_[0-9]{3})/([A-Za-z0-9_.\-]+)(\s.*)?")
_SUFFIXES = (".npz", ".aedat4")


class HARDVS(RecordingFiles):
    """The recordings of an official list, in its order; times count from the first event."""

    def __init__(self, root: str | Path, split: Literal["train", "val", "test"] = "train") -> None:
        check_split(split, "train", "val", "test")
        folder = inner(root, "MINI_HARDVS_files", "extract")
        lists = [place / f"{split}_label.txt" for place in (folder, Path(root))]
        path = next((file for file in lists if file.is_file()), None)
        if path is None:
            raise missing(
                f"HARDVS {split} split",
                root,
                f"ROOT/{split}_label.txt and ROOT/action_001/*.npz ... ROOT/action_300/*.npz",
                "https://github.com/Event-AHU/HARDVS",
                f"{split}_label.txt and MINI_HARDVS_files.zip (compact event files), with the archive of each action;",
            )
        files, labels = [], []
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if line.strip():
                found = _LINE.fullmatch(line.strip())
                if found is None or found[1] not in CLASSES or ".." in found[2]:
                    raise ValueError(f"{path}, line {number} is {line!r}; expected `action_001/NAME LABEL`.")
                files.append(_file(folder / found[1], found[2], path, number))
                labels.append(CLASSES.index(found[1]))
        super().__init__(files, labels, CLASSES, HEIGHT, WIDTH)


def _file(folder: Path, name: str, path: Path, number: int) -> Path:
    """The recording of a line of the list."""
    tried = [folder / name] if name.endswith(_SUFFIXES) else [folder / f"{name}{suffix}" for suffix in _SUFFIXES]
    found = next((file for file in tried if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{path}, line {number} names {tried[0]}, which is not there. Unpack {folder.name}.zip."
        )
    return found
