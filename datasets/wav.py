"""Sound from WAV files, 16-bit PCM of one channel, read by the standard library."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def read_wav(path: str | Path, rate: int | None = None) -> tuple[Tensor, int]:
    """Samples `[L]` of a file, float32 from -1 up to 1, and its sample rate in Hz.

    Args:
        rate: the one that is expected, Hz; None takes any.

    Raises:
        ValueError: no WAV file of PCM, several channels, other than 16 bits, another rate, no samples, or a file that
            is shorter than its header says.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, found, promised = file.getparams()[:4]
            data = file.readframes(promised)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is not a whole WAV file of PCM ({error}). Get or convert it again.") from error
    if channels != 1 or width != 2:
        raise ValueError(
            f"{path} has {channels} channels of {8 * width} bits; expected one of 16 bits. Convert it, for example by "
            "`sox IN -c 1 -b 16 OUT`."
        )
    if rate is not None and found != rate:
        raise ValueError(
            f"{path} is sampled at {found} Hz; expected {rate} Hz. Resample it, for example by `sox IN -r {rate} OUT`."
        )
    if len(data) != 2 * promised or not data:
        raise ValueError(
            f"{path} holds {len(data) // 2} samples; its header promises {promised}, and there must be one or more. "
            "The copy was probably cut off: get it again."
        )
    return torch.from_numpy(np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768), found
