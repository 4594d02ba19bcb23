"""The arithmetic of a neuron update, by model, and what else a network computes beside its linear operations.

Neurons, per update: IF 1 AC and 1 comparison; LIF and PLIF (with or without a decaying input: the gain 1/tau folds into
the weights) 1 MAC and 1 comparison; a current-based LIF 2 MAC and 1 comparison; I-LIF as LIF, with a rounding for the
comparison; LI 1 MAC. A soft reset costs one more AC per spike, a hard reset nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spikeloom.energy.counts import Counts, IntArray, NeuronCount, NormCount, PairCount, PoolCount, SumCount
from spikeloom.energy.models import EnergyModel
from spikeloom.energy.parts import Part, every_step, part
from spikeloom.energy.totals import Policy

_LIF = (0, 1, 1, 0)
_UPDATES = {
    "if": (1, 0, 1, 0),
    "ifsoft": (1, 0, 1, 0),
    "lif": _LIF,
    "plif": _LIF,
    "recurrentlif": _LIF,
    "cuba": (0, 2, 1, 0),
    "cubalif": (0, 2, 1, 0),
    "synaptic": (0, 2, 1, 0),
    "ilif": (0, 1, 0, 1),
    "li": (0, 1, 0, 0),
}
"""(AC, MAC, comparisons, roundings) of one update, whatever the number of state variables."""


@dataclass(frozen=True)
class NeuronArithmetic:
    """What the updates of a layer of neurons compute: per step and sample, and `reset_ac` [T, N] for soft resets."""

    ac: int
    mac: int
    compare: int
    round: int
    reset_ac: IntArray


def model_key(neuron: NeuronCount) -> str:
    """The name of the neuron's model without case, dots and underscores."""
    return neuron.model.rsplit(".", 1)[-1].replace("_", "").lower()


def neuron_arithmetic(neuron: NeuronCount) -> NeuronArithmetic | None:
    """The arithmetic of a layer of neurons; None if the model is not in the list at the top of this file.

    For a neuron written in the loom, `NeuronCount.operations` says what its step computes as written, scalar operation
    by scalar operation; that is the listing beside this convention, not a part of it.
    """
    key = model_key(neuron)
    if key not in _UPDATES:
        return None
    ac, mac, compare, rounding = (neuron.updates * number for number in _UPDATES[key])
    soft = neuron.soft_reset or key == "ifsoft"
    return NeuronArithmetic(ac, mac, compare, rounding, neuron.spikes if soft else np.zeros_like(neuron.spikes))


def norm_parts(counts: Counts, model: EnergyModel, policy: Policy) -> Iterator[Part]:
    """One MAC per element of the normalisations that are charged: all with bn="count", else those that cannot fold."""
    for norm in charged_norms(counts, policy):
        yield part(counts, norm.name, "norm", every_step(counts, norm.elements * model.constants["mac"]))


def charged_norms(counts: Counts, policy: Policy) -> list[NormCount]:
    """The normalisations that cost something."""
    norms: list[NormCount] = counts.of(NormCount)
    return [norm for norm in norms if policy.bn == "count" or norm.folds_into is None]


def aux_parts(counts: Counts, model: EnergyModel, policy: Policy) -> Iterator[Part]:
    """One AC per incidence of an average pool, true addition of a residual connection, and event of a sum."""
    ac, included = model.constants["ac"], policy.include_aux
    for entry in counts.aux:
        if isinstance(entry, PoolCount) and "avg" in entry.op:
            yield part(counts, entry.name, "pool", ac * entry.incidences, included)
        elif isinstance(entry, PairCount) and entry.op == "add":
            yield part(counts, entry.name, "residual", ac * entry.both_nonzero, included)
        elif isinstance(entry, SumCount):
            yield part(counts, entry.name, "sum", ac * entry.events, included)


def neuron_parts(counts: Counts, model: EnergyModel, policy: Policy) -> Iterator[Part]:
    """AC and MAC of the neurons; comparisons cost something only if the model has a price for them."""
    price = model.constants
    for neuron in counts.of(NeuronCount):
        work = neuron_arithmetic(neuron)
        if work is None:
            continue
        update = work.ac * price["ac"] + work.mac * price["mac"] + work.compare * price.get("compare", 0.0)
        yield part(counts, neuron.name, "neurons", every_step(counts, update), policy.include_neurons)
        if work.reset_ac.any():
            yield part(counts, neuron.name, "neurons", price["ac"] * work.reset_ac, policy.include_neurons)


def unknown_neurons(counts: Counts) -> list[str]:
    """Neurons whose arithmetic is not in the list: "name (model)"."""
    neurons: list[NeuronCount] = counts.of(NeuronCount)
    return [f"{n.name} ({n.model})" for n in neurons if neuron_arithmetic(n) is None]
