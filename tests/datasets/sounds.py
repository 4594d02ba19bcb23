"""WAV files for the tests."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np


def write_wav(
    path: Path, samples: int, rate: int = 16000, pitch: float = 440.0, channels: int = 1, bits: int = 16
) -> Path:
    """A tone with some noise, drawn by the name of the file."""
    rng = np.random.default_rng([ord(letter) for letter in path.name])
    sound = np.sin(2 * np.pi * pitch * np.arange(samples) / rate) * 0.4 + 0.05 * rng.standard_normal(samples)
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(rate)
        data = np.repeat((sound * 32767).astype("<i2"), channels)
        file.writeframes(data.tobytes() if bits == 16 else (data // 256 + 128).astype(np.uint8).tobytes())
    return path
