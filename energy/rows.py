"""Which rows of an operand belong to which time step of which sample.

One pass through the network (`Batch`) has T steps of B samples. An operation sees rows in one of these arrangements:

* `multi`: all steps in one call, rows folded `[T B r]` (or `[B T r]`); the counts are [T, B].
* `step`: one time step per call, rows `[B r]`; the k-th call of a layer is step k (k // m if it runs m times a step).
* `whole`: neither fits; the counts are known for the run alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from spikeloom.energy.counts import IntArray


@dataclass(frozen=True)
class Batch:
    """Time steps and samples of one pass.

    Attributes:
        order: how the user's tensors hold them, "TB" or "BT".
        steps: time steps that the running call of the network sees: T, or fewer where the loop over time is outside.
        network: shape of the network's input whose first two axes were taken for T and B; empty where they were said.
        place: that input's address in memory. stride: from one step to the next there.
    """

    T: int
    B: int
    order: str = "TB"
    steps: int = 0
    network: tuple[int, ...] = ()
    place: int = 0
    stride: int = 0

    @property
    def sizes(self) -> tuple[int, int]:
        """The first two axes of a tensor with the steps of the running call."""
        return (self.steps, self.B) if self.order == "TB" else (self.B, self.steps)

    def order_of(self, shape: Sequence[int]) -> str | None:
        """How a tensor with all steps of the running call holds them: as the user's do, or the other way."""
        lead = tuple(shape[:2])
        if lead == self.sizes:
            return self.order
        turned = lead == self.sizes[::-1] and (self.order == "BT" or len(shape) == 3)
        return self.order[::-1] if turned else None

    def rows(self, order: str) -> Rows:
        """The arrangement of a tensor with all steps of the running call."""
        return Rows("multi" if self.steps == self.T else "step", self.steps * self.B, order)


@dataclass(frozen=True)
class Rows:
    """An arrangement: `multi`, `step` or `whole`, how many row groups, and how T and B are ordered in them."""

    lead: str
    count: int
    order: str = "TB"


def arrange(batch: Batch, lead: str | None, order: str, leading: int) -> Rows:
    """The arrangement of an operand with `leading` rows, in a module that is known to be `multi` or `step` or not."""
    if lead == "step" and leading % batch.B == 0:
        return Rows("step", batch.B)
    if leading % (batch.steps * batch.B) == 0:
        return batch.rows(order)
    if leading % batch.B == 0:
        return Rows("step", batch.B)
    return Rows("whole", 1)


class Lead(NamedTuple):
    """What a module's input shape says: `multi` or `step`, the order of T and B (None: as around it), and for
    [L, samples, ...] the samples."""

    lead: str
    order: str | None
    inner: int | None = None


def lead_of(shape: Sequence[int], batch: Batch) -> Lead | None:
    """`multi` for [T, B, ...] and [T B, ...], `step` for [B, ...]; with `inner` for [L, T B, ...] and [L, B, ...]."""
    T, B = batch.steps, batch.B
    if (order := batch.order_of(shape)) is not None:
        return Lead("multi", order)
    if len(shape) >= 2 and shape[0] == T * B:
        return Lead("multi", None)
    if len(shape) >= 1 and shape[0] == B:
        return Lead("step", None)
    if len(shape) == 3 and shape[1] == T * B:
        return Lead("multi", None, T * B)
    if len(shape) == 3 and shape[1] == B:
        return Lead("step", None, B)
    return None


def to_steps(calls: Sequence[tuple[Rows, Mapping[str, IntArray]]], batch: Batch) -> tuple[dict[str, IntArray], bool]:
    """Sum a layer's calls over P passes, arrays [P, rows] by name, to [P, T, B], or to [P, 1, 1] if a call is `whole`.

    Returns:
        The sums, and whether they are known per step and sample.
    """
    T, B = batch.T, batch.B
    steps = sum(rows.count // B for rows, _ in calls if rows.lead == "step")
    known = all(rows.lead != "whole" for rows, _ in calls) and (steps <= T or steps % T == 0)
    totals: dict[str, IntArray] = {}
    per_step = max(1, steps // T)
    seen = 0
    for rows, arrays in calls:
        length = rows.count // B
        for name, values in arrays.items():
            passes = len(values)
            total = totals.setdefault(name, np.zeros((passes, T, B) if known else (passes, 1, 1), np.int64))
            if not known:
                total += values.sum(1)[:, None, None]
                continue
            folded = values.reshape(passes, length, B)
            if rows.order == "BT":
                folded = values.reshape(passes, B, length).swapaxes(1, 2)
            if rows.lead == "multi":
                total += folded
            else:
                for t in range(length):
                    total[:, (seen + t) // per_step] += folded[:, t]
        seen += length * (rows.lead == "step")
    return totals, known
