"""What a conversion did to every layer: thresholds, what they clip, spike rates, and the error against the ANN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeloom.conversion.lockstep import Pair, Site, lockstep


@dataclass(frozen=True)
class LayerReport:
    """One layer of neurons.

    name, where: the call of its activation. neurons: per sample. threshold: mean over the channels, with the smallest
    and largest. clipped: share of the ANN's activations above their threshold. rate: spikes per neuron and step. error:
    mean |threshold * mean spikes - activation|; relative: that over the mean activation.
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


@dataclass(frozen=True)
class Report:
    """The layers in order, and T steps on `images` images of the calibration set, on which rates and errors are from.

    agreement: share of those images for which ANN and SNN take the same decision. notes: what to beware of.
    """

    layers: tuple[LayerReport, ...] = ()
    T: int = 0
    images: int = 0
    agreement: float = float("nan")
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{'layer':<28}{'neurons':>9}{'threshold':>11}{'smallest':>10}{'largest':>10}"
        lines = [head + f"{'clipped':>9}{'rate':>8}{'error':>10}{'relative':>10}"]
        for y in self.layers:
            name = y.name if len(y.name) < 28 else f"...{y.name[-24:]}"
            lines.append(
                f"{name:<28}{y.neurons:>9}{y.threshold:>11.4g}{y.smallest:>10.3g}{y.largest:>10.3g}"
                f"{100 * y.clipped:>8.2f}%{100 * y.rate:>7.1f}%{y.error:>10.3g}{100 * y.relative:>9.1f}%"
            )
        if self.images:
            lines.append(
                f"{len(self.layers)} layers; rates and errors of {self.images} calibration images in {self.T} steps, "
                f"same decision for {100 * self.agreement:.0f} %"
            )
        return "\n".join([*lines, *self.notes])


@torch.no_grad()
def make_report(pair: Pair, images: Tensor, notes: tuple[str, ...] = ()) -> Report:
    """Run ANN and neurons side by side on images `[B, ...]`."""
    layers: list[LayerReport] = []

    def visit(site: Site) -> None:
        theta = pair.theta(site.node.name, site.ann)
        error = (site.mean - site.ann).abs().mean().item()
        layers.append(
            LayerReport(
                site.node.name,
                site.node.where,
                site.ann[0].numel(),
                theta.mean().item(),
                theta.min().item(),
                theta.max().item(),
                (site.ann > theta).float().mean().item(),
                site.spikes[: pair.T].mean().item(),
                error,
                error / max(site.ann.mean().item(), 1e-12),
            )
        )

    ann, snn = lockstep(pair, images, visit)
    same = (ann.flatten(1).argmax(1) == snn.mean(0).flatten(1).argmax(1)).float().mean().item()
    return Report(tuple(layers), pair.T, len(images), same, notes)
