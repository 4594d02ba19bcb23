"""N-Caltech101: Caltech 101 recorded by a moving ATIS event camera, 100 classes of objects and one of backgrounds.

G. Orchard, A. Jayawant, G. K. Cohen, N. Thakor, "Converting Static Image Datasets to Spiking Neuromorphic Datasets
Using Saccades", Frontiers in Neuroscience 9:437, 2015 (CC BY 4.0). Files have the format of N-MNIST; the sensor is
180 x 240 (pictures are smaller). There is no official split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from spikeloom.datasets.events import Events
from spikeloom.datasets.nmnist import read_bin
from spikeloom.datasets.recording_files import RecordingFiles, check_split, first_of_each, inner, listed, missing

HEIGHT, WIDTH = 180, 240
TRAIN_FRACTION = 0.9


class NCaltech101(RecordingFiles):
    """The recordings by class, in alphabetical order; times as stored.

    split: "all", or our split: of each class the first 90 %, rounded up, by name "train", the rest "test".
    """

    def __init__(self, root: str | Path, split: Literal["train", "test", "all"] = "all") -> None:
        check_split(split, "train", "test", "all")
        files, labels, classes = listed(inner(root, "Caltech101"), (".bin",))
        if not files:
            raise missing(
                "N-Caltech101",
                root,
                "ROOT/Caltech101/<class>/image_<i>.bin (101 classes)",
                "https://www.garrickorchard.com/datasets/n-caltech101",
                "Caltech101.zip (about 3 GB, MD5 66201824eabb0239c7ab992480b50ba3)",
            )
        chosen = range(len(files)) if split == "all" else first_of_each(labels, TRAIN_FRACTION, split == "train")
        super().__init__([files[i] for i in chosen], [labels[i] for i in chosen], classes, HEIGHT, WIDTH)

    def read(self, path: Path) -> Events:
        """One recording."""
        return read_bin(path, HEIGHT, WIDTH)
