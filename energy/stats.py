"""Mean and interval of an energy over a data set, without scipy.

The 95 % interval of a mean is Student's: mean ± t(0.975, n-1) sd / √n, with sd over n-1. It describes the mean of
independent samples that are like these; frames of one recording are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, isfinite, lgamma, log, log1p, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PERCENTILES = (5.0, 25.0, 50.0, 75.0, 95.0)


@dataclass(frozen=True)
class Interval:
    """Statistics of n values, in the unit of the values.

    Attributes:
        sd: with n-1; `sem` = sd / √n. NaN, as `low` and `high`, for one value.
        low, high: the interval of the mean at `level`.
        percentiles: of the values, interpolated linearly.
        method: "t" or "bootstrap"; `seed` and `resamples` belong to the latter.
    """

    n: int
    mean: float
    sd: float
    sem: float
    low: float
    high: float
    level: float
    percentiles: dict[float, float]
    method: str = "t"
    resamples: int | None = None
    seed: int | None = None


def interval(
    values: ArrayLike,
    level: float = 0.95,
    percentiles: Sequence[float] = PERCENTILES,
    bootstrap: int | None = None,
    seed: int | None = None,
) -> Interval:
    """Statistics of values [N].

    Args:
        level: of the interval, between 0 and 1.
        percentiles: which, between 0 and 100.
        bootstrap: number of resamples; the interval is then that of the percentiles of their means.
        seed: of the resamples; needed for a bootstrap, so that a report can be made again.

    Raises:
        ValueError: no values, values that are not finite or not a vector, another level, a bootstrap without a seed.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"interval() got an array of shape {list(x.shape)}; expected a vector of finite numbers")
    if not 0 < level < 1:
        raise ValueError(f"level={level}; expected a number between 0 and 1, such as 0.95")
    if (bootstrap is None) != (seed is None) or (bootstrap is not None and bootstrap < 1):
        raise ValueError(f"bootstrap={bootstrap}, seed={seed}; give a number of resamples and a seed, or neither")
    n, mean = len(x), float(x.mean())
    sd = float(x.std(ddof=1)) if n > 1 else nan
    sem = sd / sqrt(n)
    if bootstrap is not None and seed is not None:
        low, high = _bootstrap(x, level, bootstrap, seed)
    else:
        half = t_quantile(0.5 + level / 2, n - 1) * sem if n > 1 else nan
        low, high = mean - half, mean + half
    found = {float(p): float(np.percentile(x, p)) for p in percentiles}
    method = "t" if bootstrap is None else "bootstrap"
    return Interval(n, mean, sd, sem, low, high, level, found, method, bootstrap, seed)


def _bootstrap(x: NDArray[np.float64], level: float, resamples: int, seed: int) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    means = np.array([x[generator.integers(0, len(x), len(x))].mean() for _ in range(resamples)])
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


@lru_cache(maxsize=256)
def t_quantile(p: float, degrees: float) -> float:
    """The value that Student's t with that many degrees of freedom stays below with probability p; p > 0.5.

    Found by halving an interval until it cannot be halved; P(t > x) = I(ν / (ν + x²); ν/2, 1/2) / 2 with the
    regularised incomplete beta function (Abramowitz and Stegun 26.7.1, 26.5.2). Relative error below 1e-9 up to 10⁵
    degrees of freedom.

    Raises:
        ValueError: p is not between 0.5 and 1, or no degrees of freedom.
    """
    if not (0.5 < p < 1 and degrees > 0 and isfinite(degrees)):
        raise ValueError(f"t_quantile({p}, {degrees}); expected 0.5 < p < 1 and degrees of freedom above zero")
    low, high = 0.0, 1.0
    while _t_tail(high, degrees) > 1 - p:
        low, high = high, 2 * high
        if high == inf:
            raise ValueError(f"the quantile {p} of t with {degrees} degrees of freedom is too large")
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        low, high = (middle, high) if _t_tail(middle, degrees) > 1 - p else (low, middle)


def _t_tail(x: float, degrees: float) -> float:
    """P(t > x), x >= 0."""
    square = x * x
    return 0.5 * _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + square), square / (degrees + square))


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """I(x; a, b), regularised; `rest` is 1 - x, given apart because it may be lost beside x."""
    if rest <= 0.0:
        return 1.0
    if x <= 0.0:
        return 0.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on one side of the mean only
        return 1.0 - _incomplete_beta(b, a, rest, x)
    logs = (log(x) if x < 0.5 else log1p(-rest), log(rest) if rest < 0.5 else log1p(-x))
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * logs[0] + b * logs[1])
    return front * _beta_fraction(a, b, x) / a


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of I(x; a, b) by Lentz's method (Abramowitz and Stegun 26.5.8)."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0) or tiny)
    value = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = 1.0
        for term in (even, odd):
            d = 1.0 / (1.0 + term * d or tiny)
            c = 1.0 + term / c or tiny
            change = c * d
            value *= change
        if abs(change - 1.0) < 1e-15:
            return value
    raise ArithmeticError(f"the continued fraction of I({x}; {a}, {b}) did not converge")


def to_dict(found: Interval) -> dict[str, Any]:
    """Plain values; percentiles under "p5", "p25", ..."""
    values = {name: getattr(found, name) for name in ("n", "mean", "sd", "sem", "low", "high", "level", "method")}
    if found.method == "bootstrap":
        values |= {"resamples": found.resamples, "seed": found.seed}
    return values | {f"p{p:g}": value for p, value in found.percentiles.items()}
