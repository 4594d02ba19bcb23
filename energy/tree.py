"""One row of numbers per linear operation, and the sums of a module tree over them.

A row holds means per inference: summed over the T steps, averaged over the N samples. For an operation whose rows could
not be told apart it is the sum over the run divided by N.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spikeloom.energy.counts import Counts, IntArray, Layer, NeuronCount
from spikeloom.energy.totals import Policy, books_mac, charged, charged_steps, folded_bias, layer_ac, layer_mac

FloatArray = NDArray[np.float64]


@dataclass
class Sums:
    """Means per inference of a layer, or sums of them over a module.

    elements: input elements of all steps, so that events / elements is a rate.
    sop_nonzero_weight: None where an operation has no weights (for a module: of those layers that have some).
    mac_dense_exact, mac_dense_nominal: all terms, zero or not, of the layers that are booked as MAC.
    energy: pJ.
    """

    events: float = 0.0
    elements: float = 0.0
    sop: float = 0.0
    sop_nonzero_weight: float | None = None
    ac: float = 0.0
    mac: float = 0.0
    mac_dense_exact: float = 0.0
    mac_dense_nominal: float = 0.0
    bias_adds: float = 0.0
    energy: float = 0.0

    @property
    def rate(self) -> float | None:
        """Events per input element and step."""
        return self.events / self.elements if self.elements else None

    def add(self, other: Sums) -> None:
        """Take in another layer."""
        if other.sop_nonzero_weight is not None:
            self.sop_nonzero_weight = (self.sop_nonzero_weight or 0.0) + other.sop_nonzero_weight
        for name in vars(other):
            if name != "sop_nonzero_weight":
                setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Row:
    """A layer with its numbers."""

    layer: Layer
    sums: Sums

    @property
    def kind(self) -> str:
        """`binary`, `scaled_binary 0.25`, `binary x float`."""
        return kind_text(self.layer)


@dataclass
class Node:
    """A module in the tree: `label` is its name below its parent; a leaf has the row of its operation."""

    label: str
    sums: Sums
    row: Row | None = None
    children: list[Node] = field(default_factory=list)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Node]]:
        """This node and all below it, with their depths."""
        yield depth, self
        for child in self.children:
            yield from child.walk(depth + 1)


def layer_rows(counts: Counts, policy: Policy, energy: Mapping[str, float]) -> list[Row]:
    """A row per linear operation; `energy`: mean pJ per inference by layer name (an absent one is 0)."""
    bias = folded_bias(counts, policy)
    return [
        Row(layer, sums_of(layer, counts, policy, bias[layer.name], energy.get(layer.name, 0.0)))
        for layer in counts.layers
    ]


def sums_of(layer: Layer, counts: Counts, policy: Policy, bias: int, energy: float) -> Sums:
    """Means per inference of a layer; with `static_once` a static layer's AC, MAC and bias are those of one step."""
    T, N = counts.T, max(counts.samples, 1)
    steps = int(charged_steps(layer, policy, T).sum())

    def mean(array: IntArray) -> float:
        return float(array.sum()) / N

    dense = steps if books_mac(layer, policy) else 0
    weighted = layer.sop_nonzero_weight
    return Sums(
        events=mean(layer.events),
        elements=float(layer.in_numel * (1 if layer.once else T)),
        sop=mean(layer.sop),
        sop_nonzero_weight=None if weighted is None else mean(weighted),
        ac=mean(charged(layer, layer_ac(layer, policy), policy, T)),
        mac=mean(charged(layer, layer_mac(layer, policy), policy, T)),
        mac_dense_exact=layer.dense_exact * dense,
        mac_dense_nominal=layer.dense_nominal * dense,
        bias_adds=float(bias * steps),
        energy=energy,
    )


def module_tree(rows: list[Row]) -> Node:
    """The rows under the modules that their dotted names speak of; a module that holds one thing is joined with it."""
    root = Node("", Sums())
    for row in rows:
        node = root
        for part in row.layer.name.split("."):
            found = next((child for child in node.children if child.label == part), None)
            if found is None:
                found = Node(part, Sums())
                node.children.append(found)
            node = found
        node.row = row
    _sum(root)
    return root


def step_rates(counts: Counts) -> tuple[list[str], FloatArray]:
    """Layers of spiking neurons, and their spikes per neuron and step [L, T], means over the samples."""
    shape = (counts.T, counts.samples)
    neurons = [n for n in counts.of(NeuronCount) if n.spiking and n.updates and n.spikes.shape == shape]
    rates = [n.spikes.mean(1) / n.updates for n in neurons]
    return [n.name for n in neurons], np.array(rates, np.float64).reshape(len(neurons), counts.T)


def kind_text(layer: Layer) -> str:
    """The kind of what goes in, with the quantum of a scaled one; of two activations, both."""

    def one(kind: str, quantum: float) -> str:
        return f"{kind} {quantum:.3g}" if kind.startswith("scaled") else kind

    first = one(layer.kind, layer.quantum)
    return first if layer.kind_b is None else f"{first} × {one(layer.kind_b, layer.quantum_b or 1.0)}"


def _sum(node: Node) -> None:
    """Fill in the sums from below; join a module that holds one thing with it."""
    for child in node.children:
        _sum(child)
    node.children = [_joined(child) for child in node.children]
    if node.row is not None:
        node.sums.add(node.row.sums)
    for child in node.children:
        node.sums.add(child.sums)


def _joined(node: Node) -> Node:
    if node.row is not None or len(node.children) != 1:
        return node
    child = node.children[0]
    return Node(f"{node.label}.{child.label}", child.sums, child.row, child.children)
