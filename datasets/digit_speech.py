"""Spoken digits as spikes: WAV files `<digit>_<speaker>_<number>.wav` through the cochlea of `cochlea.py`.

The layout of the Free Spoken Digit Dataset (Z. Jackson et al., doi:10.5281/zenodo.1342401, CC BY-SA 4.0): English
digits, 8 kHz, 16 bits, 50 recordings of each digit by each of a few speakers. Two splits:

* the publisher's: recordings 0 ... 4 of each digit and speaker are the test part, all others the training part. Every
  speaker is in both, so the numbers are high;
* one speaker left out: all recordings of that speaker are the test part, those of the others the training part.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from spikeloom.datasets.cochlea import Cochlea, Progress
from spikeloom.datasets.image_classes import DIGITS
from spikeloom.datasets.sequences import Sequences
from spikeloom.datasets.wav import read_wav

TEST_RECORDINGS = 5

_NAME = re.compile(r"(\d)_(.+)_(\d+)")
_HELP = (
    "Expected ROOT (or ROOT/recordings) with files <digit>_<speaker>_<number>.wav, such as 7_jackson_32.wav. Get them "
    "from https://github.com/Jakobovski/free-spoken-digit-dataset."
)


class Recording(NamedTuple):
    """A file, its digit, speaker and number."""

    path: Path
    digit: int
    speaker: str
    number: int


def spoken_digits(
    root: str | Path,
    part: Literal["train", "test"] = "train",
    *,
    speaker: str | None = None,
    cochlea: Cochlea | None = None,
    progress: Progress | None = None,
) -> Sequences:
    """The recordings of a part as counts of spikes, uint8; labels are digits, groups number `digit_speakers(root)`.

    Args:
        speaker: the one to leave out of training and to test on; None takes the publisher's split.
        cochlea: its settings; None takes those of `Cochlea()`, 64 channels and 10 ms per frame.
        progress: called with the recordings done and their number.

    Raises:
        FileNotFoundError: no recordings; says where they are to be had.
        ValueError: a part or speaker that is not there, a file of another name, format or sample rate (other rates than
            8 kHz need `Cochlea(rate=...)`).
    """
    if part not in ("train", "test"):
        raise ValueError(f"part is {part!r}; expected 'train' or 'test'.")
    cochlea = Cochlea() if cochlea is None else cochlea
    there = digit_recordings(root)
    speakers = _speakers(there)
    if speaker is not None and (speaker not in speakers or len(speakers) < 2):
        raise ValueError(f"speaker is {speaker!r}; expected one of two or more: {root} has {', '.join(speakers)}.")
    chosen = [
        recording
        for recording in there
        if (recording.number < TEST_RECORDINGS if speaker is None else recording.speaker == speaker) == (part == "test")
    ]
    if not chosen:
        raise ValueError(
            f"{root} has no recording of the part {part!r}: numbers from {TEST_RECORDINGS} are trained on, those "
            "below are the test part. Pass speaker=NAME to split by speaker."
        )
    sounds = [read_wav(recording.path, cochlea.rate)[0] for recording in chosen]
    encoded = cochlea.encode(sounds, progress)
    labels = torch.tensor([recording.digit for recording in chosen])
    groups = torch.tensor([speakers.index(recording.speaker) for recording in chosen])
    return Sequences(encoded.values, encoded.offsets, labels, groups, DIGITS)


def digit_recordings(root: str | Path) -> list[Recording]:
    """The files of a folder, ordered by digit, speaker and number."""
    folder = Path(root) / "recordings" if (Path(root) / "recordings").is_dir() else Path(root)
    found = []
    for path in folder.glob("*.wav"):
        match = _NAME.fullmatch(path.stem)
        if match is None:
            raise ValueError(f"{path} is not named <digit>_<speaker>_<number>.wav. {_HELP}")
        found.append(Recording(path, int(match[1]), match[2], int(match[3])))
    if not found:
        raise FileNotFoundError(f"There is no .wav file in {folder}. {_HELP}")
    return sorted(found, key=lambda recording: recording[1:])


def digit_speakers(root: str | Path) -> tuple[str, ...]:
    """The speakers of a folder in alphabetical order, as `groups` number them."""
    return _speakers(digit_recordings(root))


def _speakers(recordings: list[Recording]) -> tuple[str, ...]:
    return tuple(sorted({recording.speaker for recording in recordings}))
