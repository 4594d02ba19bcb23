"""A report for programs: one dict with everything, and CSV lines per layer or per layer and step."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import spikeloom
from spikeloom.energy.conventions import conventions
from spikeloom.energy.counts import IntArray, Layer
from spikeloom.energy.memory import Memory
from spikeloom.energy.models import EnergyModel
from spikeloom.energy.pricing import Price
from spikeloom.energy.report import VERSION, Report
from spikeloom.energy.stats import to_dict as interval_dict
from spikeloom.energy.store import REPORT_FORMAT, StoreError, to_dict, write_bytes
from spikeloom.energy.totals import books_mac, charged, folded_bias, layer_ac, layer_mac

Value = str | int | float | bool | None


def report_dict(report: Report) -> dict[str, Any]:
    """A report as plain values. Operations under "run" are integers, summed over steps and samples; pJ are means."""
    return plain(
        {
            "format": REPORT_FORMAT,
            "version": VERSION,
            "spikeloom": spikeloom.__version__,
            "title": report.title,
            "T": report.counts.T,
            "samples": report.counts.samples,
            "accuracy": report.accuracy,
            "accuracy_note": report.accuracy_note,
            "accuracy_by_step": report.accuracy_by_step,
            "policy": dataclasses.asdict(report.policy),
            "conventions": dict(conventions(report.counts, report.policy)),
            "run": run_totals(report),
            "sop_per_inference": interval_dict(report.sop),
            "energies": [energy_dict(report, found) for found in report.prices.values()],
            "refused": report.refused,
            "layers": csv_rows(report),
            "models": [dataclasses.asdict(model) for model in report.models],
            "counts": to_dict(report.counts),
        }
    )


def run_totals(report: Report) -> dict[str, Any]:
    """Operations of the whole run, and dense terms and updates per step and sample."""
    totals, counts = report.totals, report.counts
    memory = {name: int(words.sum()) for name, words in totals.memory_words.items()}
    return {
        "sop": int(totals.sop.sum()),
        "ac": int(totals.ac.sum()),
        "mac_effective": int(totals.mac_effective.sum()),
        "pool_ac": int(totals.pool_ac.sum()),
        "residual_ac": int(totals.residual_ac.sum()),
        "sum_ac": int(totals.sum_ac.sum()),
        "graded_mul": int(totals.graded_mul.sum()),
        "bias_adds": int(totals.bias_adds_per_step.sum()) * counts.samples,
        "neuron_updates": totals.neuron_updates * counts.T * counts.samples,
        "memory_words": memory,
        "unassigned": totals.unassigned,
        "mac_dense_exact_per_step": totals.mac_dense_exact,
        "mac_dense_nominal_per_step": totals.mac_dense_nominal,
        "ann_mac_exact": totals.ann_mac_exact,
        "ann_mac_nominal": totals.ann_mac_nominal,
        "bn_mac_per_step": totals.bn_mac,
    }


def energy_dict(report: Report, found: Price) -> dict[str, Any]:
    """One model: who says so, pJ per inference with its interval and parts, and the comparison."""
    model = found.model
    names = [*found.layers, *(name for name in found.unassigned if name not in found.layers)]
    return {
        "model": model.name,
        "technology": model.technology,
        "formula": model.formula,
        "source": model.source,
        "evidence": model.evidence,
        "scope": model.scope,
        "disputed": model.disputed,
        "remarks": model.remarks,
        "constants": found.constants,
        "pj_per_inference": {**interval_dict(report.energy(model.name)), "mean": found.mean},
        "terms_pj": {name: float(values.mean()) for name, values in found.terms.items()},
        "layers_pj": {name: found.layer_mean(name) for name in names},
        "beside_pj": found.beside,
        "unpriced": found.unpriced,
        "ann_pj": report.ann(model.name),
        "ratio_to_ann": report.ratio(model.name),
        "comparison": [dataclasses.asdict(row) for row in report.comparisons.get(model.name, [])],
    }


def stored_model(data: Mapping[str, Any]) -> EnergyModel:
    """The model of `report_dict`, with the constants of that time.

    Raises:
        StoreError: it lacks a field or has an unknown one.
    """
    memory = data.get("memory")
    try:
        return EnergyModel(**{**data, "memory": None if memory is None else Memory(**memory)})
    except TypeError as error:
        raise StoreError(
            f"a stored hardware model cannot be read: {error}. Price again with models of your choice."
        ) from error


def csv_rows(report: Report, steps: bool = False) -> list[dict[str, Value]]:
    """A row per layer, or per layer and time step (t from 1).

    Operations are integers, summed over the samples (and over the steps, without `steps`); `..._pj` are means per
    inference. A layer whose rows could not be told apart has one row, with t empty and `assigned` false.
    """
    rows: list[dict[str, Value]] = []
    bias = folded_bias(report.counts, report.policy)
    for layer in report.counts.layers:
        if steps and layer.assigned:
            rows += [_row(report, layer, bias[layer.name], t, steps) for t in range(report.counts.T)]
        else:
            rows.append(_row(report, layer, bias[layer.name], None, steps))
    return rows


def write_csv(rows: Sequence[Mapping[str, Value]], path: str | Path) -> Path:
    """Write rows; None is an empty field. Returns the path."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    target = Path(path)
    write_bytes(target, text.getvalue().encode())
    return target


def read_csv(path: str | Path) -> list[dict[str, Value]]:
    """The rows of `write_csv`, with their types: integers, floats, true and false, text, None."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def plain(value: Any) -> Any:
    """Numbers that JSON lacks (NaN, infinity) as None; arrays and tuples as lists; whole floats stay floats."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


_TEXT = ("layer", "op", "operands", "kind", "kind_b")


def _row(report: Report, layer: Layer, bias: int, t: int | None, by_step: bool) -> dict[str, Value]:
    """A layer in one step, or in all (t None)."""
    counts, policy = report.counts, report.policy
    steps = counts.T if t is None else 1

    def total(array: IntArray | None) -> int | None:
        return None if array is None else int(array.sum() if t is None else array[t].sum())

    ac = total(charged(layer, layer_ac(layer, policy), policy, counts.T))
    mac = total(charged(layer, layer_mac(layer, policy), policy, counts.T))
    events, elements = total(layer.events) or 0, layer.in_numel * steps * counts.samples
    dense = {"dense_exact_per_step": layer.dense_exact, "dense_nominal_per_step": layer.dense_nominal}
    return {
        "layer": layer.name,
        "op": layer.op,
        "operands": layer.operands,
        **({"t": None if t is None else t + 1} if by_step else {}),
        "kind": layer.kind,
        "quantum": layer.quantum,
        "kind_b": layer.kind_b,
        "samples": counts.samples,
        "steps": steps,
        "rate": events / elements if elements else None,
        "events": events,
        "sop": total(layer.sop),
        "sop_nonzero_weight": total(layer.sop_nonzero_weight),
        "sop_unit": total(layer.sop_unit),
        "ac": ac,
        "mac_effective": mac,
        **dense,
        "booked_as_mac": books_mac(layer, policy),
        "bias_adds_per_step": bias,
        "static_input": layer.static_input,
        "calls": layer.calls,
        "assigned": layer.assigned,
        **({} if by_step else {f"{name}_pj": found.layer_mean(layer.name) for name, found in report.prices.items()}),
    }


def _value(name: str, text: str | None) -> Value:
    if not text:
        return None
    if name in _TEXT:
        return text
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text)
    except ValueError:
        return float(text)
