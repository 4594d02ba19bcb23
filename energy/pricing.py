"""`price(counts, model, policy)`: picojoules from counts. The same counts can be priced any number of times.

counts = ...                                        # one run
price(counts).mean                                  # 0.9 AC + 4.6 MAC
price(counts, "loihi2018").terms["updates"]         # [N]
price(counts, get_model("memory45", base="horowitz45_int8"), Policy(include_bias=True))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from spikeloom.energy.arithmetic import aux_parts, charged_norms, neuron_parts, norm_parts, unknown_neurons
from spikeloom.energy.counts import UNIT_KINDS, Counts, NeuronCount
from spikeloom.energy.lemaire import lemaire_parts
from spikeloom.energy.literature import rule_parts
from spikeloom.energy.memory_words import memory_parts
from spikeloom.energy.models import EnergyModel, get_model
from spikeloom.energy.parts import FloatArray, Part, add_up, every_step, part
from spikeloom.energy.totals import DEFAULT_POLICY, Policy, charged, charged_steps, folded_bias, layer_ac, layer_mac

DEFAULT_MODEL = "horowitz45_fp32"


@dataclass(frozen=True)
class Price:
    """An energy, and all it was made from.

    Attributes:
        layers: pJ per sample [N] by the name of the linear operation, neuron, pool or normalisation that costs it.
        terms: the same by term: synaptic, bias, norm, pool, residual, sum, neurons, graded_mul, updates, spikes,
            memory_weights, memory_accumulators, memory_events, memory_biases, memory_states; with lemaire2022:
            synaptic, addressing, inout, params, potential. Only what the model prices and the policy includes.
        steps: pJ [T, N]; None if the model does not resolve time steps.
        unassigned: pJ of the whole run of layers whose rows could not be told apart. They are in `mean` only.
        beside: mean pJ per sample of terms that the policy leaves out.
        unpriced: what was counted and the model has no price for, in words.
        constants: the model's constants, options and memory.
    """

    model: EnergyModel
    policy: Policy
    samples: int
    layers: dict[str, FloatArray]
    terms: dict[str, FloatArray]
    steps: FloatArray | None
    unassigned: dict[str, float]
    beside: dict[str, float]
    unpriced: list[str]
    constants: dict[str, Any]

    @cached_property
    def per_sample(self) -> FloatArray:
        """pJ of each sample, [N]."""
        return sum(self.terms.values(), start=np.zeros(self.samples))

    @property
    def mean(self) -> float:
        """pJ per sample, with the share of unassigned layers."""
        return (float(self.per_sample.sum()) + sum(self.unassigned.values())) / self.samples

    def layer_mean(self, name: str) -> float:
        """Mean pJ per sample of one layer, assigned or not; 0 if the model charges it nothing."""
        known = float(self.layers[name].sum()) if name in self.layers else 0.0
        return (known + self.unassigned.get(name, 0.0)) / self.samples


def price(counts: Counts, model: str | EnergyModel = DEFAULT_MODEL, policy: Policy = DEFAULT_POLICY) -> Price:
    """Price counts with a model under a policy.

    Without options this is the energy of the linear operations, and of normalisations that cannot fold: no bias, pools,
    residual additions, sums or neuron arithmetic. A chip's model adds what its constants name, such as updates.

    Args:
        model: a name (see `list_models`) or a model.

    Raises:
        ValueError: no such model; no samples; the policy adds terms that an all-in figure already contains, that the
            rule settles itself or that the model has no price for.
    """
    model = get_model(model) if isinstance(model, str) else model
    if counts.samples < 1 or counts.T < 1:
        raise ValueError(
            f"{counts.samples} samples of {counts.T} steps were counted: nothing to price. Run the network."
        )
    check_policy(model, policy)
    parts = list(_RULES[model.rule](counts, model, policy))
    inside = [one for one in parts if one.included]
    by_step = all(one.pj.ndim == 2 for one in inside)
    return Price(
        model=model,
        policy=policy,
        samples=counts.samples,
        layers=add_up(inside, "name"),
        terms=add_up(inside, "term"),
        steps=_steps(counts, inside) if by_step else None,
        unassigned=_means([one for one in inside if not one.assigned], "name", 1),
        beside=_means([one for one in parts if not one.included], "term", counts.samples),
        unpriced=_unpriced(counts, model, policy),
        constants=model.used(),
    )


def check_policy(model: EnergyModel, policy: Policy) -> None:
    """Refuse terms that a model contains, settles or cannot price.

    Raises:
        ValueError: with the term, the reason and the models that can.
    """
    asked = [name for name in ("bias", "aux", "neurons", "graded_mul") if getattr(policy, f"include_{name}")]
    if model.scope == "all_in" and asked:
        raise ValueError(
            f"energy model {model.name!r} is all-in: its price per synaptic operation already contains "
            f"{', '.join(asked)}, memory and leakage. Price with Policy() or with a per-term model."
        )
    if model.rule == "lemaire":
        refused = [name for name in asked if name != "bias"]  # biases are part of it
    elif not model.per_operation:
        refused = [*asked, *(["bn"] if policy.bn == "count" else [])]
    else:
        refused = [] if "mul" in model.constants else [name for name in asked if name == "graded_mul"]
    if refused:
        raise ValueError(
            f"energy model {model.name!r} (rule {model.rule!r}) has no price of its own for {', '.join(refused)}. "
            "Price with Policy() or with a model of AC and MAC such as horowitz45_fp32."
        )


def _term_parts(counts: Counts, model: EnergyModel, policy: Policy) -> Iterator[Part]:
    """Constant times count."""
    price = model.constants
    for layer in counts.layers:
        ac = charged(layer, layer_ac(layer, policy), policy, counts.T)
        mac = charged(layer, layer_mac(layer, policy), policy, counts.T)
        each = price["ac"] * ac + price["mac"] * mac if model.per_operation else price["sop"] * (ac + mac)
        yield Part(layer.name, "synaptic", each, layer.assigned)
    if model.per_operation:
        yield from _operation_parts(counts, model, policy)
    if "update" in price:
        yield from _update_parts(counts, model)
    yield from _spike_parts(counts, model)
    if model.memory is not None:
        yield from memory_parts(counts, model.memory, policy)


def _operation_parts(counts: Counts, model: EnergyModel, policy: Policy) -> Iterator[Part]:
    """What else is priced as an AC or MAC, included or not."""
    bias = folded_bias(counts, policy)
    for layer in counts.layers:
        adds = bias[layer.name] * charged_steps(layer, policy, counts.T)[:, None]
        if bias[layer.name]:
            pj = every_step(counts, model.constants["ac"] * adds)
            yield part(counts, layer.name, "bias", pj, policy.include_bias)
        graded = policy.integers == "graded" and layer.is_param and layer.kind in UNIT_KINDS
        if graded and "mul" in model.constants:
            events = charged(layer, layer.sop, policy, counts.T)
            pj = model.constants["mul"] * events
            yield Part(layer.name, "graded_mul", pj, layer.assigned, policy.include_graded_mul)
    yield from norm_parts(counts, model, policy)
    yield from aux_parts(counts, model, policy)
    yield from neuron_parts(counts, model, policy)


def _update_parts(counts: Counts, model: EnergyModel) -> Iterator[Part]:
    """Neuron updates; those without input current may have a price of their own."""
    active = model.constants["update"]
    idle = model.constants.get("update_inactive", active)
    if model.options.get("updates") == "all":
        idle = active
    for neuron in counts.of(NeuronCount):
        yield part(counts, neuron.name, "updates", every_step(counts, idle * neuron.updates))
        if active != idle:
            yield part(counts, neuron.name, "updates", (active - idle) * neuron.touched)


def _spike_parts(counts: Counts, model: EnergyModel) -> Iterator[Part]:
    """The way of a spike across a chip."""
    ways = {"tile_spike": "tile_spikes", "hop_ew": "hops_ew", "hop_ns": "hops_ns"}
    way = sum(model.constants.get(price, 0.0) * float(model.options.get(times, 0)) for price, times in ways.items())
    if way:
        for neuron in counts.of(NeuronCount):
            if neuron.spiking:
                yield part(counts, neuron.name, "spikes", way * neuron.spikes)


def _dense_parts(counts: Counts, model: EnergyModel, policy: Policy) -> Iterator[Part]:
    """Every term of every step, those on padding too, and every neuron update."""
    for layer in counts.layers:
        steps = charged_steps(layer, policy, counts.T)[:, None]
        pj = model.constants["dense"] * layer.dense_nominal * steps
        yield part(counts, layer.name, "synaptic", every_step(counts, pj))
    if "update" in model.constants:
        yield from _update_parts(counts, model)


_RULES = {"terms": _term_parts, "dense": _dense_parts, "paper": rule_parts, "lemaire": lemaire_parts}


def _steps(counts: Counts, parts: list[Part]) -> FloatArray:
    total = np.zeros((counts.T, counts.samples))
    for one in parts:
        if one.assigned:
            total += one.pj
    return total


def _means(parts: list[Part], key: str, samples: int) -> dict[str, float]:
    totals: dict[str, float] = {}
    for one in parts:
        totals[getattr(one, key)] = totals.get(getattr(one, key), 0.0) + float(one.pj.sum()) / samples
    return totals


def _unpriced(counts: Counts, model: EnergyModel, policy: Policy) -> list[str]:
    """Counted operations that cost something and that this model cannot price."""
    found = [f"{entry.op} (no counting rule)" for entry in counts.uncounted]
    norms = charged_norms(counts, policy)
    if norms and not model.per_operation and model.rule != "lemaire":
        found.append(f"{sum(n.elements for n in norms)} MAC per step of normalisations that do not fold")
    unknown = unknown_neurons(counts)
    if unknown and policy.include_neurons:
        found.append(f"the arithmetic of {', '.join(unknown)}")
    return found
