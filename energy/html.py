"""A report as one HTML page: pictures are inline SVG, nothing is loaded, no script runs; light, dark and on paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import spikeloom
from spikeloom.energy import figures, pictures
from spikeloom.energy.baselines import context
from spikeloom.energy.conventions import conventions, static_text
from spikeloom.energy.others import memory_table, neuron_table, norm_table, other_table, uncounted_table
from spikeloom.energy.report import Report
from spikeloom.energy.sections import (
    comparison_table,
    energy_table,
    layer_table,
    models_table,
    reasons_table,
    static_table,
    totals_table,
)
from spikeloom.energy.subject import subject
from spikeloom.energy.tables import Cell, Table
from spikeloom.energy.units import count_text, energy_text, rate_text, ratio_text
from spikeloom.energy.words import cautions, headline, interval_text, verdict

TEMPLATE = Path(__file__).with_name("_report.html.j2")
_HALF = 440.0
"""Width of a picture that shares its line with another."""

Part = dict[str, Any]


def render_page(report: Report) -> str:
    """The page.

    Raises:
        ImportError: jinja2 is not installed.
    """
    jinja2 = require_jinja2()
    source = TEMPLATE.read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text: str = environment.from_string(source).render(page(report))
    return text


def require_jinja2() -> Any:
    """The module; ImportError says how to get it."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            "The HTML page needs jinja2, which is not installed. Install it with `pip install 'spikeloom[report]'`; "
            "tables, JSON and CSV work without."
        ) from error
    return jinja2


def page(report: Report) -> Part:
    """Everything that the template shows."""
    policy = report.policy
    samples = f"{report.counts.samples:,} samples" if report.counts.samples != 1 else "1 sample"
    kicker = [f"T = {report.counts.T} time steps", samples, str(report.counts.setting.get("data", ""))]
    return {
        "version": spikeloom.__version__,
        "title": report.title,
        "kicker": " · ".join(words for words in kicker if words),
        "headline": headline(report),
        "tiles": tiles(report),
        "verdict": verdict(report),
        "cautions": cautions(report),
        "pictures": [part for part in picture_parts(report) if part["pictures"]],
        "tables": table_parts(report),
        "conventions": conventions(report.counts, policy),
        "constants": _table(models_table(report.models)),
        "setting": [(name.replace("_", " "), str(value)) for name, value in report.counts.setting.items()],
    }


def tiles(report: Report) -> list[dict[str, str]]:
    """The numbers at the top."""
    energy, ann, ratio, model = report.energy(), report.ann(), report.ratio(), report.main.model
    found = []
    if report.accuracy is not None:
        share = f"{report.accuracy:.1%}".replace("%", " %")
        found.append({"what": "Accuracy", "number": share, "detail": report.accuracy_note, "tone": ""})
    words = interval_text(report.sop.low, report.sop.high, energy=False) or "1 sample, no interval"
    found.append({"what": "SOP per inference", "number": count_text(report.sop.mean), "detail": words, "tone": ""})
    words = interval_text(energy.low, energy.high) if energy.sd else "the same for every sample"
    detail = f"{words}; {model.name}, {model.evidence}".lstrip("; ")
    found.append({"what": "Energy per inference", "number": energy_text(energy.mean), "detail": detail, "tone": ""})
    if ann is not None and ratio is not None:
        tone = "more" if ratio > 1 else "less"
        says = "more than" if ratio > 1 else "less than"
        of = subject(report.counts)
        detail = f"{says} the same ANN: {energy_text(ann)}, one step, ReLUs"
        if of.ann:
            tone, detail = "", f"dense, every term a MAC: {energy_text(ann)}"
        found.append({"what": of.ratio, "number": ratio_text(ratio), "detail": detail, "tone": tone})
    return found


def picture_parts(report: Report) -> list[Part]:
    """The sections with pictures, in order."""
    return [_layer_part(report), _rate_part(report), _sample_part(report), _step_part(report), _ratio_part(report)]


def table_parts(report: Report) -> list[Part]:
    """The sections with tables, in order; empty tables are left out."""
    model = next(iter(report.comparisons), None)
    side = [] if model is None else [comparison_table(report, model), reasons_table(report, model)]
    lead = " ".join(context(report.counts, report.policy))
    parts = [
        ("Layer by layer", "", [layer_table(report)]),
        ("Totals", "", [totals_table(report), memory_table(report)]),
        ("Hardware models", "", [energy_table(report)]),
        ("Exact, paper rule, ANN" + ("" if subject(report.counts).ann else ", QANN"), lead, side),
        ("Static input", "", [static_table(report)]),
        ("Beside the linear operations", "", [neuron_table(report), norm_table(report), other_table(report)]),
        ("Not counted", "", [uncounted_table(report)]),
    ]
    found = []
    for title, words, tables in parts:
        shown = [_table(table) for table in tables if table]
        if shown:
            if len(shown) == 1 or shown[0]["title"] == title:
                shown[0]["title"] = ""
            found.append({"title": title, "lead": words, "tables": shown})
    return found


def _layer_part(report: Report) -> Part:
    of = subject(report.counts)
    names = (of.own, of.other) if of.ann else (f"SNN, T = {report.counts.T}", "ANN, one step")
    key = [{"style": style, "text": text} for style, text in zip(("snn", "ann"), names, strict=True)]
    shown = []
    for index, data in enumerate(figures.layer_energies(report)):
        model = report.prices[data.model].model
        wide = index == 0
        svg = pictures.layer_energy(data, pictures.WIDTH if wide else _HALF)
        note = f"{model.technology}, {model.evidence}"
        shown.append(_picture(svg, data.model, note, key=key if wide else [], half=not wide))
    grouped = any(data.grouped for data in figures.layer_energies(report))
    lead = "Mean energy per inference of each layer, "
    lead += f"{of.own} and {of.other}" if of.ann else "spiking network and the same ANN; static input is "
    lead += ("" if of.ann else static_text(report.policy)) + (". Layers are summed by module." if grouped else ".")
    return {"title": "Energy per layer", "lead": lead, "pictures": shown}


def _rate_part(report: Report) -> Part:
    data = figures.rate_map(report)
    shown = [] if data is None else [_picture(pictures.rate_map(data), ramp=rate_text(float(data.rates.max())))]
    lead = "" if data is None else f"{data.of[0].upper()}{data.of[1:]}."
    title = "Inputs that are not zero, by layer" if subject(report.counts).ann else "Firing rates by layer and time"
    return {"title": title, "lead": lead, "pictures": shown}


def _sample_part(report: Report) -> Part:
    data = figures.sop_distribution(report)
    shown = [] if data is None else [_picture(pictures.distribution(data))]
    spread = report.sop.percentiles
    low, high = count_text(spread[5.0]), count_text(spread[95.0])
    if low == high:
        lead = f"90 % of the samples take {low}, to the digits shown."
    else:
        lead = f"How much an inference takes depends on the sample: 5 % of them take less than {low}, "
        lead += f"5 % more than {high}."
    lead += " The shaded band is the 95 % interval of the mean."
    return {"title": "Synaptic operations per inference", "lead": lead, "pictures": shown}


def _step_part(report: Report) -> Part:
    data = figures.step_curve(report)
    shown = [] if data is None else [_picture(pictures.step_curve(data))]
    what = "Energy" if data is None or data.accuracy is None else "Accuracy and energy"
    lead = f"{what} if the run stopped after T' of its {report.counts.T} steps: prefix sums over time of this one run, "
    lead += f"for a causal network; nothing was trained again. {report.main.model.name}."
    return {"title": "Fewer time steps", "lead": lead, "pictures": shown}


def _ratio_part(report: Report) -> Part:
    data = figures.ratios(report)
    shown = [] if data is None else [_picture(pictures.ratios(data))]
    missing = [name for name in report.prices if report.ann(name) is None]
    lead = "Whether the spiking network is worth its spikes depends on the hardware. Logarithmic axis."
    if missing:
        lead += f" {', '.join(missing)}: no price for an ANN."
    return {"title": "Against the ANN, by hardware model", "lead": lead, "pictures": shown}


def _picture(
    svg: str,
    title: str = "",
    note: str = "",
    key: list[dict[str, str]] | None = None,
    ramp: str = "",
    half: bool = False,
) -> Part:
    from markupsafe import Markup  # comes with jinja2

    return {"svg": Markup(svg), "title": title, "note": note, "key": key or [], "ramp": ramp, "half": half}


def _table(table: Table) -> Part:
    numbers = [head.number for head in table.heads]
    rows = [
        {
            "style": line.style,
            "cells": [_cell(cell, number) for cell, number in zip(line.cells, numbers, strict=True)],
        }
        for line in table.lines
    ]
    heads = [{"text": head.text, "number": head.number} for head in table.heads]
    return {"title": table.title, "heads": heads, "rows": rows, "note": table.note}


def _cell(cell: Cell, number: bool) -> Part:
    styles = {"more": "more-ink", "less": "less-ink", "warn": "flag"}
    style = " ".join(word for word in ("n" if number else "", styles.get(cell.style, "")) if word)
    share = cell.share if cell.share is not None and math.isfinite(cell.share) else None
    return {"text": cell.text, "style": style, "indent": cell.depth * 16, "share": share}
