"""Numbers for people: energies in pJ to J, counts with k, M, G; three or four digits that mean something."""

from __future__ import annotations

import math
from collections.abc import Iterable

_ENERGY = ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ"))
_COUNT = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
FULL_BELOW = 100_000
"""Counts below this are written out."""


def energy_scale(pj: Iterable[float]) -> tuple[float, str]:
    """Picojoules per unit, and the unit, in which the largest of these energies lies between 1 and 1000."""
    return _scale(pj, _ENERGY)


def count_scale(counts: Iterable[float]) -> tuple[float, str]:
    """The same for counts: 1e6, "M"."""
    return _scale(counts, _COUNT)


def energy_text(pj: float | None) -> str:
    """`108.6 nJ`; None: `-`."""
    if pj is None:
        return "-"
    scale, unit = energy_scale([pj])
    return f"{digits(pj / scale)} {unit}"


def energy_range(low: float, high: float) -> str:
    """`107.9-110.2 nJ`, both in the unit of the larger one."""
    scale, unit = energy_scale([low, high])
    return f"{digits(low / scale)}–{digits(high / scale)} {unit}"


def count_text(value: float | None) -> str:
    """`26,050`, `26,050.3`, `1.234 M`; None: `-`."""
    if value is None:
        return "-"
    if abs(value) < FULL_BELOW:
        if float(value).is_integer():
            return f"{int(value):,}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
    scale, unit = count_scale([value])
    return f"{digits(value / scale)} {unit}"


def count_range(low: float, high: float) -> str:
    """`25,900–26,210`, `1.21–1.25 M`."""
    if max(abs(low), abs(high)) < FULL_BELOW:
        return f"{count_text(round(low))}–{count_text(round(high))}"
    scale, unit = count_scale([low, high])
    return f"{digits(low / scale)}–{digits(high / scale)} {unit}"


def rate_text(rate: float | None) -> str:
    """A firing rate: `0.226`, `0.0041`; None: `-`."""
    if rate is None:
        return "-"
    return "0" if rate == 0 else f"{rate:.3f}" if rate >= 0.01 else f"{rate:.2g}"


def share_text(share: float) -> str:
    """`63.4 %`."""
    return "0 %" if share == 0 else "< 0.1 %" if share < 0.001 else f"{share:.1%}".replace("%", " %")


def ratio_text(ratio: float) -> str:
    """`2.18x`, `0.43x`, `0.0061x`, `120x`."""
    return f"{ratio:.3f}x" if 0.1 <= ratio < 1 else f"{ratio:.2f}x" if 1 <= ratio < 10 else f"{digits(ratio)}x"


def digits(value: float) -> str:
    """Four digits: `108.6`, `26.05`, `2.176`, `1,234`; below 1 three: `0.43`."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}" if value == 0 else str(value)
    size = abs(value)
    if size >= 999.95:
        return f"{value:,.0f}"
    if size >= 99.995:
        return f"{value:.1f}"
    if size >= 1:
        return f"{value:.2f}" if size >= 9.9995 else f"{value:.3f}"
    return f"{value:.3g}"


def tick_text(value: float) -> str:
    """A round number on an axis: `0`, `2.5`, `1,500`."""
    return f"{value:,.6g}"


def nice_ticks(high: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to at least `high`, about `count` of them."""
    if high <= 0 or not math.isfinite(high):
        return [0.0, 1.0]
    rough = high / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    return [round(i * step, 12) for i in range(math.ceil(high / step - 1e-9) + 1)]


def _scale(values: Iterable[float], steps: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    largest = max((abs(value) for value in values), default=0.0)
    return next((step for step in steps if largest >= step[0]), steps[-1])
