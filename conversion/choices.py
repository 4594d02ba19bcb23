"""How a network is converted: a named method is a set of choices, each of which may be replaced.

settings("ltb", T=32, max_pool="before")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from spikeloom.models.config import configure, nearest

Rule = Literal["max", "percentile", "mse", "ltb", "known", "known or ltb"]


@dataclass(frozen=True)
class Settings:
    """The choices of a conversion.

    method: the name that they were started from.
    T: time steps of an image; "mse" thresholds, `half_step="per_step"` and corrections are made for this T.
    rule: where thresholds come from (docs/conversion.md); "known": from the activations themselves (QCFS, clips).
    channel_wise: one threshold per channel, else one per layer.
    percentile: of rule "percentile", in percent; nonzero_only: of the activations that are not 0 alone.
    scale: factor of every threshold.
    initial: membrane before the first step, in thresholds; half_step "per_step" adds initial * threshold / T to the
        current of every step instead.
    reduction: over calibration batches, "all" (order does not matter) or "ema" (first batch initialises, then
        (1 - momentum) old + momentum new); "mse" is always "ema", "ltb" neither.
    correct: after the thresholds: "bias" (SNN calibration, light), "potential" or "weights" (advanced).
    iterations, lr: Adam steps per layer and learning rate of correct="weights".
    offset: "cos" or "srp": every layer looks at `rho` steps before it runs; latency is T + rho.
    max_pool: "auto" (exact; in front of the first spikes on currents), "exact" (by spike counts), "before" (pool
        currents, then spike), "or" (pool the spikes of each step; too high), "avg" (another function), "refuse".
    fold: multiply thresholds into the next weights, so that spikes are 0 or 1; False scales them explicitly.
    """

    method: str = "ltb"
    T: int = 16
    rule: Rule = "ltb"
    channel_wise: bool = True
    percentile: float = 99.9
    nonzero_only: bool = False
    scale: float = 1.0
    initial: float = 0.5
    half_step: Literal["initial", "per_step"] = "initial"
    reduction: Literal["all", "ema"] = "all"
    momentum: float = 0.1
    correct: Literal["none", "bias", "potential", "weights"] = "none"
    iterations: int = 5000
    lr: float = 4e-5
    offset: Literal["none", "cos", "srp"] = "none"
    rho: int = 4
    max_pool: Literal["auto", "exact", "before", "or", "avg", "refuse"] = "auto"
    fold: bool = True

    def __post_init__(self) -> None:
        for name in ("T", "rho", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected >= 1.")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"percentile is {self.percentile}; expected percent in (0, 100], such as 99.9.")
        if not self.scale > 0 or not 0 <= self.initial <= 1 or not 0 < self.momentum <= 1 or not self.lr > 0:
            raise ValueError(
                f"scale is {self.scale} (expected > 0), initial {self.initial} (0 to 1, in thresholds), momentum "
                f"{self.momentum} (in (0, 1]), lr {self.lr} (> 0)."
            )
        if self.offset != "none" and (self.correct != "none" or self.half_step != "initial" or self.initial != 0.5):
            raise ValueError(
                f"offset={self.offset!r} sets the membrane itself; leave correct='none', half_step='initial', "
                f"initial=0.5 (given: {self.correct!r}, {self.half_step!r}, {self.initial})."
            )

    @property
    def latency(self) -> int:
        """Steps until the answer is there: T, and rho more with an offset."""
        return self.T + (self.rho if self.offset != "none" else 0)

    @property
    def fixed_steps(self) -> bool:
        """Whether thresholds, currents or corrections were made for T, and do not fit another number of steps."""
        per_step = self.half_step == "per_step" and self.initial > 0
        return self.rule == "mse" or self.correct != "none" or per_step


_PER_STEP: dict[str, Any] = {"rule": "mse", "channel_wise": False, "half_step": "per_step"}
METHODS: Mapping[str, Mapping[str, Any]] = {
    "ltb": {},
    "max": {"rule": "max", "channel_wise": False},
    "channel_max": {"rule": "max"},
    "percentile": {"rule": "percentile", "channel_wise": False},
    "channel_percentile": {"rule": "percentile"},
    "mse": {"rule": "mse", "channel_wise": False},
    "qcfs": {"rule": "known"},
    "light": {**_PER_STEP, "correct": "bias"},
    "advanced": {**_PER_STEP, "correct": "potential"},
    "weights": {**_PER_STEP, "correct": "weights"},
    "cos": {"rule": "known or ltb", "offset": "cos"},
    "srp": {"rule": "known or ltb", "offset": "srp"},
}
"""Method -> the fields in which it differs from the defaults."""


def settings(method: str = "ltb", **overrides: Any) -> Settings:
    """The choices of a method, some of them replaced.

    Raises:
        ValueError: no such method or field (the nearest names are given), or a value out of range.
    """
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}{nearest(method, METHODS)}; there are {', '.join(METHODS)}.")
    found = dataclasses.replace(Settings(), method=method, **METHODS[method])
    return configure(found, overrides)
