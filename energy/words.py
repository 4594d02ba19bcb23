"""What a report says in sentences: the headline, the verdict on the ANN, and what to beware of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from spikeloom.energy.baselines import Row
from spikeloom.energy.counts import NeuronCount
from spikeloom.energy.pricing import price
from spikeloom.energy.report import Report
from spikeloom.energy.subject import subject
from spikeloom.energy.units import count_range, count_text, energy_range, energy_text, ratio_text, share_text

EVEN = 0.02
"""A ratio this close to 1 is called the same."""


@dataclass(frozen=True)
class Verdict:
    """How the network compares with the ANN: a sentence, its tone ("less", "more", "even" or ""), the reasons."""

    text: str
    tone: str
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Caution:
    """Something that the numbers leave out or do not mean, with details."""

    text: str
    entries: list[str] = field(default_factory=list)


def headline(report: Report) -> str:
    """Accuracy (if known), synaptic operations with interval, energy, against which ANN, under which model."""
    model, energy = report.main.model, report.energy()
    start = "On random input: " if report.counts.setting.get("input") == "random" else ""
    parts = []
    if report.accuracy is not None:
        note = f" ({report.accuracy_note})" if report.accuracy_note else ""
        parts.append(f"{report.accuracy:.1%} accuracy{note}".replace("%", " %"))
    parts.append(f"{count_text(report.sop.mean)} synaptic operations per inference{_interval(report)}")
    ann, ratio = report.ann(), report.ratio()
    against = (
        ""
        if ann is None or ratio is None or is_silent(report)
        else f", {ratio_text(ratio)} the {energy_text(ann)} of {_same(report)}"
    )
    parts.append(f"{energy_text(energy.mean)} per inference{against}")
    joint = " and " if len(parts) == 2 else ", and "
    return f"{start}{', '.join(parts[:-1])}{joint}{parts[-1]}; {model.name}, {model.evidence}."


def verdict(report: Report) -> Verdict:
    """Whether the spiking network is worth its spikes, under the first model; of an ANN, what its zeros save."""
    model, ratio, ann = report.main.model, report.ratio(), report.ann()
    if ratio is None or ann is None:
        return Verdict(
            f"{model.name} prices no ANN, so there is nothing to set {energy_text(report.main.mean)} against; "
            "see the hardware models that do.",
            "",
        )
    if is_silent(report):
        return Verdict(
            "No neuron fired: the network is silent, and its energy is not set against an ANN's. It may need more "
            "training, or its inputs are too weak for its thresholds.",
            "",
        )
    sides = f"{energy_text(report.main.mean)} against {energy_text(ann)} per inference ({model.name}, {model.evidence})"
    reasons = [*_reasons(report), *_static(report), *([f"{model.name}: {model.remarks}"] if model.remarks else [])]
    if report.counts.setting.get("input") == "random":
        return Verdict(f"On random input: {sides}, {ratio_text(ratio)}. That is no statement on data.", "", reasons)
    reasons += _break_even(report)
    if subject(report.counts).ann:
        return Verdict(f"No spiking neuron ran: an ANN of one step. Zeros skipped / dense: {sides}.", "", reasons)
    if abs(ratio - 1) <= EVEN:
        return Verdict(f"The spiking network needs as much energy as the same ANN: {sides}.", "even", reasons)
    if ratio > 1:
        text = f"The spiking network costs more than the same ANN: {ratio_text(ratio)} the energy, {sides}."
        return Verdict(text, "more", reasons)
    saved = f"{1 - ratio:.0%}".replace("%", " %")
    return Verdict(f"The spiking network needs {saved} less energy than the same ANN: {sides}.", "less", reasons)


def is_silent(report: Report) -> bool:
    """Are there spiking neurons, none of which fired?"""
    fired = [bool(neuron.spikes.any()) for neuron in report.counts.of(NeuronCount) if neuron.spiking]
    return bool(fired) and not any(fired)


def cautions(report: Report) -> list[Caution]:
    """What was not counted, could not be told apart, was random, cut short or has no price."""
    counts, found = report.counts, []
    if counts.setting.get("input") == "random":
        found.append(
            Caution(
                "Random input. These numbers say nothing of the network on data.", [str(counts.setting.get("data", ""))]
            )
        )
    silent = [layer.name for layer in counts.layers if layer.kind == "zero" or layer.kind_b == "zero"]
    if silent:
        text = "Some layers never received a spike: they cost nothing here because they compute nothing."
        found.append(Caution(text, [", ".join(silent)]))
    if "look_ahead" in counts.setting:
        more = counts.setting["look_ahead"]
        text = f"Every layer looks {more} steps ahead: the answer comes that much later than T steps, and the figures "
        found.append(Caution(text + "for fewer steps are of this run, not of one that looked less far."))
    if "interrupted" in counts.setting:
        found.append(Caution(f"The run was {counts.setting['interrupted']}."))
    if counts.uncounted:
        lines = []
        for entry in counts.uncounted:
            calls = "1 call" if entry.calls == 1 else f"{entry.calls:,} calls"
            lines.append(f"{entry.op} in {entry.module or 'the model'}: {calls}, {entry.numel:,} elements")
        found.append(Caution("Operations without a counting rule ran; they are in no number here.", lines))
    lost = [layer for layer in counts.layers if not layer.assigned]
    if lost:
        share = sum(float(layer.sop.sum()) for layer in lost) / counts.samples / (report.sop.mean or 1.0)
        lines = [f"{layer.name}: {'; '.join(layer.notes) or 'no note'}" for layer in lost]
        text = (
            f"{share_text(share)} of the synaptic operations could not be told apart by step and sample. They are in "
            "the means and, spread evenly, in the intervals, but not in curves over time."
        )
        found.append(Caution(text, lines))
    without = [words for words in report.main.unpriced if not words.endswith("(no counting rule)")]  # said above
    if without:
        found.append(Caution(f"{report.main.model.name} has no price for some of what was counted.", without))
    if counts.samples == 1:
        found.append(Caution("One sample: there is no interval."))
    return found


def reason_text(pj: float, text: str) -> str:
    """`-78.3 nJ: layers whose input never changes are computed once, ...`."""
    sign = "−" if pj < 0 else "+"
    return f"{sign}{energy_text(abs(pj))}: {text}"


def ratio_to_exact(row: Row) -> str:
    """How the exact energy compares with a row: `0.43x`."""
    return ratio_text(1 / row.ratio) if row.ratio and math.isfinite(row.ratio) else "-"


def static_energies(report: Report, model: str) -> tuple[float, float] | None:
    """Mean pJ with layers of static input computed in every step, and once; None: there are none that do anything."""
    if not static_layers(report):
        return None
    found = report.prices[model].model
    every = price(report.counts, found, replace(report.policy, static_once=False)).mean
    return every, price(report.counts, found, replace(report.policy, static_once=True)).mean


def static_layers(report: Report) -> list[str]:
    """Layers whose input never changes and is not silent either."""
    return [y.name for y in report.counts.layers if y.static_input and y.sop.any() and report.counts.T > 1]


def interval_text(low: float, high: float, energy: bool = True) -> str:
    """`95 % interval 1.21-1.25 µJ`, or nothing for one sample."""
    if not math.isfinite(low):
        return ""
    return f"95 % interval {energy_range(low, high) if energy else count_range(low, high)}"


def _interval(report: Report) -> str:
    if not all(layer.assigned for layer in report.counts.layers):
        return ""  # samples that cannot be told apart have no spread
    words = interval_text(report.sop.low, report.sop.high, energy=False)
    return f" ({words})" if words else ""


def _reasons(report: Report, most: int = 3) -> list[str]:
    """The largest parts of the gap to the ANN."""
    rows = report.comparisons.get(report.main.model.name, [])
    row = next((row for row in rows if row.name == "ann_exact"), None)
    if row is None:
        return []
    other = subject(report.counts).other
    return [f"{other} {reason_text(reason.pj, reason.text)}" for reason in row.reasons[:most]]


def _same(report: Report) -> str:
    """What the energy is set against."""
    return "all its terms, zero or not" if subject(report.counts).ann else "the same network as an ANN"


def _break_even(report: Report) -> list[str]:
    """Of a converted network, whose steps may be chosen afterwards: how many cost as much as the ANN."""
    ratio = report.ratio()
    if "converted" not in report.counts.setting or not ratio:
        return []
    steps = report.counts.T / ratio
    return [f"Break-even with the ANN at about T = {steps:.1f}, at the mean energy of a step in this run."]


def _static(report: Report) -> list[str]:
    """What caching the current of a layer with static input would change."""
    energies, ann = static_energies(report, report.main.model.name), report.ann()
    if energies is None or not ann:
        return []
    names = ", ".join(static_layers(report))
    every, once = energies
    return [
        f"The input of {names} never changes: recomputed every step the network takes {energy_text(every)} "
        f"({ratio_text(every / ann)} the ANN), computed once {energy_text(once)} ({ratio_text(once / ann)})."
    ]
