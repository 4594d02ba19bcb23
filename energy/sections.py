"""The tables of a report: layers, totals, energies by hardware model, comparison, neurons and the rest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from spikeloom.energy.baselines import Row
from spikeloom.energy.conventions import basis, short, static_text
from spikeloom.energy.counts import IntArray
from spikeloom.energy.models import EnergyModel
from spikeloom.energy.report import Report
from spikeloom.energy.stats import Interval, interval
from spikeloom.energy.subject import subject
from spikeloom.energy.tables import Cell, Head, Table
from spikeloom.energy.totals import Totals
from spikeloom.energy.tree import Node
from spikeloom.energy.units import count_text, energy_range, energy_text, rate_text, ratio_text, share_text
from spikeloom.energy.words import reason_text, static_energies, static_layers

ROW_NAMES = {
    "exact": "exact",
    "paper": "paper rule",
    "ann_nominal": "ANN, nominal",
    "ann_exact": "ANN, exact",
    "qann": "QANN",
}

_SAME = "same for every sample"
_UNASSIGNED = {"SOP": "sop", "AC": "ac", "MAC, effective": "mac"}


def layer_table(report: Report) -> Table:
    """The tree of modules: what each linear operation did and what it costs."""
    root, total = report.tree(), report.main.mean
    heads = [
        Head("layer", number=False),
        Head("op", number=False, keep=3),
        Head("input kind", number=False, keep=7),
        Head("rate", keep=8),
        Head("energy", keep=8),
        Head("share"),
        Head("SOP"),
        Head("events", keep=2),
        Head("SOP-nz", keep=1),
        Head("AC", keep=6),
        Head("MAC", keep=6),
        Head("MAC dense", keep=5),
        Head("bias", keep=0),
    ]
    table = Table("Layers", heads)
    for child in root.children:
        for depth, node in child.walk():
            _layer_line(table, node, depth, total)
    beside = [name for name in report.main.layers if name not in {layer.name for layer in report.counts.layers}]
    pj = sum(report.main.layer_mean(name) for name in beside)
    if pj:
        more = ", ".join(beside[:2]) + (f" and {len(beside) - 2} more" if len(beside) > 2 else "")
        share = Cell(share_text(pj / total), "", 0, pj / total)
        table.add(f"beside: {more}", "", "", "", energy_text(pj), share, *[""] * 7, style="module")
    root.sums.energy = total
    _layer_line(table, root, 0, total, "total")
    table.note = (
        f"{basis(report.counts)}; energy: {report.main.model.name}. {short(report.policy)}. Rate: non-zero share of "
        "the input. MAC: zeros skipped; MAC dense: exact terms of the layers booked as MAC. Bias is in no total unless "
        "asked for. † static input. ‡ not told apart by step and sample."
    )
    return table


def totals_table(report: Report) -> Table:
    """Mean, standard deviation, interval and percentiles over the samples."""
    heads = [
        Head("per inference", number=False),
        Head("mean"),
        Head("sd", keep=6),
        Head("95 % interval of the mean", keep=8),
        Head("p5", keep=4),
        Head("median", keep=5),
        Head("p95", keep=4),
        Head("convention", number=False, keep=3, wrap=34),
    ]
    table = Table("Totals", heads)
    totals, counts = report.totals, report.counts
    integers = {"unit": "integers by units", "mac": "integers as MAC", "graded": "graded spikes"}[
        report.policy.integers
    ]
    lines: list[tuple[str, IntArray, str]] = [
        ("SOP", totals.sop, "all activations of a term non-zero"),
        (
            "AC",
            totals.ac,
            f"{integers}{', bias included' if report.policy.include_bias else ''}; {static_text(report.policy)}",
        ),
        ("MAC, effective", totals.mac_effective, f"zeros skipped; {static_text(report.policy)}"),
        ("AC of average pools", totals.pool_ac, "one per non-zero input and window; in no total"),
        ("AC of residual additions", totals.residual_ac, "both operands non-zero; in no total"),
        ("AC of sums", totals.sum_ac, "one per event; in no total"),
        ("payload multiplications", totals.graded_mul, "graded integer spikes; in no total"),
    ]
    for name, array, how in lines:
        if array.any() or name in ("SOP", "AC", "MAC, effective"):
            extra = totals.unassigned.get(_UNASSIGNED.get(name, ""), 0) / counts.samples
            table.add(name, *_statistics(interval(array.sum(0) + extra)), how)
    _constant_lines(table, report)
    for name in report.prices:
        table.add(f"energy, {name}", *_statistics(report.energy(name), energy=True), report.prices[name].model.formula)
    table.note = f"{basis(counts)}; intervals: Student's t; percentiles: of the samples."
    if any(totals.unassigned.values()):
        table.note += " What could not be told apart by sample is spread evenly over the samples."
    return table


def energy_table(report: Report) -> Table:
    """A line per hardware model: energy, ANN, ratio, and how much to believe it."""
    of = subject(report.counts)
    heads = [
        Head("hardware model", number=False),
        Head("energy"),
        Head("95 % interval", keep=5),
        Head(of.other, keep=7),
        Head(of.ratio),
        Head("evidence", number=False, keep=6),
        Head("scope", number=False, keep=4),
        Head("technology", number=False, keep=3, wrap=24),
    ]
    table = Table("Energy per inference by hardware model", heads)
    for model in report.models:
        if model.name in report.refused:
            table.add(model.name, Cell("not priced", "warn"), "", "", "", model.evidence, model.scope, model.technology)
            continue
        found, ann, ratio = report.energy(model.name), report.ann(model.name), report.ratio(model.name)
        table.add(
            model.name,
            energy_text(found.mean),
            _range(found, energy=True),
            energy_text(ann),
            Cell(_ratio(ratio)[0]) if of.ann else Cell(*_ratio(ratio)),
            model.evidence + (", disputed" if model.disputed else ""),
            model.scope.replace("_", " "),
            model.technology,
        )
    table.note = (
        f"{'dense: zeros too' if of.ann else 'ANN: the same graph with ReLUs, one step'}, every exact term a MAC; - "
        "where the model has no price for that. All in: memory, routing and leakage are inside the price."
    )
    table.note += "".join(f" {name}: {reason}" for name, reason in report.refused.items())
    return table


def comparison_table(report: Report, model: str) -> Table:
    """Exact counts, the papers' rule, ANN and QANN under one model."""
    heads = [
        Head("counted as", number=False),
        Head("energy"),
        Head("exact / this" if subject(report.counts).ann else "SNN exact / this"),
        Head("AC", keep=5),
        Head("MAC", keep=5),
        Head("how", number=False, keep=6, wrap=36),
    ]
    table = Table(f"Side by side, {model}", heads)
    for row in _rows(report, model):
        same = row.name == "qann" and math.isfinite(row.ratio_equal)
        other = row.ratio_equal if same else row.ratio
        ratio = 1 / other if other and math.isfinite(other) else None
        style = "" if row.name in ("exact", "paper") else _ratio(ratio)[1]
        words = "-" if ratio is None else ratio_text(ratio) + (" *" if same else "")
        ac, mac = count_text(row.ac), count_text(row.mac)
        table.add(ROW_NAMES.get(row.name, row.name), energy_text(row.energy_pj), Cell(words, style), ac, mac, row.how)
    table.note = "per inference, means."
    if not subject(report.counts).ann:
        table.note += " * the exact counts at 8-bit integer constants over the QANN, so at equal precision."
    return table


def reasons_table(report: Report, model: str) -> Table:
    """Why the lines of the comparison differ from the exact one."""
    table = Table(
        "Why they differ from the exact counts",
        [Head("", number=False), Head("difference"), Head("reason", number=False, wrap=40)],
    )
    for row in _rows(report, model):
        for index, reason in enumerate(row.reasons):
            name = ROW_NAMES.get(row.name, row.name) if index == 0 else ""
            amount, _, words = reason_text(reason.pj, reason.text).partition(": ")
            table.add(name, amount, words)
    table.note = "The reasons of a line add up to its difference from the exact energy."
    return table


def _rows(report: Report, model: str) -> list[Row]:
    """The rows to show: what tells T + 1 numbers of spikes apart says nothing of an ANN's activations."""
    rows = report.comparisons[model]
    return [row for row in rows if row.name != "qann"] if subject(report.counts).ann else rows


def static_table(report: Report) -> Table:
    """Layers whose input never changes: computed in every step, and once."""
    heads = [
        Head("", number=False),
        Head("AC"),
        Head("MAC"),
        Head(f"energy, {report.main.model.name}"),
        Head("SNN / ANN"),
    ]
    table = Table("Static input: the same bits at every step", heads)
    energies = static_energies(report, report.main.model.name)
    if energies is None:
        return table
    ann = report.ann()
    for once, pj in zip((False, True), energies, strict=True):
        policy = replace(report.policy, static_once=once)
        totals, samples = Totals(report.counts, policy), report.counts.samples
        ratio = pj / ann if ann else None
        table.add(
            static_text(policy) + (" (used above)" if policy == report.policy else ""),
            count_text((float(totals.ac.sum()) + totals.unassigned["ac"]) / samples),
            count_text((float(totals.mac_effective.sum()) + totals.unassigned["mac"]) / samples),
            energy_text(pj),
            Cell(*_ratio(ratio)),
        )
    table.note = f"Layers: {', '.join(static_layers(report))}. Papers disagree silently on this, so both are given."
    return table


def models_table(models: Sequence[EnergyModel]) -> Table:
    """Hardware models with constants and sources."""
    heads = [
        Head("model", number=False),
        Head("formula, pJ", number=False, wrap=26),
        Head("evidence", number=False, wrap=9),
        Head("scope", number=False, keep=8),
        Head("technology", number=False, keep=3, wrap=16),
        Head("constants", number=False, keep=6, wrap=20),
        Head("source", number=False, keep=7, wrap=26),
        Head("remarks", number=False, keep=1, wrap=40),
    ]
    table = Table("Hardware models", heads)
    for model in models:
        used = model.used()
        constants = ", ".join(f"{name} = {_constant(value)}" for name, value in used.items() if value is not None)
        evidence = Cell(model.evidence + (", disputed" if model.disputed else ""), "warn" if model.disputed else "")
        scope = model.scope.replace("_", " ")
        table.add(model.name, model.formula, evidence, scope, model.technology, constants, model.source, model.remarks)
    table.note = "Constants in pJ per operation. A TOML file adds models of your own: --models-file, load_models(path)."
    return table


def _constant_lines(table: Table, report: Report) -> None:
    """What is the same for every sample."""
    totals, T = report.totals, report.counts.T
    lines = [
        ("MAC, dense, exact", totals.mac_dense_exact * T, "all terms inside the borders of the layers booked as MAC"),
        ("MAC, dense, nominal", totals.mac_dense_nominal * T, "with taps on zero padding, as FLOPs counters count"),
        ("bias additions", float(totals.bias_adds_per_step.sum()), "every step, spike or not; after folding"),
        (
            "MAC of batch norms",
            float(totals.bn_mac * T),
            "those that do not fold" if report.policy.bn == "fold" else "all",
        ),
        ("neuron updates", float(totals.neuron_updates * T), "one per neuron and step"),
        ("ANN MAC, exact", totals.ann_mac_exact, "one step, terms inside the borders"),
        ("ANN MAC, nominal", totals.ann_mac_nominal, "one step, with taps on zero padding"),
    ]
    for name, value, how in lines:
        if value:
            table.add(name, count_text(value), "", _SAME, "", "", "", how)


def _layer_line(table: Table, node: Node, depth: int, total: float, style: str = "") -> None:
    sums, row = node.sums, node.row
    layer = row.layer if row is not None and not node.children else None
    style = style or ("module" if layer is None else "" if layer.assigned else "warn")
    flags = "" if layer is None else "".join((" †" if layer.static_input else "", "" if layer.assigned else " ‡"))
    share = sums.energy / total if total else 0.0
    table.add(
        Cell(("total" if style == "total" else node.label) + flags, "", depth),
        "" if layer is None else layer.op + (f" ×{layer.calls}" if layer.calls > 1 else ""),
        "" if row is None or layer is None else row.kind,
        "" if layer is None else rate_text(sums.rate),
        energy_text(sums.energy),
        Cell(share_text(share), "", 0, share),
        count_text(sums.sop),
        count_text(sums.events),
        count_text(sums.sop_nonzero_weight),
        count_text(sums.ac),
        count_text(sums.mac),
        count_text(sums.mac_dense_exact),
        count_text(sums.bias_adds),
        style=style,
    )


def _statistics(found: Interval, energy: bool = False) -> list[str]:
    """Mean, sd, interval, p5, median, p95."""
    words = energy_text if energy else count_text
    spread = words(found.sd) if math.isfinite(found.sd) else "-"
    low, middle, high = (words(found.percentiles[p]) for p in (5.0, 50.0, 95.0))
    return [words(found.mean), spread, _range(found, energy), low, middle, high]


def _range(found: Interval, energy: bool) -> str:
    if not math.isfinite(found.low):
        return "-"
    if found.sd == 0:
        return _SAME
    return energy_range(found.low, found.high) if energy else f"{count_text(found.low)}–{count_text(found.high)}"


def _ratio(ratio: float | None) -> tuple[str, str]:
    """A ratio with its style."""
    return ("-", "") if ratio is None else (ratio_text(ratio), "more" if ratio > 1 else "less")


def _constant(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(f"{size:,.0f} B: {pj:g}" for size, pj in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
