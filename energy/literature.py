"""The literature's rule: FLOPs x T x firing rate. Kept to reproduce published numbers; `compare` shows what it misses.

A layer with weights on analogue values costs a MAC per FLOP and step, whatever its position; any other layer with
weights an AC per FLOP, step and rate of its input; a matmul of two activations the same with the rate of the first
operand, also if both are analogue. FLOPs are `dense_nominal`: taps on zero padding count. Normalisations, and whether
spikes are integers, do not appear. Source: the practice of the papers on SEW-ResNet, Spikformer and attention SNNs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spikeloom.energy.counts import Counts, Layer
from spikeloom.energy.models import EnergyModel
from spikeloom.energy.parts import FloatArray, Part, every_step, part
from spikeloom.energy.totals import DEFAULT_POLICY, Policy, charged, charged_steps


@dataclass(frozen=True)
class Literature:
    """The rule's operations and energy: means over the samples of a run."""

    ac: float
    mac: float
    energy_pj: float


def rule_is_mac(layer: Layer) -> bool:
    """Does the rule book this layer as MACs?"""
    return layer.is_param and layer.kind == "float"


def rule_operations(counts: Counts, layer: Layer, policy: Policy = DEFAULT_POLICY) -> FloatArray:
    """The rule's operations of a layer, [T, N], or [1, 1] for the run.

    The rate of a run is the mean of the rates of its steps and samples, so each is charged with its own and sums agree.
    """
    if rule_is_mac(layer):
        return every_step(counts, layer.dense_nominal * charged_steps(layer, policy, counts.T)[:, None])
    if not layer.in_numel:
        return np.zeros(layer.events.shape)
    return charged(layer, layer.events, policy, counts.T) * (layer.dense_nominal / layer.in_numel)


def literature_rule(counts: Counts, ac: float = 0.9, mac: float = 4.6) -> Literature:
    """What the rule says of a run: operations and pJ per sample, averaged.

    Args:
        ac, mac: pJ (estimated: Horowitz, ISSCC 2014, 45 nm, 32-bit floating point).
    """
    total = {True: 0.0, False: 0.0}
    for layer in counts.layers:
        total[rule_is_mac(layer)] += float(rule_operations(counts, layer).sum()) / counts.samples
    return Literature(total[False], total[True], ac * total[False] + mac * total[True])


def rule_parts(counts: Counts, model: EnergyModel, policy: Policy) -> Iterator[Part]:
    """The rule priced with a model's `ac` and `mac`."""
    for layer in counts.layers:
        price = model.constants["mac" if rule_is_mac(layer) else "ac"]
        yield part(counts, layer.name, "synaptic", price * rule_operations(counts, layer, policy))
