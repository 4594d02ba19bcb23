"""Simulated events: still images seen by a simulated event camera that makes three saccades, in the layout of N-MNIST.

The image moves along a closed triangle (one leg per 100 ms, with smooth start and stop) before a 34 x 34 sensor. Pixel
i emits an event whenever its log intensity has moved by one threshold from the level of its last event:

    u_i(s) = log(I_i(s) + eps) / theta_i          s = 0 .. steps, positions along the path
    n_i(s) = trunc(u_i(s + 1) - r_i(s))           events of this step, ON if n > 0, OFF if n < 0
    r_i(s + 1) = r_i(s) + n_i(s)                  r_i(0) = u_i(0) + phase_i

Times are uniform within the step. Background activity and a few hot pixels are added. The scheme of the motion is that
of Orchard et al. 2015, "Converting Static Image Datasets to Spiking Neuromorphic Datasets Using Saccades"; the path and
the rates were fitted to 700 N-MNIST recordings. These are simulated events: results on them are not results on N-MNIST.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spikeloom.datasets.packed import PackedEvents

Array = npt.NDArray[Any]

_CHUNK = 32  # recordings rendered together, at most 64 (see _keys): 32 x 34 x 34 floats stay in the cache
_LEAST_SPREAD = 0.25  # of a pixel's threshold, as a fraction of the nominal one


@dataclass(frozen=True)
class SaccadeConfig:
    """The simulated camera and its motion. Lengths in pixels, times in us, rates in events per second and pixel.

    corners_px: (x, y) offsets of the image at the corners of the closed path; one leg from each corner to the next.
    sensor_seed: fixes which pixels are hot and each pixel's threshold: all recordings come from one camera.
    swap_polarity: write p = 1 for darker. The N-MNIST files do so for bright digits (see `nmnist.py`): set it to train
    on simulated events and test on those files.
    """

    height: int = 34
    width: int = 34
    duration_us: int = 300_000
    steps: int = 60
    corners_px: tuple[tuple[float, float], ...] = ((-2.1, -1.5), (-0.4, 2.9), (2.7, -1.5))
    threshold: float = 0.31
    mismatch: float = 0.1
    eps: float = 0.15
    background_hz: float = 0.36
    hot_pixels: int = 40
    hot_hz: float = 3.0
    sensor_seed: int = 0
    swap_polarity: bool = False

    def __post_init__(self) -> None:
        for name in ("height", "width", "duration_us", "steps", "threshold", "eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"SaccadeConfig.{name} is {getattr(self, name)}; expected a number > 0.")
        for name in ("mismatch", "background_hz", "hot_pixels", "hot_hz"):
            if getattr(self, name) < 0:
                raise ValueError(f"SaccadeConfig.{name} is {getattr(self, name)}; expected a number >= 0.")
        if len(self.corners_px) < 2 or self.steps % len(self.corners_px):
            raise ValueError(
                f"SaccadeConfig has {self.steps} steps for {len(self.corners_px)} corners; expected at least two "
                "corners and a number of steps that they divide."
            )
        if self.hot_pixels > self.height * self.width:
            raise ValueError(f"{self.hot_pixels} hot pixels do not fit on {self.height} x {self.width} pixels.")
        # a sort key holds recording, time and pixel in 63 bits (see _keys); a step's events per pixel are int8
        if self.duration_us >= 2**32 or self.height * self.width > 2**24:
            raise ValueError("The simulator handles up to 2**32 us and 2**24 pixels; render shorter or smaller pieces.")
        if math.log1p(1 / self.eps) / (_LEAST_SPREAD * self.threshold) > 126:
            raise ValueError(
                f"With threshold {self.threshold} and eps {self.eps} one step may hold over 127 events of a pixel; "
                "raise either (the defaults are 0.31 and 0.15)."
            )

    def path(self) -> Tensor:
        """Offsets (x, y) of the image in pixels, `[steps + 1, 2]`: bell-shaped speed (minimum jerk) along each leg."""
        corners = torch.tensor(self.corners_px)
        tau = torch.arange(self.steps // len(corners)) / (self.steps // len(corners))  # [steps per leg] in [0, 1)
        travelled = (tau**3 * (10 - 15 * tau + 6 * tau**2))[:, None]
        legs = [a + (b - a) * travelled for a, b in zip(corners, corners.roll(-1, 0), strict=True)]
        return torch.cat((*legs, corners[:1]))


def render_saccades(images: Tensor, config: SaccadeConfig, generator: torch.Generator) -> PackedEvents:
    """Simulate one recording per image: `[B, h, w]`, uint8 0..255 or float 0..1, on the CPU.

    The image is centred on the sensor and must fit. One seed per image is drawn from `generator`.
    """
    return render_seeded(images, config, draw_seeds(len(images), generator))


def draw_seeds(count: int, generator: torch.Generator) -> Tensor:
    """One seed per recording, `[count]` int64."""
    return torch.randint(2**62, (count,), generator=generator, device=generator.device).cpu()


def render_seeded(images: Tensor, config: SaccadeConfig, seeds: Tensor) -> PackedEvents:
    """`render_saccades` with the seed `[B]` of each recording given: it depends on nothing else in the batch."""
    _check_images(images, config)
    sensor = _sensor(config)
    work = zip(images.split(_CHUNK), seeds.split(_CHUNK), strict=True)
    # NumPy releases the interpreter's lock while it computes. Torch would start its own threads for each small step;
    # on a busy machine their waiting for one another made this ten times slower.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        parts = list(pool.map(lambda part: _render_chunk(part[0].numpy(), config, sensor, part[1].tolist()), work))
    t, x, y, p, lengths = (torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))
    offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
    return PackedEvents(t, x, y, p, offsets, config.height, config.width)


def _check_images(images: Tensor, config: SaccadeConfig) -> None:
    if images.ndim != 3 or len(images) == 0 or images.device.type != "cpu":
        raise ValueError(
            f"images is {tuple(images.shape)} on {images.device}; expected at least one image, [B, h, w], on the CPU."
        )
    if images.shape[1] > config.height or images.shape[2] > config.width:
        raise ValueError(
            f"Images of {images.shape[1]} x {images.shape[2]} do not fit on a sensor of {config.height} x "
            f"{config.width}; give SaccadeConfig a larger sensor."
        )
    low, high = images.aminmax()
    if images.dtype != torch.uint8 and not (images.is_floating_point() and float(low) >= 0 and float(high) <= 1):
        raise ValueError(
            f"Images of {images.dtype} span {low.item()} to {high.item()}; expected uint8 0..255 or float 0..1."
        )


class _Sensor(NamedTuple):
    """What is fixed in one camera: gain `[H, W]` (1 / theta), phase `[H, W]`, noise rates `[H * W]` (Hz)."""

    gain: Array
    phase: Array
    rates: Array


def _sensor(config: SaccadeConfig) -> _Sensor:
    generator = torch.Generator().manual_seed(config.sensor_seed)
    shape = (config.height, config.width)
    spread = 1 + config.mismatch * torch.randn(shape, generator=generator)
    # Each pixel starts somewhere between two thresholds. Were the phase 0, the image's return to its start would bring
    # every pixel back onto a threshold at one instant: a burst of events at the very end.
    phase = torch.rand(shape, generator=generator) * 2 - 1
    rates = torch.full((config.height * config.width,), config.background_hz)
    rates[torch.randperm(len(rates), generator=generator)[: config.hot_pixels]] += config.hot_hz
    gain = 1 / (config.threshold * spread.clamp(min=_LEAST_SPREAD))
    return _Sensor(gain.numpy(), phase.numpy(), rates.numpy())


def _margin(config: SaccadeConfig) -> int:
    """Pixels added around the sensor so that every shifted view is a plain slice of the canvas."""
    return math.ceil(max(abs(offset) for corner in config.corners_px for offset in corner)) + 1


def _render_chunk(images: Array, config: SaccadeConfig, sensor: _Sensor, seeds: list[int]) -> tuple[Array, ...]:
    """Columns t, x, y, p `[N]` of the recordings of b images, one after the other, and events per recording `[b]`."""
    counts = _signed_counts(_scenes(images, config), config, sensor)  # [b, steps, H * W] int8
    b, steps, pixels = counts.shape
    crossed = np.flatnonzero(counts != 0)  # in order of recording, then step
    repeats = counts.reshape(-1)[crossed]
    cell, on = np.repeat(crossed, np.abs(repeats)), np.repeat(repeats > 0, np.abs(repeats))
    recording, step, pixel = cell // (steps * pixels), cell // pixels % steps, cell % pixels
    signal_lengths = np.bincount(recording, minlength=b)
    rates = sensor.rates.astype(np.float64)
    within, noise = _draws(signal_lengths.tolist(), rates.sum() * config.duration_us / 1e6, seeds)
    t = (step + within.astype(np.float64)) * (config.duration_us / steps)
    noise_lengths = np.array([len(draw) for draw in noise])
    noise_recording = np.repeat(np.arange(b), noise_lengths)
    u = np.concatenate(noise).astype(np.float64)  # [noise events, 3] uniform: time, pixel, polarity
    noise_pixel = np.searchsorted(rates.cumsum(), u[:, 1] * rates.sum(), side="right").clip(max=pixels - 1)
    noise_keys = _keys(noise_recording, u[:, 0] * config.duration_us, noise_pixel, u[:, 2] < 0.5)
    keys = np.concatenate((_keys(recording, t, pixel, on), noise_keys))
    keys.sort()
    y, x = np.divmod(keys >> 1 & 0xFFFFFF, config.width)
    p = (keys & 1 ^ config.swap_polarity).astype(np.uint8)
    return keys >> 25 & 0xFFFFFFFF, x.astype(np.int16), y.astype(np.int16), p, signal_lengths + noise_lengths


def _scenes(images: Array, config: SaccadeConfig) -> Array:
    """Images `[b, h, w]` as intensity + eps, centred on a canvas `[b, H + 2m, W + 2m]` with room for the motion."""
    b, h, w = images.shape
    m = _margin(config)
    top, left = m + (config.height - h) // 2, m + (config.width - w) // 2
    canvas = np.zeros((b, config.height + 2 * m, config.width + 2 * m), dtype=np.float32)
    canvas[:, top : top + h, left : left + w] = images
    if images.dtype == np.uint8:
        canvas /= 255
    return canvas + np.float32(config.eps)


def _signed_counts(scenes: Array, config: SaccadeConfig, sensor: _Sensor) -> Array:
    """Threshold crossings `[b, steps, H * W]` int8, positive for ON, of canvases `[b, H + 2m, W + 2m]`."""
    H, W, m = config.height, config.width, _margin(config)
    counts = np.empty((len(scenes), config.steps, H, W), dtype=np.int8)
    level = np.empty(0, dtype=np.float32)
    for step, (offset_x, offset_y) in enumerate(config.path().tolist()):
        # an image moved by +offset shows at pixel x what stood at x - offset
        x0, y0 = math.floor(-offset_x), math.floor(-offset_y)
        view = scenes[:, m + y0 : m + y0 + H + 1, m + x0 : m + x0 + W + 1]  # one row and column more, to interpolate
        rows = _between(view[:, :-1], view[:, 1:], -offset_y - y0)
        u = _between(rows[:, :, :-1], rows[:, :, 1:], -offset_x - x0)
        np.log(u, out=u)
        u *= sensor.gain
        if step == 0:
            level = u + sensor.phase
            continue
        u -= level
        crossed = np.trunc(u, out=u)
        level += crossed
        counts[:, step - 1] = crossed
    return counts.reshape(len(scenes), config.steps, H * W)


def _between(a: Array, b: Array, weight: float) -> Array:
    """a + weight * (b - a)."""
    mixed = b - a
    mixed *= np.float32(weight)
    mixed += a
    return mixed


def _draws(lengths: list[int], mean_noise: float, seeds: list[int]) -> tuple[Array, list[Array]]:
    """All random numbers, each recording's from its own seed: uniforms `[sum(lengths)]`, and per recording `[k, 3]`."""
    mean = torch.tensor(mean_noise)
    within, noise = [], []
    for length, seed in zip(lengths, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        noise.append(torch.rand(int(torch.poisson(mean, generator=generator)), 3, generator=generator).numpy())
        within.append(torch.rand(length, generator=generator).numpy())
    return np.concatenate(within), noise


def _keys(recording: Array, t: Array, pixel: Array, on: Array) -> Array:
    """One sortable int64 per event: recording in the chunk (6 bits), time (32), pixel (24), polarity (1)."""
    return ((recording << 32 | t.astype(np.int64)) << 24 | pixel) << 1 | on
