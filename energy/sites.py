"""`Site`: one place of the network where something is counted, and what it counted so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from spikeloom.energy.counts import Geometry, IntArray
from spikeloom.energy.kinds import Values
from spikeloom.energy.rows import Rows
from spikeloom.kernels.tally import Table


@dataclass(eq=False)
class Levels:
    """Counts by distinct |value| of one tensor, as the kernel left them, and what is known of the tensor.

    Attributes:
        terms: the counts of all values together, [rows]; sums: the same per slot of the table, [rows, SLOTS].
    """

    table: Table
    terms: Tensor
    sums: Tensor
    rows: Rows
    network_input: bool
    coarse: bool


@dataclass
class Call:
    """One call of a site. `counts`: device tensors [rows]; `factors`: what each is multiplied by on the host."""

    rows: Rows
    counts: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, int] = field(default_factory=dict)
    levels: dict[str, Levels] = field(default_factory=dict)
    dense: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False)
class Site:
    """Everything counted at one place, over all passes.

    Attributes:
        op: what runs here; `facts`: further facts of the place, set by its rule.
        dense: numbers that hold for one step of one sample.
        once: it ran in one step of a pass of several.
        static: the operand was the same at every step so far; None before two steps were seen.
        spans: the arrays of closed passes, by name; `values`: the values of each operand.
        level_spans: counts by |value|: operand -> value -> {pass: array}.
    """

    name: str
    op: str
    facts: dict[str, Any] = field(default_factory=dict)
    geometry: Geometry = field(default_factory=Geometry)
    dense: dict[str, float] = field(default_factory=dict)
    calls_per_step: int = 0
    static: bool | None = None
    static_flags: list[Tensor] = field(default_factory=list)
    first_step: list[Tensor] | None = None
    open: list[Call] = field(default_factory=list)
    spans: dict[str, dict[int, IntArray]] = field(default_factory=dict)
    known: bool = True
    once: bool = False
    values: dict[str, Values] = field(default_factory=dict)
    level_spans: dict[str, dict[float, dict[int, IntArray]]] = field(default_factory=dict)

    def drop(self) -> None:
        """Forget what an unfinished pass left."""
        self.open, self.static_flags, self.first_step = [], [], None
        self.facts.pop("origins", None)

    def array(self, name: str, sizes: Sequence[tuple[int, int]]) -> IntArray:
        """A count over all passes, [T, N], zero in passes without a call; [1, 1] if steps and samples are unknown."""
        return self._joined(self.spans.get(name, {}), sizes)

    def _joined(self, spans: dict[int, IntArray], sizes: Sequence[tuple[int, int]]) -> IntArray:
        if not self.known:
            return np.array([[sum(int(array.sum()) for array in spans.values())]], np.int64)
        parts = [spans.get(i, np.zeros(size, np.int64)) for i, size in enumerate(sizes)]
        return np.concatenate(parts, axis=1)

    def level_arrays(self, operand: str, total: str, sizes: Sequence[tuple[int, int]]) -> dict[float, IntArray]:
        """Counts by |value|, each [T, N]; the passes in which all values were 0 and 1 count under 1."""
        by_value = self.level_spans.get(operand, {})
        ones = by_value.get(1.0, {})
        plain = {index: array for index, array in self.spans.get(total, {}).items() if index not in ones}
        spans = {**by_value, 1.0: {**ones, **plain}}
        return {value: self._joined(held, sizes) for value, held in spans.items()}
