"""Fewer time steps without running again: the counts of the first T' steps of a run.

True for causal networks only: what happens at step t must not depend on later steps. A network that normalises, pools
or attends over time is not causal. Kinds and quanta stay those of the whole run, and so does `static_input`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

from spikeloom.energy.counts import AC_KINDS, Counts, Layer
from spikeloom.energy.models import EnergyModel
from spikeloom.energy.parts import FloatArray
from spikeloom.energy.pricing import DEFAULT_MODEL, price
from spikeloom.energy.totals import DEFAULT_POLICY, Policy

E = TypeVar("E")

_BY_ARRIVAL = "synaptic operations by the step of arrival: those still on their way when the run stops are not counted"
_UNITS_BY_EMISSION = "unit counts by the step of emission: they include spikes still on their way when the run stops"
_DENSE_OF_RUN = "dense_exact is the average over the whole run of {T} steps"


def what_if(counts: Counts, T: int) -> Counts:
    """The counts of the first T time steps.

    A delayed spike costs its synaptic operation only if it arrives in time, so delay layers are booked by arrival:
    their totals are those of a run of T steps, their steps those of arrival (also for T = counts.T). Two of their
    numbers are not known by arrival and carry a note: units of integer spikes, and `dense_exact`.

    Raises:
        ValueError: T is not between 1 and the steps of the run; counts of a layer are known for the whole run only.
    """
    if not 1 <= T <= counts.T:
        raise ValueError(f"what_if(counts, {T}): the run has {counts.T} time steps; expected 1 to {counts.T}")
    lost = list(_lost(counts))
    if lost and T < counts.T:
        raise ValueError(
            f"The counts of {', '.join(lost)} are known for the whole run only, so fewer time steps cannot be told. "
            f"Run the network with T={T}, or count those layers in a form that keeps time steps apart."
        )
    layers = [_cut(_arriving(layer, T, counts.T), T, counts) for layer in counts.layers]
    aux = [_cut(entry, T, counts) for entry in counts.aux]
    setting = {**counts.setting, "what_if": {"T": T, "of": counts.T}} if T < counts.T else dict(counts.setting)
    return replace(counts, T=T, layers=layers, aux=aux, uncounted=list(counts.uncounted), setting=setting)


def prefix_energy(
    counts: Counts, model: str | EnergyModel = DEFAULT_MODEL, policy: Policy = DEFAULT_POLICY
) -> FloatArray:
    """pJ of every sample if it stopped after step 1, 2, ..., T: [T, N]. Raises as `what_if` and `price`."""
    whole = price(by_arrival(counts), model, policy)
    if whole.steps is not None:
        return whole.steps.cumsum(0)
    return np.stack([price(what_if(counts, t), model, policy).per_sample for t in range(1, counts.T + 1)])


def curve(counts: Counts, model: str | EnergyModel = DEFAULT_MODEL, policy: Policy = DEFAULT_POLICY) -> FloatArray:
    """Mean pJ per sample of runs of 1, 2, ..., T steps: [T]. Raises as `what_if` and `price`."""
    return prefix_energy(counts, model, policy).mean(1)


def by_arrival(counts: Counts) -> Counts:
    """The whole run, so that sums over its first steps are those of shorter runs. Raises as `what_if`."""
    if counts.T > 1 and any(_lost(counts)):
        what_if(counts, 1)  # says which
    return what_if(counts, counts.T)


def _lost(counts: Counts) -> Iterator[str]:
    """Names of entries that are known for the whole run only."""
    shape = (counts.T, counts.samples)
    for layer in counts.layers:
        if not layer.assigned:
            yield layer.name
    for entry in counts.aux:
        if any(array.shape != shape for array in _arrays(entry).values()):
            yield entry.name


def _arrays(entry: Any) -> dict[str, Any]:
    values = {field.name: getattr(entry, field.name) for field in fields(entry)}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _cut(entry: E, T: int, counts: Counts) -> E:
    return replace(entry, **{name: value[:T] for name, value in _arrays(entry).items()}) if T < counts.T else entry  # type: ignore[type-var]


def _arriving(layer: Layer, T: int, whole: int) -> Layer:
    """A delay layer with its synaptic operations in the steps in which they arrive; any other layer as it is."""
    arrived = layer.sop_at_arrival
    if arrived is None:
        return layer
    notes = [*layer.notes, _BY_ARRIVAL]
    all_weights = layer.sop_nonzero_weight is not None and np.array_equal(layer.sop_nonzero_weight, layer.sop)
    unit = layer.sop_unit
    if unit is not None and layer.kind in AC_KINDS:
        unit = arrived
    elif unit is not None and whole > T:
        notes.append(_UNITS_BY_EMISSION)
    if whole > T:
        notes.append(_DENSE_OF_RUN.format(T=whole))
    return replace(
        layer,
        sop=arrived,
        sop_unit=unit,
        sop_nonzero_weight=arrived if all_weights else None,
        dense_exact_whole_run=layer.dense_exact_whole_run if whole == T else None,
        notes=notes,
    )
