"""Speech as log-mel frames, as the delay networks read Speech Commands: 16 kHz -> 8 kHz -> 101 frames of 140 filters.

    y[m] = sum_j h[j] x[2 m + j],  j = -13 ... 14                        (resampling by 2, a windowed sinc)
    h[j] = q cos(pi u / 12)^2 sinc(u),  u = clamp(j q, -6, 6),  q = 0.99 / 2
    power = |STFT|^2                                (256 samples, periodic Hann window, centred, every 80 samples)
    out[t, m] = 10 log10(max(filter_m . power[t], 1e-10))         (triangles equally spaced on the HTK mel scale)

With the published f_max of 14 kHz, far above what 8 kHz can hold, filters 87 ... 139 are empty and constant at -100 dB.
With 4 kHz seven narrow ones of the lower filters fall between two bins and are.
Data: Warden 2018, "Speech Commands", arXiv:1804.03209. Preparation: the code of arXiv:2306.17670.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLES, RATE, WINDOW, HOP = 16000, 16000, 256, 80
FLOOR = 1e-10
F_MIN = 50.0
"""Lower end of the filters, Hz."""


def log_mel(waveform: Tensor, sample_rate: int = RATE, n_mels: int = 140, f_max: float = 14000.0) -> Tensor:
    """A second of speech -> `[101, n_mels]` in dB, float32.

    Args:
        waveform: `[1, L]` or `[L]`, L <= 16000 samples; zeros fill it up.
        sample_rate: of the waveform, Hz.
        f_max: upper end of the filters, Hz; 14000 as published, 4000 is what the rate can hold.

    Raises:
        ValueError: another sample rate, more than a second, several channels, no filters, or an f_max up to 50 Hz.
    """
    if sample_rate != RATE:
        raise ValueError(f"log_mel got audio at {sample_rate} Hz; expected {RATE} Hz. Resample it first.")
    mono = waveform.squeeze(0) if waveform.ndim == 2 and waveform.shape[0] == 1 else waveform
    if mono.ndim != 1 or not 0 < len(mono) <= SAMPLES or not mono.is_floating_point():
        raise ValueError(
            f"log_mel got {waveform.dtype} {list(waveform.shape)}; expected one channel of floating-point samples, "
            f"[1, L] or [L], with L from 1 to {SAMPLES}. Cut or mix it first."
        )
    return log_mel_batch(F.pad(mono, (0, SAMPLES - len(mono)))[None], n_mels, f_max)[0]


def log_mel_batch(waveforms: Tensor, n_mels: int = 140, f_max: float = 14000.0) -> Tensor:
    """Seconds of speech `[B, 16000]` at 16 kHz -> `[B, 101, n_mels]` in dB, float32."""
    if waveforms.ndim != 2 or waveforms.shape[1] != SAMPLES or not waveforms.is_floating_point():
        raise ValueError(
            f"log_mel_batch got {waveforms.dtype} {list(waveforms.shape)}; expected floating-point [B, {SAMPLES}]."
        )
    window = torch.hann_window(WINDOW, dtype=torch.float64, device=waveforms.device)
    low = halved(waveforms.double())
    spectrum = torch.stft(low, WINDOW, HOP, window=window, center=True, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()  # [B, 129, 101]
    mel = mel_filters(n_mels, F_MIN, f_max).to(waveforms.device) @ power
    return (10 * torch.log10(mel.clamp(min=FLOOR))).mT.float().contiguous()


def halved(x: Tensor) -> Tensor:
    """Samples `[..., L]` at half their rate, `[..., L / 2]` rounded up."""
    q = 0.99 / 2
    j = torch.arange(-13, 15, dtype=x.dtype, device=x.device)
    u = (j * q).clamp(-6, 6)
    h = q * torch.cos(math.pi * u / 12).square() * torch.sinc(u)
    padded = F.pad(x, (13, 14 + x.shape[-1] % 2))
    return F.conv1d(padded.reshape(-1, 1, padded.shape[-1]), h[None, None], stride=2).view(*x.shape[:-1], -1)


def mel_filters(n_mels: int, f_min: float, f_max: float) -> Tensor:
    """Triangles `[n_mels, 129]` over the bins of 0 ... 4000 Hz, of height 1, on the HTK mel scale.

    Raises:
        ValueError: no filters, or ends that do not rise from 0 Hz on.
    """
    if n_mels < 1 or not 0 <= f_min < f_max < math.inf:
        raise ValueError(
            f"mel_filters got n_mels={n_mels}, f_min={f_min:g}, f_max={f_max:g}; expected a filter or more, and "
            "0 <= f_min < f_max Hz."
        )
    bins = torch.arange(WINDOW // 2 + 1, dtype=torch.float64) * (RATE / 2 / WINDOW)
    low, high = (2595 * math.log10(1 + f / 700) for f in (f_min, f_max))
    points = torch.linspace(low, high, n_mels + 2, dtype=torch.float64)
    edges = 700 * (10 ** (points / 2595) - 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp(min=0)
