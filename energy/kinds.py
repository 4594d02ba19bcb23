"""Value kinds: what the non-zero values of an operand are, judged over all values it took in a run.

A kind decided per call would flip a layer between AC and MAC with every black-and-white sample or silent step. So the
values are collected first (`Values`) and judged at the end (`classify`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spikeloom.energy.counts import KINDS

MAX_LEVELS = 64


@dataclass
class Values:
    """The non-zero values an operand took.

    Attributes:
        levels: distinct |values|.
        negative: a value below zero was seen.
        analogue: too many distinct values to keep; `levels` is incomplete.
        network_input: the operand was a tensor that the user passed in, as it is or through views and copies.
        coarse: it was half precision or bfloat16.
    """

    levels: set[float] = field(default_factory=set)
    negative: bool = False
    analogue: bool = False
    network_input: bool = False
    coarse: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind and its quantum, the value of one unit spike."""

    name: str
    quantum: float = 1.0

    def units(self, level: float) -> int:
        """How many unit spikes a value of this magnitude is."""
        return round(level / self.quantum)


def classify(values: Values, max_levels: int = MAX_LEVELS) -> Kind:
    """The kind of an operand, tested in the order zero, binary, ternary, integer, scaled, float.

    A network input is never taken for scaled spikes: an 8-bit image divided by 255 is analogue.
    """
    if values.analogue:
        return Kind("float")
    if not values.levels:
        return Kind("zero")
    if values.levels == {1.0}:
        return Kind("ternary" if values.negative else "binary")
    if all(v == int(v) for v in values.levels if math.isfinite(v)) and max(values.levels) <= max_levels:
        return Kind("integer")
    if values.network_input:
        return Kind("float")
    tolerance = 1e-2 if values.coarse else 1e-4
    merged = merge(values.levels, tolerance)
    smallest = merged[0]
    if len(merged) == 1:
        return Kind("scaled_ternary" if values.negative else "scaled_binary", smallest)
    if len(merged) > max_levels + 1 or merged[-1] / smallest > max_levels + 0.5:
        return Kind("float")
    ratios = [level / smallest for level in merged]
    if all(abs(ratio - round(ratio)) < tolerance for ratio in ratios):
        return Kind("scaled_integer", smallest)
    return Kind("float")


def merge(levels: set[float], tolerance: float) -> list[float]:
    """Ascending representatives; a value within the relative tolerance of one is the same level.

    Rounding splits a level: two nested average pools in float32 give 194 numbers for 53 levels.
    """
    kept: list[float] = []
    for level in sorted(levels):
        if not kept or level - kept[-1] > tolerance * kept[-1]:
            kept.append(level)
    return kept


def override(name: str, kind: str, values: Values, max_levels: int = MAX_LEVELS) -> Kind:
    """The kind that the user says an operand has.

    Raises:
        ValueError: no such kind, or an integer kind for values that were too many to keep.
    """
    if kind not in KINDS:
        raise ValueError(f"kinds[{name!r}] = {kind!r}; expected one of {', '.join(KINDS)}")
    if kind in ("integer", "scaled_integer") and values.analogue:
        raise ValueError(f"kinds[{name!r}] = {kind!r}, but {name} took too many distinct values to be counted in units")
    if kind.startswith("scaled"):
        return Kind(kind, min(values.levels, default=1.0))
    return Kind(kind)
