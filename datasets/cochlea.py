"""A simple cochlea of our own: sound -> spikes of a row of channels, counted per frame.

    x = s[n] - emphasis s[n - 1], divided by its root mean square           (level of each recording)
    y_c = gammatone filter of channel c, H(f) = (1 + i (f - f_c) / b_c)^-4 for f >= 0, b_c = 1.019 bandwidth ERB(f_c)
    r_c = mean over 1 ms of relu(y_c)                                        (half-wave rectification)
    I_c = gain ln(1 + r_c / floor)                                           (compression)
    v <- exp(-1 ms / tau) v + I,  spike if v >= 1,  then v <- min(v - 1, 1)  (leaky integrate-and-fire)

After a spike a neuron ignores its input for `refractory` ms. Centre frequencies are equally spaced in ERB rate,
21.4 log10(1 + 0.00437 f), and ERB(f) = 24.7 (0.00437 f + 1) Hz (Glasberg & Moore 1990,
doi:10.1016/0378-5955(90)90170-T); the filter is the usual approximation of a gammatone of fourth order (Patterson,
Robinson, Holdsworth, McKeown, Zhang, Allerhand 1992). Spikes are in the spirit of the Spiking Heidelberg Digits, whose
inner ear is another and much more detailed model.

Filters wider than an ERB (bandwidth 1.5) blur the harmonics of a voice and keep its formants, which makes unknown
speakers easier to understand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.datasets.sequences import Sequences

Progress = Callable[[int, int], None]

_ORDER = 4
_RINGING = 0.1  # seconds of zeros behind the sound, in which filters die away instead of wrapping around
_SILENCE = 1e-5  # root mean square below which a recording is not made louder any more
_CHUNK = 250


@dataclass(frozen=True)
class Cochlea:
    """Settings of the cochlea; calling `encode` applies it.

    rate: of the sound, Hz, a multiple of 1000. channels: N.
    low, high: centre frequencies of the first and last channel, Hz, below rate / 2.
    bandwidth: of the filters, in ERB. emphasis: of high frequencies, 0 (none) up to 1.
    floor: r at which compression sets in, where the sound has root mean square 1. gain: of the neurons' input.
    tau, refractory: of the neurons, ms. duration: of a frame, whole ms.
    """

    rate: int = 8000
    channels: int = 64
    low: float = 100.0
    high: float = 3800.0
    bandwidth: float = 1.5
    emphasis: float = 0.9
    floor: float = 0.01
    gain: float = 0.2
    tau: float = 10.0
    refractory: int = 1
    duration: int = 10

    def __post_init__(self) -> None:
        if self.rate < 2000 or self.rate % 1000 or self.channels < 2:
            raise ValueError(
                f"rate={self.rate}, channels={self.channels}; expected a multiple of 1000 Hz, 2000 or more, and 2 "
                "channels or more."
            )
        if not 0 < self.low < self.high < self.rate / 2:
            raise ValueError(
                f"low={self.low}, high={self.high}; expected 0 < low < high < {self.rate / 2:g} Hz, half the rate."
            )
        if (
            not all(value > 0 for value in (self.bandwidth, self.floor, self.gain, self.tau))
            or not 0 <= self.emphasis <= 1
        ):
            raise ValueError(
                f"bandwidth={self.bandwidth}, floor={self.floor}, gain={self.gain}, tau={self.tau}, "
                f"emphasis={self.emphasis}; expected numbers above 0, and an emphasis from 0 to 1."
            )
        if self.refractory < 0 or not 1 <= self.duration <= 255:
            raise ValueError(
                f"refractory={self.refractory}, duration={self.duration}; expected 0 ms or more and frames of 1 to 255 "
                "ms (a count is stored in a byte)."
            )

    def centres(self) -> Tensor:
        """Centre frequencies of the channels `[N]`, Hz, float64."""
        low, high = (21.4 * math.log10(1 + 0.00437 * f) for f in (self.low, self.high))
        return (10 ** (torch.linspace(low, high, self.channels, dtype=torch.float64) / 21.4) - 1) / 0.00437

    def filters(self, size: int) -> Tensor:
        """Responses of the channels `[N, size / 2 + 1]`, complex64, at the frequencies of an FFT of `size` samples."""
        centre = self.centres()[:, None]
        width = 1.019 * self.bandwidth * 24.7 * (0.00437 * centre + 1)
        frequencies = torch.arange(size // 2 + 1, dtype=torch.float64) * self.rate / size
        one = torch.ones((), dtype=torch.complex128)
        return ((one + 1j * (frequencies - centre) / width) ** -_ORDER).to(torch.complex64)

    def encode(self, recordings: Sequence[Tensor], progress: Progress | None = None) -> Sequences:
        """Recordings, each samples `[L]` floating point at `rate`, as counts of spikes per frame, uint8.

        A recording gets one frame per `duration` begun. Its spikes depend on nothing but itself.

        Args:
            progress: called with the recordings done and their number.

        Raises:
            ValueError: no recordings, or one that is not `[L]` finite samples.
        """
        _check(recordings)
        hop = self.rate // 1000
        steps = torch.tensor([-(-len(samples) // hop) for samples in recordings])
        frames = -(-steps // self.duration)
        offsets = torch.cat((frames.new_zeros(1), frames.cumsum(0)))
        values = torch.zeros(int(offsets[-1]), self.channels, dtype=torch.uint8)
        filters: dict[int, Tensor] = {}  # by size of the FFT
        by_length = steps.argsort(stable=True).tolist()
        for start in range(0, len(by_length), _CHUNK):
            chosen = by_length[start : start + _CHUNK]  # of similar lengths
            inputs = torch.zeros(int(steps[chosen[-1]]), len(chosen), self.channels)
            for place, index in enumerate(chosen):
                inputs[: steps[index], place] = self.input(recordings[index], filters)
            counts = self.count(inputs)
            for place, index in enumerate(chosen):
                values[offsets[index] : offsets[index + 1]] = counts[: frames[index], place]
            if progress is not None:
                progress(start + len(chosen), len(by_length))
        return Sequences(values, offsets)

    def input(self, samples: Tensor, filters: dict[int, Tensor] | None = None) -> Tensor:
        """What the neurons get per ms, `[ms, N]`, of samples `[L]`. filters: those computed so far, by size."""
        filters = {} if filters is None else filters
        x = samples.float()
        x = x - self.emphasis * F.pad(x[:-1], (1, 0))
        x = x / x.square().mean().sqrt().clamp(min=_SILENCE)
        hop = self.rate // 1000
        size = 1 << (len(x) + int(_RINGING * self.rate) - 1).bit_length()
        if size not in filters:
            filters[size] = self.filters(size)
        heard = torch.fft.irfft(torch.fft.rfft(x, size) * filters[size], size)  # [N, size]
        ms = -(-len(x) // hop)
        rectified = heard[:, : ms * hop].relu().view(self.channels, ms, hop).mean(-1)
        return self.gain * torch.log1p(rectified / self.floor).t()

    def count(self, inputs: Tensor) -> Tensor:
        """Spikes of the neurons per frame, uint8 `[frames, B, N]`, of inputs per ms `[ms, B, N]`."""
        decay = math.exp(-1 / self.tau)
        v = torch.zeros_like(inputs[0])
        resting = torch.zeros_like(v)  # ms of the refractory time to come
        spikes = torch.zeros(-(-len(inputs) // self.duration) * self.duration, *v.shape, dtype=torch.uint8)
        for ms, current in enumerate(inputs):
            v = decay * v + current * (resting == 0)
            fired = v >= 1
            spikes[ms] = fired
            v = torch.where(fired, (v - 1).clamp(max=1), v)
            resting = torch.where(fired, float(self.refractory), (resting - 1).clamp(min=0))
        return spikes.view(-1, self.duration, *v.shape).sum(1, dtype=torch.uint8)


def _check(recordings: Sequence[Tensor]) -> None:
    if not recordings:
        raise ValueError("No recordings were given; expected one or more.")
    for number, samples in enumerate(recordings):
        if samples.ndim != 1 or not len(samples) or not samples.is_floating_point():
            raise ValueError(
                f"Recording {number} is {samples.dtype} {list(samples.shape)}; expected floating-point samples [L] of "
                "one channel, one or more."
            )
        if not bool(samples.isfinite().all()):
            raise ValueError(f"Recording {number} has samples that are not finite.")
