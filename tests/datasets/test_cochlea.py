"""Sound as spikes: the channel of a tone, the neuron by hand, levels, independence of the other recordings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.datasets import Cochlea


def tone(frequency: float, samples: int = 2400, rate: int = 8000) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * frequency * torch.arange(samples) / rate)


def speech_like(seed: int, samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, generator=generator)
    return noise * torch.sin(torch.arange(samples) / 300) * 0.2


@pytest.mark.parametrize("frequency", [150.0, 500.0, 1200.0, 3000.0])
@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_tone_is_loudest_in_its_channel(frequency: float, rate: int) -> None:
    cochlea = Cochlea(rate=rate)
    heard = cochlea.input(tone(frequency, rate // 2, rate))
    assert heard.shape == (500, 64)
    nearest = int((cochlea.centres() - frequency).abs().argmin())
    assert abs(int(heard[100:400].mean(0).argmax()) - nearest) <= 1
    counts = cochlea.encode([tone(frequency, rate // 2, rate)]).values[5:].float().mean(0)
    assert counts[nearest] > counts.max() - 0.2  # neighbours of a loud tone fire nearly as often


def test_channels_are_equally_spaced_in_erb_rate() -> None:
    centres = Cochlea(channels=10, low=200.0, high=3000.0).centres()
    assert (centres[0].item(), centres[-1].item()) == pytest.approx((200.0, 3000.0))
    steps = (21.4 * torch.log10(1 + 0.00437 * centres)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(9))


def test_the_filter_is_a_gammatone() -> None:
    """One at the centre, -12 dB at a width from it (fourth order), and the shape of t^3 exp(-2 pi b t) in time."""
    cochlea = Cochlea(channels=3, low=500.0, high=2000.0, bandwidth=1.0)
    size = 8000  # one bin per Hz
    gain = cochlea.filters(size).abs()
    centre = 500
    width = 1.019 * 24.7 * (0.00437 * centre + 1)
    assert gain[0, centre].item() == pytest.approx(1, abs=1e-3)
    assert gain[0, centre + round(width)].item() == pytest.approx(0.25, abs=0.01)
    click = torch.fft.irfft(cochlea.filters(size)[0], size)
    t = torch.arange(size, dtype=torch.float64) / 8000
    shape = t**3 * torch.exp(-2 * math.pi * width * t) * torch.cos(2 * math.pi * 500 * t)
    assert torch.corrcoef(torch.stack((click.double(), shape)))[0, 1] > 0.99


def by_hand(inputs: list[float], tau: float, refractory: int) -> list[int]:
    v, rest, spikes = 0.0, 0, []
    for current in inputs:
        v = v * math.exp(-1 / tau) + (current if rest == 0 else 0.0)
        rest = max(rest - 1, 0)
        spikes.append(int(v >= 1))
        if v >= 1:
            v, rest = min(v - 1, 1.0), refractory
    return spikes


@pytest.mark.parametrize("refractory", [0, 1, 3])
def test_the_neuron_by_hand(refractory: int) -> None:
    cochlea = Cochlea(tau=7.0, refractory=refractory, duration=5)
    inputs = torch.rand(33, 2, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.1, 0.6, 3.0])
    counts = cochlea.count(inputs)
    assert (counts.shape, counts.dtype) == ((7, 2, 3), torch.uint8)
    for b in range(2):
        for n in range(3):
            spikes = by_hand(inputs[:, b, n].tolist(), 7.0, refractory)
            sums = [sum(spikes[start : start + 5]) for start in range(0, 33, 5)]
            assert counts[:, b, n].tolist() == sums


def test_the_level_of_a_recording_does_not_matter() -> None:
    cochlea, sound = Cochlea(), speech_like(0, 3000)
    torch.testing.assert_close(cochlea.input(sound), cochlea.input(sound * 0.01), atol=1e-4, rtol=1e-4)
    assert not cochlea.encode([torch.zeros(2000)]).values.any()


def test_a_recording_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit, in any order, in any piece, next to longer ones."""
    monkeypatch.setattr("spikeloom.datasets.cochlea._CHUNK", 3)
    cochlea = Cochlea(channels=20)
    lengths = (3001, 800, 1, 5000, 2400, 79, 81)
    sounds = [speech_like(seed, samples) for seed, samples in enumerate(lengths)]
    calls: list[tuple[int, int]] = []
    together = cochlea.encode(sounds, progress=lambda done, total: calls.append((done, total)))
    assert together.lengths.tolist() == [-(-samples // 80) for samples in lengths]
    assert (together.values.dtype, together.channels) == (torch.uint8, 20)
    backwards = cochlea.encode(sounds[::-1])
    for number, sound in enumerate(sounds):
        assert torch.equal(together[number], cochlea.encode([sound]).values)
        assert torch.equal(together[number], backwards[-1 - number])
    assert calls == [(3, 7), (6, 7), (7, 7)]
    assert int(together.values.sum()) > 100


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rate": 11025}, "rate=11025"),
        ({"channels": 1}, "2 channels or more"),
        ({"high": 4000.0}, "high < 4000 Hz, half the rate"),
        ({"low": 0.0}, "low=0.0"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"gain": float("nan")}, "gain=nan"),
        ({"emphasis": 1.1}, "emphasis=1.1"),
        ({"refractory": -1}, "refractory=-1"),
        ({"duration": 256}, "frames of 1 to 255"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Cochlea(**settings)


@pytest.mark.parametrize(
    ("sounds", "says"),
    [
        ([], "No recordings"),
        ([torch.zeros(9), torch.zeros(2, 9)], r"Recording 1 is torch.float32 \[2, 9\]"),
        ([torch.zeros(9, dtype=torch.int16)], "floating-point"),
        ([torch.zeros(0)], "one or more"),
        ([torch.tensor([0.0, torch.nan])], "not finite"),
    ],
    ids=["none", "stereo", "int16", "empty", "nan"],
)
def test_other_sound_is_refused(sounds: list[Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Cochlea().encode(sounds)
