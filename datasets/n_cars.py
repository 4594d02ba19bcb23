"""N-CARS: cars and backgrounds seen by an ATIS camera behind a windscreen, 100 ms each, in regions of interest.

A. Sironi, M. Brambilla, N. Bourdis, X. Lagorce, R. Benosman, "HATS: Histograms of Averaged Time Surfaces for Robust
Event-based Object Classification", CVPR 2018. 7,940 cars and 7,482 backgrounds to train on, 4,396 and 4,211 to test
(the official split). Files are Prophesee .dat; regions are at most 100 x 120. The terms are non-commercial.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from spikeloom.datasets.events import Events
from spikeloom.datasets.prophesee_dat import read_dat
from spikeloom.datasets.recording_files import RecordingFiles, check_split, inner, missing

CLASSES = ("background", "cars")
HEIGHT, WIDTH = 100, 120


class NCARS(RecordingFiles):
    """The recordings of a split, ordered by class and name; labels: 0 background, 1 car; times as stored."""

    def __init__(self, root: str | Path, split: Literal["train", "test"] = "train") -> None:
        check_split(split, "train", "test")
        folder = inner(inner(root, "Prophesee_Dataset_n_cars", "N-cars"), f"n-cars_{split}", split)
        files = [(label, f) for label, name in enumerate(CLASSES) for f in sorted((folder / name).glob("*.dat"))]
        if {label for label, _ in files} != {0, 1}:
            raise missing(
                f"N-CARS {split} split",
                root,
                f"ROOT/n-cars_{split}/cars/*.dat and ROOT/n-cars_{split}/background/*.dat",
                "https://www.prophesee.ai/2018/03/13/dataset-n-cars/",
                "Prophesee_Dataset_n_cars.zip",
            )
        super().__init__([f for _, f in files], [label for label, _ in files], CLASSES, HEIGHT, WIDTH)

    def read(self, path: Path) -> Events:
        """One recording; the header's size, which is of the whole camera, is not used."""
        return read_dat(path, HEIGHT, WIDTH)
