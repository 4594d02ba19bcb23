"""What a conversion did to every layer: thresholds, what they clip, spike rates, and the error against the ANN."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spikeloom.conversion.lockstep import Pair, Site, lockstep

_UNKNOWN = float("nan")
_RUNS = 512  # images times steps that rates and errors are taken from, if one batch of them fits
_IMAGES = 16
_NARROW, _WIDE = 28, 44  # characters of a layer's name
NOT_COMPARED = (
    "not compared with the ANN: no images were given. Clipping, rates, errors and the trace itself are unchecked; pass "
    "batches, convert(ann, batches, ...), or call compare(ann, net, batches)"
)


@dataclass(frozen=True)
class LayerReport:
    """One layer of neurons; NaN (and 0 neurons) where no images were given.

    name: of its activation: the module's path (`#2`: its second call), or function, file and line. where: that call.
    neurons: per sample. threshold: mean over the channels, with the smallest and largest. clipped: share of the ANN's
    activations above their threshold. rate: spikes per neuron and step. error: mean |threshold * mean spikes -
    activation|; relative: that over the mean activation. activation: of the ANN, mean. charge: mean charge that a
    neuron needs for its first spike, threshold less initial membrane.
    """

    name: str
    where: str
    neurons: int
    threshold: float
    smallest: float
    largest: float
    clipped: float
    rate: float
    error: float
    relative: float
    activation: float = _UNKNOWN
    charge: float = _UNKNOWN


@dataclass(frozen=True)
class Report:
    """The layers in order, and T steps on `images` images of the calibration set, on which rates and errors are from.

    agreement: share of those images for which ANN and SNN take the same decision. notes: what to beware of. calibrated:
    images that the thresholds are from, 0 if they were known.
    """

    layers: tuple[LayerReport, ...] = ()
    T: int = 0
    images: int = 0
    agreement: float = _UNKNOWN
    notes: tuple[str, ...] = ()
    calibrated: int = 0

    def __str__(self) -> str:
        width = min(max([_NARROW, *(len(y.name) + 2 for y in self.layers)]), _WIDE)
        head = f"{'layer':<{width}}{'neurons':>9}{'threshold':>11}{'smallest':>10}{'largest':>10}"
        lines = [head + f"{'clipped':>9}{'rate':>8}{'error':>10}{'relative':>10}"]
        for y in self.layers:
            name = y.name if len(y.name) < width else f"...{y.name[4 - width :]}"
            lines.append(
                f"{name:<{width}}{y.neurons or '-':>9}{y.threshold:>11.4g}{y.smallest:>10.3g}{y.largest:>10.3g}"
                f"{_percent(y.clipped, 2):>9}{_percent(y.rate, 1):>8}"
                f"{'-' if math.isnan(y.error) else f'{y.error:.3g}':>10}{_percent(y.relative, 1):>10}"
            )
        if self.images:
            layers = f"{len(self.layers)} layer{'' if len(self.layers) == 1 else 's'}"
            plural = "" if self.images == 1 else "s"
            lines.append(
                f"{layers}; rates and errors of {self.images} calibration image{plural} in {self.T} "
                f"steps, same decision for {100 * self.agreement:.0f} % (one image is {100 / self.images:.3g} points)"
            )
        return "\n".join([*lines, *self.notes])


def _percent(share: float, digits: int) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.{digits}f}%"


def unmeasured(pair: Pair, notes: Iterable[str] = ()) -> Report:
    """Thresholds alone: there were no images."""
    rows = []
    for node in pair.graph.sites():
        theta = pair.theta(node.name, torch.zeros(()))
        levels = [theta.mean().item(), theta.min().item(), theta.max().item()]
        rows.append(LayerReport(node.known_as, node.where, 0, *levels, *[_UNKNOWN] * 4))
    return Report(tuple(rows), pair.T, notes=(*notes, NOT_COMPARED))


def make_report(pair: Pair, images: Tensor, notes: Iterable[str] = (), calibrated: int = 0) -> Report:
    """Run ANN and neurons side by side on images `[B, ...]`: up to 16, as many at a time as fit into one batch."""
    chunk = max(1, len(images) // pair.steps)
    chosen = images[: max(chunk, min(_IMAGES, _RUNS // pair.steps))]
    parts = [(len(part), *_compared(pair, part)) for part in chosen.split(chunk)]
    shares = [size / len(chosen) for size, *_ in parts]
    agreement = sum(share * same for share, (_, _, same) in zip(shares, parts, strict=True))
    rows = []
    for layers in zip(*(found for _, found, _ in parts), strict=True):
        means = {
            key: sum(share * getattr(y, key) for share, y in zip(shares, layers, strict=True))
            for key in ("clipped", "rate", "error", "activation")
        }
        rows.append(replace(layers[0], **means, relative=means["error"] / max(means["activation"], 1e-12)))
    return Report(tuple(rows), pair.T, len(chosen), agreement, tuple(notes), calibrated)


@torch.no_grad()
def _compared(pair: Pair, images: Tensor) -> tuple[list[LayerReport], float]:
    """The layers, and the share of equal decisions, on one chunk."""
    layers: list[LayerReport] = []

    def visit(site: Site) -> None:
        theta = pair.theta(site.node.name, site.ann)
        neuron: Any = pair.neurons[site.node.name]
        layers.append(
            LayerReport(
                site.node.known_as,
                site.node.where,
                site.ann[0].numel(),
                theta.mean().item(),
                theta.min().item(),
                theta.max().item(),
                (site.ann > theta).float().mean().item(),
                site.spikes[: pair.T].mean().item(),
                (site.mean - site.ann).abs().mean().item(),
                _UNKNOWN,
                site.ann.mean().item(),
                (theta - torch.as_tensor(getattr(neuron, "v_init", 0.5 * theta))).mean().item(),
            )
        )

    ann, snn = lockstep(pair, images, visit)
    same = (ann.flatten(1).argmax(1) == snn.mean(0).flatten(1).argmax(1)).float().mean().item()
    return layers, same
