"""Moving shapes: simulated events of actions that differ in nothing but which of two motions comes first.

A shape strokes from its place in one direction and back, rests for half of the recording, and strokes once more, a
quarter turn to the left of the first direction (class 0) or to the right of it (class 1). The first direction is drawn.
So in both classes either stroke goes in any of the four directions, and any two neighbouring ones are as likely, in one
order or in the other: single frames, and events summed over the recording, are distributed alike in both classes, up to
what a pixel's level r keeps of the stroke before. A recording that is mirrored, or whose strokes change places, is one
of the other class. (Which is why there are no more classes: two strokes have no third order.)

What tells is a memory from one stroke to the next, over a silence of noise events alone. A rest that is a share p of T
frames has floor(T p) - 1 whole ones at least where T divides `steps`, at T = 24 ten: a membrane that halves with each
frame keeps 1 / 1024 of the first stroke. That bounds the leak, not every network without a state: a neuron that a bias
makes fire regularly could keep its phase.

    directions: 0 right, 1 up, 2 left, 3 down; y downwards
    position(t) = start + reach sin^2(pi tau) direction         within a stroke, tau = 0 .. 1
    u_i(s) = contrast covered_i(s) / theta_i                    s = 0 .. steps; log intensity against the background
    n_i(s) = trunc(u_i(s + 1) - r_i(s)),  r_i(s + 1) = r_i(s) + n_i(s),  r_i(0) = u_i(0) + phase_i

n events of one pixel and step, ON if n > 0, OFF if n < 0, at times uniform within the step; noise events are added.
Shape, size, angle, place, reach, contrast and its sign, and the lengths of strokes and rests are drawn. All of this is
ours, made to ask for order and memory; results on it are results on simulated events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from spikeloom.datasets.packed import PackedEvents

Array = npt.NDArray[Any]

ORDERS = ((0, 1), (0, 3))
"""Directions of the two strokes by class, in quarter turns to the left from the first."""
CLASSES = ("turn to the left", "turn to the right")
"""From the first direction to the second."""
SHAPES = ("disc", "square", "bar", "cross")

_DIRECTIONS = np.array([[1, 0], [0, -1], [-1, 0], [0, 1]], dtype=np.float32)  # (x, y)
_MOST_THRESHOLDS = 30  # events of a pixel and step are counted in a byte, and its threshold may be a quarter
_CHUNK = 64  # recordings rendered together: 64 x 32 x 32 floats stay in the cache
_PARTS = ("train", "test")


@dataclass(frozen=True)
class MovingShapesConfig:
    """The simulated camera and the ranges that recordings are drawn from. Pixels, us, events per second and pixel.

    radius: half the extent of a shape. offset: of its place from the middle, largest per axis. reach: of a stroke.
    contrast: of log intensity against the background, of either sign. stroke, pause: lengths of a stroke, out and back,
    and of the rest between the two, as shares of duration_us (8 of T frames: 8 / T); what they leave is rest in front
    and behind, a quarter of it at least on either side. threshold: of the pixels, which differ by mismatch.
    """

    height: int = 32
    width: int = 32
    duration_us: int = 1_000_000
    steps: int = 96
    radius: tuple[float, float] = (2.5, 4.5)
    offset: float = 2.0
    reach: tuple[float, float] = (7.0, 10.0)
    contrast: tuple[float, float] = (0.5, 1.2)
    stroke: tuple[float, float] = (0.12, 0.17)
    pause: tuple[float, float] = (0.46, 0.54)
    threshold: float = 0.3
    mismatch: float = 0.1
    noise_hz: float = 0.1

    def __post_init__(self) -> None:
        for name in ("height", "width", "duration_us", "steps", "threshold"):
            if getattr(self, name) <= 0:
                raise ValueError(f"MovingShapesConfig.{name} is {getattr(self, name)}; expected a number > 0.")
        for name in ("offset", "noise_hz"):
            if getattr(self, name) < 0:
                raise ValueError(f"MovingShapesConfig.{name} is {getattr(self, name)}; expected a number >= 0.")
        if not 0 <= self.mismatch <= 0.5:
            raise ValueError(f"MovingShapesConfig.mismatch is {self.mismatch}; expected 0 to 0.5.")
        for name in ("radius", "reach", "contrast", "stroke", "pause"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"MovingShapesConfig.{name} is ({low}, {high}); expected 0 < lowest <= highest.")
        if self.contrast[1] > _MOST_THRESHOLDS * self.threshold:
            raise ValueError(
                f"MovingShapesConfig.contrast is up to {self.contrast[1]} at a threshold of {self.threshold}; expected "
                f"at most {_MOST_THRESHOLDS} thresholds."
            )
        if 2 * self.stroke[1] + self.pause[1] > 1:
            raise ValueError(
                f"MovingShapesConfig: two strokes of up to {self.stroke[1]} and a pause of up to {self.pause[1]} do "
                "not fit; expected 2 stroke + pause <= 1, as shares of the recording."
            )


def moving_shapes(
    part: Literal["train", "test"] = "train",
    config: MovingShapesConfig | None = None,
    *,
    per_class: int | None = None,
    seed: int = 0,
) -> PackedEvents:
    """Recordings of both classes (`CLASSES`), simulated, labels included, class by class.

    Parts of one seed have draws of their own, from one camera. One machine draws the same every time; on another, whose
    sine rounds differently, an event in a great many may differ.

    Args:
        part: train or test.
        config: the camera and what is drawn.
        per_class: recordings of each class; None is 1,500 to train and 300 to test.
        seed: of everything that is drawn.

    Raises:
        ValueError: a part of another name, fewer than one recording, a negative seed.
    """
    config = MovingShapesConfig() if config is None else config
    if part not in _PARTS:
        raise ValueError(f"part is {part!r}; expected 'train' or 'test'.")
    each = {"train": 1500, "test": 300}[part] if per_class is None else per_class
    if each < 1 or seed < 0:
        raise ValueError(f"moving_shapes got per_class={each}, seed={seed}; expected >= 1 and >= 0.")
    labels = np.repeat(np.arange(len(CLASSES)), each)
    camera = _camera(config, np.random.default_rng((seed, 0)))
    rng = np.random.default_rng((seed, 1 + _PARTS.index(part)))
    drawn = _draw(labels, config, rng)
    # one kind of shape is rendered at a time; `order` takes the recordings back to theirs
    by_shape = [np.flatnonzero(drawn.shape == kind) for kind in range(len(SHAPES))]
    chunks = [part for found in by_shape for part in np.array_split(found, -(-len(found) // _CHUNK)) if len(part)]
    columns = zip(*(_render(drawn, chunk, config, camera, rng) for chunk in chunks), strict=True)
    t, x, y, p, lengths = (torch.from_numpy(np.concatenate(column)) for column in columns)
    offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
    order = np.argsort(np.concatenate(chunks))
    packed = PackedEvents(t, x, y, p, offsets, config.height, config.width)
    return packed.select(torch.from_numpy(order)).with_labels(torch.from_numpy(labels))


class _Camera(NamedTuple):
    """Of each pixel, `[H, W]`: gain (1 / theta) and phase."""

    gain: Array
    phase: Array


def _camera(config: MovingShapesConfig, rng: np.random.Generator) -> _Camera:
    shape = config.height, config.width
    spread = (1 + config.mismatch * rng.standard_normal(shape, dtype=np.float32)).clip(min=0.25)
    return _Camera(1 / (np.float32(config.threshold) * spread), rng.random(shape, dtype=np.float32) * 2 - 1)


class _Drawn(NamedTuple):
    """What is drawn for N recordings; float32."""

    shape: Array
    """`[N]`, number in SHAPES."""
    radius: Array
    angle: Array
    contrast: Array
    """`[N]` each."""
    path: Array
    """`[steps + 1, N, 2]`, (x, y) of the shape's middle in pixels."""


def _draw(labels: Array, config: MovingShapesConfig, rng: np.random.Generator) -> _Drawn:
    n = len(labels)

    def uniform(low: float, high: float, *size: int) -> Array:
        return rng.uniform(low, high, (n, *size)).astype(np.float32)

    shape, first = rng.integers(len(SHAPES), size=n), rng.integers(4, size=n)
    directions = _DIRECTIONS[(first[:, None] + np.array(ORDERS)[labels]) % 4]  # [N, 2, 2]
    middle = np.array([config.width - 1, config.height - 1], dtype=np.float32) / 2
    start = middle + uniform(-config.offset, config.offset, 2)
    strokes, pause = uniform(*config.stroke, 2), uniform(*config.pause)
    rest = 1 - strokes.sum(1) - pause
    front = rest * uniform(0.25, 0.75)
    begin = np.stack((front, front + strokes[:, 0] + pause), 1)  # [N, 2], as shares of the recording
    end = begin + strokes
    now = np.linspace(0, 1, config.steps + 1, dtype=np.float32)[:, None, None]
    out = np.sin(np.float32(math.pi) * ((now - begin) / (end - begin)).clip(0, 1)) ** 2  # [steps + 1, N, 2]
    path = start + np.einsum("snk,nkx->snx", out * uniform(*config.reach, 2), directions)
    contrast = uniform(*config.contrast) * (rng.integers(2, size=n) * 2 - 1)
    columns = uniform(*config.radius), uniform(0, math.pi), contrast, path
    return _Drawn(shape, *(column.astype(np.float32) for column in columns))


def _render(
    drawn: _Drawn, chosen: Array, config: MovingShapesConfig, camera: _Camera, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array, Array]:
    """Columns t, x, y, p `[events]` of recordings of one kind of shape, one after the other, and events of each."""
    counts = _signed_counts(drawn, chosen, config, camera)  # [b, steps, H W]
    b, steps, pixels = counts.shape
    crossed = np.flatnonzero(counts)
    repeats = counts.reshape(-1)[crossed]
    cell, on = np.repeat(crossed, np.abs(repeats)), np.repeat(repeats > 0, np.abs(repeats))
    recording, step, pixel = cell // (steps * pixels), cell // pixels % steps, cell % pixels
    share = (step + rng.random(len(cell))) / steps
    noise = rng.poisson(config.noise_hz * config.duration_us / 1e6 * pixels, b)
    total = int(noise.sum())
    recording = np.concatenate((recording, np.repeat(np.arange(b), noise)))
    t = (np.concatenate((share, rng.random(total))) * config.duration_us).astype(np.int64)
    pixel = np.concatenate((pixel, rng.integers(pixels, size=total)))
    on = np.concatenate((on, rng.random(total) < 0.5))
    order = np.argsort(recording * config.duration_us + t, kind="stable")
    y, x = np.divmod(pixel[order], config.width)
    lengths = np.bincount(recording, minlength=b)
    return t[order], x.astype(np.int16), y.astype(np.int16), on[order].astype(np.uint8), lengths


def _signed_counts(drawn: _Drawn, chosen: Array, config: MovingShapesConfig, camera: _Camera) -> Array:
    """Threshold crossings `[b, steps, H W]` int8, positive for ON."""
    H, W = config.height, config.width
    rows, columns = np.arange(H, dtype=np.float32)[:, None], np.arange(W, dtype=np.float32)
    radius, angle, contrast = (values[chosen, None, None] for values in (drawn.radius, drawn.angle, drawn.contrast))
    cos, sin, gain = np.cos(angle), np.sin(angle), contrast * camera.gain
    kind = SHAPES[int(drawn.shape[chosen[0]])]
    counts = np.empty((len(chosen), config.steps, H, W), dtype=np.int8)
    level = np.empty(0, dtype=np.float32)
    for step, place in enumerate(drawn.path[:, chosen]):
        x, y = columns - place[:, 0, None, None], rows - place[:, 1, None, None]
        inside = _inside(kind, cos * x + sin * y, cos * y - sin * x, radius)
        u = gain * np.clip(inside + np.float32(0.5), 0, 1)
        if step == 0:
            level = u + camera.phase
            continue
        crossed = np.trunc(u - level)
        level += crossed
        counts[:, step - 1] = crossed
    return counts.reshape(len(chosen), config.steps, H * W)


def _inside(kind: str, x: Array, y: Array, radius: Array) -> Array:
    """Pixels inwards from the edge of a shape about the origin, negative outside; edges are one pixel wide."""
    if kind == "disc":
        distance: Array = radius - np.sqrt(x * x + y * y)
        return distance
    x, y = np.abs(x), np.abs(y)
    if kind == "square":
        return np.float32(0.85) * radius - np.maximum(x, y)
    along, across = radius - x, np.float32(0.4) * radius - y
    bar: Array = np.minimum(along, across)
    if kind == "bar":
        return bar
    return np.maximum(bar, np.minimum(radius - y, np.float32(0.4) * radius - x))
