"""`Counts`: what one run counted, exactly, in integers. Nothing here knows a joule.

Arrays are int64 `[T, N]`: time steps of N samples. Numbers without axes hold for one time step of one sample. The words
(SOP, event, fan-out, dense, ...) are defined in docs/energy.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

AC_KINDS = ("zero", "binary", "ternary", "scaled_binary", "scaled_ternary")
"""One spike is one accumulate."""
UNIT_KINDS = ("integer", "scaled_integer")
"""A value is a number of unit spikes."""
KINDS = (*AC_KINDS, *UNIT_KINDS, "float")
"""What the non-zero values of an operand were over the whole run."""


@dataclass
class Geometry:
    """The shape of a weight, where an energy model asks for it: taps and strides per dimension (empty for linear)."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    in_channels: int = 0
    out_channels: int = 0
    weights: int = 0
    biases: int = 0
    transposed: bool = False
    max_delay: int | None = None


@dataclass
class Layer:
    """A linear operation: weights on activations (`operands="param"`) or activations on activations ("activation").

    Attributes:
        kind, quantum: of the (first) operand over the whole run; `kind_b`, ... of the second.
        sop: terms whose activation operands are all non-zero.
        sop_nonzero_weight: terms whose weight is non-zero too.
        sop_unit: as sop, an integer spike of value k counting as k; None for kind float.
        sop_a, sop_b: terms whose first, or second, operand is non-zero (activation on activation).
        events: non-zero elements of the (first) operand.
        dense_exact: terms of one time step of one sample; a delay layer's is an average over the run.
        dense_nominal: the same with the taps on zero padding.
        bias_adds: additions of the operation's own bias, before any folding.
        static_input: the operands were the same bits at every time step.
        once: it ran once per sample, not once per step (behind a mean over time); its counts are in the arrays' first
            step, its dense numbers are those of the one call.
        calls: how often the operation ran per time step (or per sample, if all steps are one call).
        assigned: False if rows could not be told apart by step and sample: arrays are [1, 1], sums over the run.
        at_arrival: SOP by the step in which a delayed spike arrives.
    """

    name: str
    op: str
    operands: str
    kind: str
    quantum: float
    sop: IntArray
    events: IntArray
    dense_exact: float
    dense_nominal: float
    out_numel: int
    in_numel: int
    bias_adds: int = 0
    static_input: bool = False
    calls: int = 1
    assigned: bool = True
    once: bool = False
    geometry: Geometry = field(default_factory=Geometry)
    sop_nonzero_weight: IntArray | None = None
    sop_unit: IntArray | None = None
    sop_at_arrival: IntArray | None = None
    dense_exact_whole_run: int | None = None
    kind_b: str | None = None
    quantum_b: float | None = None
    events_b: IntArray | None = None
    in_numel_b: int | None = None
    sop_a: IntArray | None = None
    sop_b: IntArray | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def is_param(self) -> bool:
        """Weights on activations."""
        return self.operands == "param"


@dataclass
class NeuronCount:
    """A layer of neurons. `spike_units` sums output values; `touched` counts updates with a non-zero input current.

    `operations` are the scalar operations of one update by the loom's tape (adds, multiplies, divides, compares,
    transcendental), empty where the neuron is not the loom's. `soft_reset`: one more AC per spike. `spiking`: False for
    a read-out that only integrates, whose output is no spike.
    """

    name: str
    model: str
    updates: int
    states: int
    spikes: IntArray
    touched: IntArray
    spike_units: IntArray | None = None
    soft_reset: bool = False
    spiking: bool = True
    operations: dict[str, int] = field(default_factory=dict)


@dataclass
class NormCount:
    """A batch normalisation; `folds_into`: the linear operation in front that swallows it, None if it cannot fold."""

    name: str
    elements: int
    folds_into: str | None
    bias_after_fold: int = 0


@dataclass
class PairCount:
    """Element-wise `add` or `mul` of two activations."""

    name: str
    op: str
    both_nonzero: IntArray
    any_nonzero: IntArray
    numel: int
    out_kind: str


@dataclass
class PoolCount:
    """`avg_pool` or `max_pool`; `incidences`: (non-zero input, window) pairs, `dense` the same for non-zero inputs."""

    name: str
    op: str
    incidences: IntArray
    dense: int
    out_numel: int
    out_kind: str


@dataclass
class SumCount:
    """A `sum` or `mean` over activations: one accumulate per event."""

    name: str
    events: IntArray
    numel: int
    out_kind: str


@dataclass
class MapCount:
    """An operation that is neither AC nor MAC and is listed by its elements: scale, softmax, masks, activations."""

    name: str
    op: str
    numel: int
    out_kind: str


Aux = NeuronCount | NormCount | PairCount | PoolCount | SumCount | MapCount


@dataclass
class Uncounted:
    """An operation the counter has no rule for: its name, where it ran, how often per run, elements it wrote."""

    op: str
    module: str
    calls: int
    numel: int


@dataclass
class Counts:
    """All counts of a run.

    Attributes:
        layers: linear operations, aux: all others, both in the order in which they first ran.
        policy_bn: "fold" or "count", as counted.
        setting: what the run was (model, data, device, dtype, versions), for the report.
    """

    T: int
    samples: int
    layers: list[Layer]
    aux: list[Aux]
    uncounted: list[Uncounted] = field(default_factory=list)
    max_levels: int = 64
    setting: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: type) -> list[Any]:
        """The auxiliary entries of one class, such as `NeuronCount`."""
        return [entry for entry in self.aux if isinstance(entry, kind)]

    def renamed(self, names: Mapping[str, str]) -> Counts:
        """The same with other names of modules; what lies in a module follows it (`a` to `b`: `a.fire` to `b.fire`)."""

        def other(name: str) -> str:
            parts = name.split(".")
            starts = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            found = next((start for start in starts if start in names), None)
            return name if found is None else names[found] + name[len(found) :]

        aux: list[Any] = [replace(entry, name=other(entry.name)) for entry in self.aux]
        for entry in aux:
            if isinstance(entry, NormCount) and entry.folds_into is not None:
                entry.folds_into = other(entry.folds_into)
        layers = [replace(layer, name=other(layer.name)) for layer in self.layers]
        uncounted = [replace(entry, module=other(entry.module)) for entry in self.uncounted]
        return replace(self, layers=layers, aux=aux, uncounted=uncounted)

    def layer(self, name: str) -> Layer:
        """The layer of a name.

        Raises:
            KeyError: there is none; the message lists those there are.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no linear operation is called {name!r}; there are {', '.join(x.name for x in self.layers)}")
