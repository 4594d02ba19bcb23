"""ASL-DVS: 24 letters of American Sign Language (without J and Z), 4,200 recordings of 100 ms each, DAVIS240C.

Y. Bi, A. Chadha, A. Abbas, E. Bourtsoulatze, Y. Andreopoulos, "Graph-Based Object Classification for Neuromorphic
Vision Sensing", ICCV 2019. Files are MATLAB's, with columns ts, x, y, pol. The camera stood on its head: column = 239 -
x, row = 179 - y, as SpikingJelly has it. There is no official list; the paper draws 80 % to train at random.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from spikeloom.datasets.event_arrays import read_mat
from spikeloom.datasets.events import Events
from spikeloom.datasets.recording_files import RecordingFiles, check_split, first_of_each, inner, listed, missing

CLASSES = tuple("abcdefghiklmnopqrstuvwxy")
HEIGHT, WIDTH = 180, 240
TRAIN_FRACTION = 0.8


class ASLDVS(RecordingFiles):
    """The recordings by letter; times count from the first event.

    split: "all", or ours: of each letter the first 80 %, rounded up, by name "train", the rest "test".
    """

    def __init__(self, root: str | Path, split: Literal["train", "test", "all"] = "all") -> None:
        check_split(split, "train", "test", "all")
        files, labels, classes = listed(inner(root, "ICCV2019_DVS_dataset", "extract"), (".mat",))
        if tuple(classes) != CLASSES:
            raise missing(
                "ASL-DVS" if not classes else f"whole ASL-DVS (letters found: {''.join(classes)})",
                root,
                "ROOT/<letter>/<letter>_<i>.mat for the 24 letters a to y without j",
                "https://github.com/PIX2NVS/NVS2Graph (a link to Dropbox)",
                "ICCV2019_DVS_dataset.zip, and unpack the archive of each letter in it; get it",
            )
        chosen = range(len(files)) if split == "all" else first_of_each(labels, TRAIN_FRACTION, split == "train")
        super().__init__([files[i] for i in chosen], [labels[i] for i in chosen], classes, HEIGHT, WIDTH)

    def read(self, path: Path) -> Events:
        """One recording, upright."""
        events = read_mat(path, HEIGHT, WIDTH, rebase=True)
        return replace(events, x=WIDTH - 1 - events.x, y=HEIGHT - 1 - events.y)
