"""The data behind a report's pictures, for the SVGs of the page and for matplotlib alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spikeloom.energy.prefix import curve
from spikeloom.energy.report import Report
from spikeloom.energy.subject import subject
from spikeloom.energy.tree import FloatArray, Node, step_rates

MOST_BARS = 24
"""Layers beyond this are drawn by module."""


@dataclass(frozen=True)
class LayerEnergy:
    """Energy per inference by layer (or module) under one hardware model, in pJ.

    grouped: modules, not layers. labels: what `snn` and `ann` are, where the network is an ANN itself.
    """

    model: str
    names: list[str]
    snn: list[float]
    ann: list[float]
    grouped: bool = False
    labels: tuple[str, str] = ("SNN", "ANN")


@dataclass(frozen=True)
class RateMap:
    """Firing rates [L, T]; `of`: what a rate is."""

    names: list[str]
    rates: FloatArray
    of: str


@dataclass(frozen=True)
class Distribution:
    """A quantity per sample [N] with its mean and the 95 % interval of the mean (NaN for one sample)."""

    values: FloatArray
    mean: float
    low: float
    high: float
    what: str = "SOP per inference"


@dataclass(frozen=True)
class StepCurve:
    """Mean energy per inference in pJ if the run stopped after 1, 2, ... T steps; `accuracy` likewise, 0 to 1."""

    model: str
    energy: FloatArray
    ann: float | None
    accuracy: list[float] | None = None


@dataclass(frozen=True)
class Ratios:
    """Energy of the SNN over that of the ANN, by hardware model, with the evidence for the model's constants."""

    models: list[str]
    ratios: list[float]
    evidence: list[str]


def bins(values: FloatArray, most: int = 28) -> tuple[NDArray[np.int64], FloatArray]:
    """A histogram: counts and edges; Freedman and Diaconis' width, between 5 and `most` bins."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.array([len(values)], np.int64), np.array([low - 0.5, high + 0.5])
    spread = float(np.subtract(*np.percentile(values, [75, 25])))
    width = 2 * spread / len(values) ** (1 / 3) if spread > 0 else (high - low) / 10
    count = int(np.clip(np.ceil((high - low) / width), 5, most))
    counts, edges = np.histogram(values, count)
    return counts.astype(np.int64), edges


def layer_energies(report: Report) -> list[LayerEnergy]:
    """For every model of arithmetic, the layers' energies and those of the ANN's layers."""
    found = []
    of = subject(report.counts)
    labels = (of.own, of.other)
    for name, price in report.prices.items():
        if name not in report.comparisons:
            continue
        ann = {layer.name: price.model.constants["mac"] * layer.dense_exact for layer in report.counts.layers}
        leaves = _leaves(report.tree(name))
        names = [label for label, _ in leaves]
        snn = [sum(price.layer_mean(layer) for layer in layers) for _, layers in leaves]
        other = price.mean - sum(snn)
        if other > 1e-9 * price.mean:
            names, snn, leaves = [*names, "beside the layers"], [*snn, other], [*leaves, ("", [])]
        grouped = any(len(layers) > 1 for _, layers in leaves)
        dense = [sum(ann[y] for y in layers) for _, layers in leaves]
        found.append(LayerEnergy(name, names, snn, dense, grouped, labels))
    return found


def rate_map(report: Report) -> RateMap | None:
    """Spikes per neuron and step, or, where no neurons were seen, the rates of the layers' inputs."""
    names, rates = step_rates(report.counts)
    if names:
        return RateMap(names, rates, "spikes per neuron and time step, mean over the samples")
    layers = [layer for layer in report.counts.layers if layer.assigned and layer.in_numel]
    if not layers:
        return None
    rates = np.array([layer.events.mean(1) / layer.in_numel for layer in layers])
    return RateMap([layer.name for layer in layers], rates, "non-zero share of a layer's input, mean over the samples")


def sop_distribution(report: Report) -> Distribution | None:
    """Synaptic operations of each sample; None for one sample."""
    values = report.totals.sop.sum(0) + report.totals.unassigned["sop"] / report.counts.samples
    if len(values) < 2:
        return None
    return Distribution(values.astype(np.float64), report.sop.mean, report.sop.low, report.sop.high)


def step_curve(report: Report) -> StepCurve | None:
    """Energy after each step under the first model; None for one step, or if some layer's steps are not known."""
    shape = (report.counts.T, report.counts.samples)
    if report.counts.T < 2 or any(layer.sop.shape != shape for layer in report.counts.layers):
        return None
    model = report.main.model
    energy = np.asarray(curve(report.counts, model, report.policy), np.float64)
    return StepCurve(model.name, energy, report.ann(), report.accuracy_by_step)


def ratios(report: Report) -> Ratios | None:
    """SNN over ANN for every model that prices both; None: there is none, or the network is an ANN itself."""
    if subject(report.counts).ann:
        return None
    known = [(price.model, report.ratio(name)) for name, price in report.prices.items()]
    rows = [(model, ratio) for model, ratio in known if ratio]
    if not rows:
        return None
    return Ratios([m.name for m, _ in rows], [ratio for _, ratio in rows], [m.evidence for m, _ in rows])


def _leaves(root: Node) -> list[tuple[str, list[str]]]:
    """Names of at most `MOST_BARS` bars with the layers in each: the layers, or the modules that hold them."""
    nodes = [("", root)]
    while True:
        finer: list[tuple[str, Node]] = []
        for path, node in nodes:
            inner = [(f"{path}.{child.label}".lstrip("."), child) for child in node.children]
            own = [(path, Node(node.label, node.row.sums, node.row))] if node.row is not None else []
            finer += [*own, *inner] or [(path, node)]
        if len(finer) == len(nodes) and all(not node.children for _, node in nodes):
            break
        if len(finer) > MOST_BARS and len(nodes) > 1:
            break
        nodes = finer
    return [(path or "network", _layers(node)) for path, node in nodes]


def _layers(node: Node) -> list[str]:
    return [each.row.layer.name for _, each in node.walk() if each.row is not None]
