"""Smooth random manifolds as spike times: classes that only timing can tell apart.

F. Zenke, T. P. Vogels 2021, "The Remarkable Robustness of Surrogate Gradient Learning for Instilling Complex Function
in Spiking Neural Networks", Neural Computation 33(4), doi:10.1162/neco_a_01367. Each class is a random manifold of D
dimensions in the space of N units; a point x in [0, 1]^D of it has the coordinates

    f_i(x) = prod_d sum_(k = 1 ... n) k^-alpha A_idk sin(2 pi (k x_d B_idk + C_idk)),     A, B, C uniform in [0, 1]

and unit i fires once, at step floor(g_i T), where g_i is f_i standardised to [0, 1] over the manifold. So every unit
fires exactly once in every sample: counts say nothing. The larger alpha, the smoother the manifold and the easier the
task. The series ends where k^-alpha falls below 1/1000, at 1000 terms at most.

Our reconstruction in two things: the range of f_i is that of 2,048 points of the manifold, drawn with it, and values
outside are clamped (so parts share their manifolds, whatever number of samples they have); and draws are ours, not
those of the published code.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeloom.datasets.sequences import Sequences

PARTS = ("train", "valid", "test")

_TERMS = 1000
_SMALLEST = 1e-3
_POINTS = 2048  # that the range of a manifold is taken from
_ELEMENTS = 250_000  # of one intermediate array, about what a cache holds


def random_manifolds(
    part: Literal["train", "valid", "test"] = "train",
    *,
    classes: int = 10,
    units: int = 20,
    dims: int = 2,
    alpha: float = 2.0,
    steps: int = 50,
    samples: int = 1000,
    seed: int = 0,
) -> Sequences:
    """Samples of random manifolds, uint8 zeros and ones, all of `steps` steps; class by class.

    Parts of one seed share the manifolds and have samples of their own. One machine draws the same every time; on
    another, whose sine rounds differently, a spike in a great many may move by a step. The time taken is that of
    classes x (samples + 2048) x units x dims x terms sines, where terms = 1000^(1 / alpha), at most 1000.

    Args:
        classes: manifolds. units: channels N. dims: D, of a manifold. alpha: smoothness. steps: T.
        samples: of each class. seed: of manifolds and samples.

    Raises:
        ValueError: a part of another name, or a number below 1 (2 for classes and steps; alpha must be above 0).
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; expected one of {', '.join(PARTS)}.")
    if classes < 2 or steps < 2 or min(units, dims, samples) < 1 or not alpha > 0 or seed < 0:
        raise ValueError(
            f"classes={classes}, units={units}, dims={dims}, alpha={alpha}, steps={steps}, samples={samples}, "
            f"seed={seed}; expected two or more classes and steps, one or more of units, dims and samples, an alpha "
            "above 0 and a seed of 0 or more."
        )
    terms = _terms(alpha)
    k = torch.arange(1, terms + 1, dtype=torch.float32)
    times = torch.empty(classes, samples, units, dtype=torch.int64)
    for number in range(classes):
        shapes = np.random.default_rng((seed, number))
        drawn = np.random.default_rng((seed, number, 1 + PARTS.index(part)))
        A, B, C = torch.from_numpy(shapes.random((3, units, dims, terms))).float()
        series = _Series(A * k**-alpha, k * B, C)
        ground = series.at(shapes.random((_POINTS, dims)))
        low, high = ground.amin(0), ground.amax(0)
        shares = (series.at(drawn.random((samples, dims))) - low) / (high - low)
        times[number] = (shares * steps).floor().clamp(0, steps - 1).long()
    labels = torch.arange(classes).repeat_interleave(samples)
    names = tuple(f"manifold {number}" for number in range(classes))
    return Sequences(*_spikes(times.flatten(0, 1), steps), labels, None, names)


def _terms(alpha: float) -> int:
    return min(math.ceil(_SMALLEST ** (-1 / alpha)), _TERMS) if alpha > 0.5 else _TERMS


class _Series(NamedTuple):
    """The coordinates of a manifold; columns `[units, dims, terms]` float32."""

    amplitudes: Tensor
    frequencies: Tensor
    phases: Tensor  # in turns, as are frequencies per unit of x

    def at(self, points: NDArray[np.float64]) -> Tensor:
        """f `[P, units]` of points `[P, dims]`."""
        x = torch.from_numpy(points).float()[:, None, :, None]
        rows = max(1, _ELEMENTS // self.amplitudes.numel())
        parts = []
        for some in x.split(rows):
            waves = torch.sin((2 * math.pi) * (some * self.frequencies + self.phases))  # [rows, units, dims, terms]
            parts.append((self.amplitudes * waves).sum(-1).prod(-1))
        return torch.cat(parts)


def _spikes(times: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Values `[R steps, N]` with a one at each of the times `[R, N]`, and offsets."""
    R = len(times)
    values = torch.zeros(R, steps, times.shape[1], dtype=torch.uint8)
    values.scatter_(1, times[:, None], 1)
    return values.flatten(0, 1), torch.arange(R + 1) * steps
