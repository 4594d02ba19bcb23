"""WAV files, and files that are none."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.datasets.sounds import write_wav

from spikeloom.datasets import read_wav


def test_samples_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes(b"\x00\x00\x00\x40\x00\x80\xff\x7f")
    samples, rate = read_wav(path, 8000)
    assert rate == 8000
    assert samples.dtype == torch.float32
    assert samples.tolist() == [0.0, 0.5, -1.0, 32767 / 32768]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ({"channels": 2}, "has 2 channels of 16 bits; expected one of 16 bits"),
        ({"bits": 8}, "1 channels of 8 bits"),
        ({"rate": 44100}, "sampled at 44100 Hz; expected 16000 Hz. Resample it"),
        ({"samples": 0}, "holds 0 samples"),
    ],
    ids=["stereo", "8-bit", "rate", "empty"],
)
def test_other_sound_is_refused(tmp_path: Path, kind: dict[str, Any], says: str) -> None:
    path = write_wav(tmp_path / "a.wav", **{"samples": 100, **kind})
    with pytest.raises(ValueError, match=says):
        read_wav(path, 16000)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", 100)
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match="holds 75 samples; its header promises 100"):
        read_wav(path)
    for data in (whole[:20], b"", b"<html>"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a whole WAV file"):
            read_wav(path)
