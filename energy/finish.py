"""From the sites of a run to `Counts`: kinds are judged now that all values are known."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from spikeloom.energy.counts import (
    UNIT_KINDS,
    Aux,
    Counts,
    IntArray,
    Layer,
    MapCount,
    NeuronCount,
    NormCount,
    PairCount,
    PoolCount,
    SumCount,
    Uncounted,
)
from spikeloom.energy.kinds import Kind, Values, classify, override
from spikeloom.energy.sites import Site

if TYPE_CHECKING:
    from spikeloom.energy.run import Run


def finish(run: Run) -> Counts:
    """All that a run counted.

    Raises:
        KeyError: an override in `kinds` names no layer.
    """
    sites = list(run.sites.values())
    names = {site.name for site in sites} | {"input"}
    if unknown := [name for name in run.kinds if name not in names]:
        raise KeyError(f"kinds names {unknown}, which did not run; there are {', '.join(sorted(names))}")
    sizes = run.sizes
    layers = [_layer(site, run) for site in sites if "operands" in site.facts and site.spans]
    aux = [_aux(site, run) for site in sites if "aux" in site.facts]
    return Counts(
        sizes[0][0],
        sum(B for _, B in sizes),
        layers,
        aux,
        [Uncounted(op, module, calls, numel) for (op, module), (calls, numel) in run.uncounted.items()],
        run.max_levels,
        {"torch": torch.__version__, "python": platform.python_version(), **run.setting},
    )


def _kind(run: Run, site: Site, operand: str) -> Kind:
    values = site.values.get(operand, Values())
    named = run.kinds.get(site.name)
    if named is None and values.network_input:
        named = run.kinds.get("input")
    if named is not None and operand in ("a", "spikes"):
        return override(site.name, named, values, run.max_levels)
    return classify(values, run.max_levels)


def _units(site: Site, kind: Kind, operand: str, total: str, sizes: list[tuple[int, int]]) -> IntArray:
    """Counts weighted with unit spikes."""
    arrays = site.level_arrays(operand, total, sizes)
    result = np.zeros_like(next(iter(arrays.values())))
    for level, array in arrays.items():
        result += kind.units(level) * array
    return result


def _layer(site: Site, run: Run) -> Layer:
    sizes, dense = run.sizes, site.dense
    kind = _kind(run, site, "a")

    def array(name: str) -> IntArray | None:
        return site.array(name, sizes) if name in site.spans else None

    sop, events = site.array("sop", sizes), site.array("events", sizes)
    layer = Layer(
        site.name,
        site.op,
        site.facts["operands"],
        kind.name,
        kind.quantum,
        sop,
        events,
        dense["dense_exact"],
        dense["dense_nominal"],
        int(dense["out_numel"]),
        int(dense["in_numel"]),
        int(dense["bias_adds"]),
        bool(site.static),
        site.calls_per_step,
        site.known,
        site.once,
        site.geometry,
    )
    if layer.is_param:
        layer.sop_nonzero_weight = _completed(site, "sop_nz", "sop", run)
        if kind.name in UNIT_KINDS:
            layer.sop_unit = _units(site, kind, "a", "sop", sizes)
        elif kind.name != "float":
            layer.sop_unit = np.zeros_like(sop) if kind.name == "zero" else sop
        layer.sop_at_arrival = array("arrival")
        if "whole_run" in dense:
            layer.dense_exact_whole_run = int(dense["whole_run"])
    else:
        other = _kind(run, site, "b")
        layer.kind_b, layer.quantum_b = other.name, other.quantum
        layer.events_b, layer.in_numel_b = array("events_b"), int(dense["in_numel_b"])
        layer.sop_a, layer.sop_b = array("sop_a"), array("sop_b")
    if not site.known:
        layer.notes.append("rows could not be told apart by step and sample: sums over the run")
    return layer


def _completed(site: Site, name: str, otherwise: str, run: Run) -> IntArray:
    """An array that was left out in passes in which it equals another."""
    spans = {**site.spans[otherwise], **site.spans.get(name, {})}
    merged = Site(site.name, site.op, spans={name: spans}, known=site.known)
    return merged.array(name, run.sizes)


def _aux(site: Site, run: Run) -> Aux:
    sizes, dense = run.sizes, site.dense
    numbers: Mapping[str, int] = {name: round(value) for name, value in dense.items()}
    out = _kind(run, site, "out").name if "out" in site.values else "zero"
    if site.op == "neuron":
        spikes = site.array("spikes", sizes)
        kind = classify(site.values.get("spikes", Values()), run.max_levels)
        units = spikes if kind.name in ("zero", "binary") else None
        if kind.name == "integer":
            units = _units(site, kind, "spikes", "spikes", sizes)
        facts = site.facts
        return NeuronCount(
            site.name,
            facts["model"],
            numbers["updates"],
            facts["states"],
            spikes,
            site.array("touched", sizes),
            units,
            facts["soft_reset"],
            facts["spiking"],
            facts["operations"],
        )
    if site.op == "batchnorm":
        into = site.facts["folds_into"] or None  # () where some call could not fold
        return NormCount(site.name, numbers["elements"], into, numbers["elements"] if into else 0)
    if site.op in ("add", "mul"):
        return PairCount(site.name, site.op, site.array("both", sizes), site.array("any", sizes), numbers["numel"], out)
    if "_pool" in site.op:
        incidences = site.array("incidences", sizes)
        return PoolCount(site.name, site.op, incidences, numbers["dense"], numbers["out_numel"], out)
    if site.op == "sum":
        return SumCount(site.name, site.array("events", sizes), numbers["numel"], out)
    return MapCount(site.name, site.op, numbers.get("numel", 0), out)
