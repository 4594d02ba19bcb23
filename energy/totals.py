"""Totals of a run under a policy: which synaptic operation is an accumulate and which a multiply-accumulate.

The default policy is the table of docs/energy.md: spikes (binary, ternary, or scaled by one factor) cost one AC per
SOP, integer spikes one AC per unit, analogue values one MAC per SOP; two activations cost an AC as soon as one of them
spikes. Arrays of shape [1, 1] are sums over a run whose rows could not be told apart: they are in `unassigned` only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from spikeloom.energy.counts import (
    AC_KINDS,
    UNIT_KINDS,
    Counts,
    IntArray,
    Layer,
    NeuronCount,
    NormCount,
    PairCount,
    PoolCount,
    SumCount,
)

INTEGER_POLICIES = ("unit", "mac", "graded")


@dataclass(frozen=True)
class Policy:
    """How counts become AC and MAC.

    Attributes:
        integers: integer spikes into weights: "unit" (k ACs for a spike of value k), "mac" (a MAC per SOP) or "graded"
            (an AC per SOP, and one payload multiply beside it).
        bn: "fold" (into the linear operation in front; those that cannot are charged) or "count" (all are charged):
            one MAC per element.
        include_bias: add bias additions to the ACs.
        static_once: charge a layer whose input never changes over time in the first step only; its current is kept.
        include_aux, include_neurons, include_graded_mul: add to an energy what else was counted: average pools,
            residual additions and sums; the neurons' own arithmetic; payload multiplies of integers="graded". AC and
            MAC of `Totals` stay those of the linear operations.
    """

    integers: str = "unit"
    bn: str = "fold"
    include_bias: bool = False
    static_once: bool = False
    include_aux: bool = False
    include_neurons: bool = False
    include_graded_mul: bool = False

    def __post_init__(self) -> None:
        if self.integers not in INTEGER_POLICIES:
            raise ValueError(f"integers={self.integers!r}; expected one of {', '.join(INTEGER_POLICIES)}")
        if self.bn not in ("fold", "count"):
            raise ValueError(f"bn={self.bn!r}; expected fold or count")


DEFAULT_POLICY = Policy()


def books_mac(layer: Layer, policy: Policy) -> bool:
    """Does the policy book this layer's synaptic operations as MACs?"""
    if not layer.is_param:
        return layer.kind not in AC_KINDS and layer.kind_b not in AC_KINDS
    return layer.kind == "float" or (layer.kind in UNIT_KINDS and policy.integers == "mac")


def layer_ac(layer: Layer, policy: Policy) -> IntArray:
    """Accumulates of a layer, [T, N] (before `static_once`).

    Raises:
        ValueError: the policy needs unit counts, and the layer has none.
    """
    if books_mac(layer, policy):
        return np.zeros_like(layer.sop)
    if layer.is_param and layer.kind in UNIT_KINDS and policy.integers == "unit":
        if layer.sop_unit is None:
            raise ValueError(
                f"{layer.name!r} has integer spikes (kind {layer.kind}) but no sop_unit. Count again, or price with "
                'Policy(integers="mac") or Policy(integers="graded"), which need none.'
            )
        return layer.sop_unit
    return layer.sop


def layer_mac(layer: Layer, policy: Policy) -> IntArray:
    """Effective multiply-accumulates of a layer (zero inputs skipped), [T, N]."""
    return layer.sop if books_mac(layer, policy) else np.zeros_like(layer.sop)


def charged_steps(layer: Layer, policy: Policy, T: int) -> IntArray:
    """1 for every time step [T] in which the layer is computed: the first alone if it runs once per sample, or, with
    `static_once`, if it is static."""
    steps = np.ones(T, np.int64)
    if layer.once or (policy.static_once and layer.static_input):
        steps[1:] = 0
    return steps


def charged(layer: Layer, array: IntArray, policy: Policy, T: int) -> IntArray:
    """A layer's counts [T, N] of the steps in which it is computed."""
    if not (policy.static_once and layer.static_input):
        return array
    if not layer.assigned:  # a sum over T equal steps
        return array // T
    return array * charged_steps(layer, policy, T)[:, None]


def layer_words(layer: Layer, bias: int, policy: Policy, T: int) -> dict[str, IntArray]:
    """Words a layer moves, [T, N] (bias_reads [T, 1]); see `Totals.memory_words`.

    `bias` is its bias additions per step and sample. A cached current (`static_once`) is read once per later step.
    """
    sop = charged(layer, layer.sop, policy, T)
    events = layer.events if layer.events_b is None else layer.events + layer.events_b
    steps = charged_steps(layer, policy, T)
    cached = (1 - steps)[:, None] * layer.out_numel
    if layer.once or not layer.assigned:
        cached = np.zeros((1, 1), np.int64)
    return {
        "weight_reads": sop if layer.is_param else np.zeros_like(sop),
        "accumulator_reads": sop + cached,
        "accumulator_writes": sop,
        "event_reads": charged(layer, events, policy, T),
        "bias_reads": steps[:, None] * bias,
    }


@dataclass(frozen=True)
class Totals:
    """Sums over layers; arrays are [T, N] unless said otherwise."""

    counts: Counts
    policy: Policy = DEFAULT_POLICY

    def _sum(self, arrays: Iterable[IntArray]) -> IntArray:
        """Sum of the arrays [T, N]; those of another shape hold sums over the run and are left out."""
        total = np.zeros((self.counts.T, self.counts.samples), np.int64)
        for array in arrays:
            if array.shape == total.shape:
                total += array
        return total

    @cached_property
    def assigned(self) -> list[Layer]:
        """Layers whose counts are known per step and sample."""
        return [layer for layer in self.counts.layers if layer.assigned]

    def _charged(self, layer: Layer, array: IntArray) -> IntArray:
        return charged(layer, array, self.policy, self.counts.T)

    @cached_property
    def ac(self) -> IntArray:
        """Accumulates of all linear operations (with `include_bias`, bias additions too)."""
        total = self._sum(self._charged(layer, layer_ac(layer, self.policy)) for layer in self.assigned)
        return total + self.bias_adds_per_step[:, None] if self.policy.include_bias else total

    @cached_property
    def mac_effective(self) -> IntArray:
        """Multiply-accumulates of all linear operations, zero inputs skipped."""
        return self._sum(self._charged(layer, layer_mac(layer, self.policy)) for layer in self.assigned)

    @cached_property
    def sop(self) -> IntArray:
        """Synaptic operations, whatever they cost, in all T steps."""
        return self._sum(layer.sop for layer in self.assigned)

    @cached_property
    def graded_mul(self) -> IntArray:
        """Payload multiplications of the policy "graded"."""
        graded = self.policy.integers == "graded"
        layers = [y for y in self.assigned if graded and y.is_param and y.kind in UNIT_KINDS]
        return self._sum(self._charged(y, y.sop) for y in layers)

    @cached_property
    def pool_ac(self) -> IntArray:
        """Accumulates of average pools."""
        return self._sum(p.incidences for p in self.counts.of(PoolCount) if "avg" in p.op)

    @cached_property
    def residual_ac(self) -> IntArray:
        """True additions of residual connections: both operands non-zero."""
        return self._sum(p.both_nonzero for p in self.counts.of(PairCount) if p.op == "add")

    @cached_property
    def sum_ac(self) -> IntArray:
        """Accumulates of sums over spikes."""
        return self._sum(s.events for s in self.counts.of(SumCount))

    @cached_property
    def unassigned(self) -> dict[str, int]:
        """AC and MAC of the whole run that could not be told apart by step and sample."""
        layers = [layer for layer in self.counts.layers if not layer.assigned]
        return {
            "ac": sum(int(self._charged(layer, layer_ac(layer, self.policy)).sum()) for layer in layers),
            "mac": sum(int(self._charged(layer, layer_mac(layer, self.policy)).sum()) for layer in layers),
            "sop": sum(int(layer.sop.sum()) for layer in layers),
        }

    def _share(self, layer: Layer) -> float:
        """The part of the steps in which a layer runs."""
        return 1 / self.counts.T if layer.once else 1

    @property
    def mac_dense_exact(self) -> float:
        """Dense terms per step and sample of the layers booked as MAC."""
        return sum(y.dense_exact * self._share(y) for y in self.counts.layers if books_mac(y, self.policy))

    @property
    def mac_dense_nominal(self) -> float:
        """The same with padding taps: what a FLOPs counter says."""
        return sum(y.dense_nominal * self._share(y) for y in self.counts.layers if books_mac(y, self.policy))

    @property
    def ann_mac_exact(self) -> float:
        """Dense terms of one step: the MACs of the same network with ReLUs."""
        return sum(y.dense_exact for y in self.counts.layers)

    @property
    def ann_mac_nominal(self) -> float:
        """The same with padding taps."""
        return sum(y.dense_nominal for y in self.counts.layers)

    @property
    def bias_adds_own(self) -> int:
        """Bias additions per step and sample of the operations' own biases."""
        return sum(y.bias_adds for y in self.counts.layers)

    @property
    def bias_adds(self) -> int:
        """Bias additions per step and sample after folding batch normalisations; with bn="count" `bias_adds_own`."""
        return sum(folded_bias(self.counts, self.policy).values())

    @cached_property
    def bias_adds_per_step(self) -> IntArray:
        """Bias additions per sample [T]: `bias_adds`, with `static_once` without the static layers after step one."""
        adds = folded_bias(self.counts, self.policy)
        total = np.zeros(self.counts.T, np.int64)
        for layer in self.counts.layers:
            total += adds[layer.name] * charged_steps(layer, self.policy, self.counts.T)
        return total

    @property
    def bn_mac(self) -> int:
        """MACs per step and sample of the normalisations that are charged."""
        norms: list[NormCount] = self.counts.of(NormCount)
        return sum(n.elements for n in norms if self.policy.bn == "count" or n.folds_into is None)

    @property
    def neuron_updates(self) -> int:
        """Neuron updates per step and sample."""
        return sum(n.updates for n in self.counts.of(NeuronCount))

    @cached_property
    def memory_words(self) -> dict[str, NDArray[np.int64]]:
        """Words moved per sample [N] by an event-driven machine that accumulates in place.

        Per layer: a weight (not for two activations) and an accumulator read and written per SOP, an event read once by
        each layer it feeds, biases. Per neuron and step: its states read and written; an event written per spike.
        """
        T, N = self.counts.T, self.counts.samples
        bias = folded_bias(self.counts, self.policy)
        names = ("weight_reads", "accumulator_reads", "accumulator_writes", "event_reads")
        layers = [layer_words(layer, bias[layer.name], self.policy, T) for layer in self.assigned]
        neurons: list[NeuronCount] = self.counts.of(NeuronCount)
        states = np.full(N, sum(n.updates * n.states for n in neurons) * T, np.int64)
        return {
            **{name: self._sum(words[name] for words in layers).sum(0) for name in names},
            "event_writes": self._sum(n.spikes for n in neurons if n.spiking).sum(0),
            "state_reads": states,
            "state_writes": states,
            "bias_reads": np.full(N, self.bias_adds_per_step.sum(), np.int64),
        }


def folded_bias(counts: Counts, policy: Policy) -> dict[str, int]:
    """Bias additions per step and sample of each layer by name, after folding normalisations into layers."""
    adds = {layer.name: layer.bias_adds for layer in counts.layers}
    if policy.bn == "fold":
        for norm in counts.of(NormCount):
            if norm.folds_into is not None:
                adds[norm.folds_into] = max(adds[norm.folds_into], norm.bias_after_fold)
    return adds
