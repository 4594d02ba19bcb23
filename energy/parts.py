"""`Part`: what one layer adds to one term of an energy. Every rule of pricing yields parts; `price` adds them up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeloom.energy.counts import Counts

FloatArray = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Part:
    """pJ of one layer (or neuron, pool, ...) for one term.

    Attributes:
        pj: [T, N] by step and sample; [N] where a rule does not resolve steps; [1, 1] or [1], with `assigned` False,
            where only the sum over the run is known.
        included: False for a term that the policy leaves out of the total and that is reported beside it.
    """

    name: str
    term: str
    pj: FloatArray
    assigned: bool = True
    included: bool = True


def part(counts: Counts, name: str, term: str, pj: NDArray[Any], included: bool = True) -> Part:
    """A part from counts times a price; whether rows are assigned shows in the shape: [T, N] or [1, 1]."""
    array = np.asarray(pj, np.float64)
    return Part(name, term, array, array.shape == (counts.T, counts.samples), included)


def every_step(counts: Counts, amount: float | NDArray[Any]) -> FloatArray:
    """An amount per step and sample, or amounts [T, 1] per sample, as [T, N]."""
    return np.broadcast_to(np.asarray(amount, np.float64), (counts.T, counts.samples))


def add_up(parts: Iterable[Part], key: str) -> dict[str, FloatArray]:
    """Sum over time of the assigned parts, [N], by "name" or "term"."""
    totals: dict[str, FloatArray] = {}
    for one in parts:
        if one.assigned:
            pj = one.pj.sum(0) if one.pj.ndim == 2 else one.pj
            name = getattr(one, key)
            totals[name] = totals[name] + pj if name in totals else pj
    return totals
