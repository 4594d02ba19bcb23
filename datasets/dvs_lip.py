"""DVS-Lip: 100 words read from the lips of 40 speakers, 128 x 128; those of the test part are not in the other.

G. Tan et al., "Multi-Grained Spatio-Temporal Features Perceived Network for Event-Based Lip-Reading", CVPR 2022.
14,896 recordings to train on, 4,975 to test. Files are NumPy's, structured arrays of t, x, y, p.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from spikeloom.datasets.recording_files import RecordingFiles, check_split, inner, listed, missing

SENSOR = 128


class DVSLip(RecordingFiles):
    """The recordings of the official split, ordered by word and name; times count from the first event."""

    def __init__(self, root: str | Path, split: Literal["train", "test"] = "train") -> None:
        check_split(split, "train", "test")
        files, labels, classes = listed(inner(root, "DVS-Lip") / split, (".npy",))
        if not files:
            raise missing(
                f"DVS-Lip {split} split",
                root,
                f"ROOT/DVS-Lip/{split}/<word>/<i>.npy (100 words)",
                "https://sites.google.com/view/event-based-lipreading",
                "DVS-Lip.zip",
            )
        super().__init__(files, labels, classes, SENSOR, SENSOR)
