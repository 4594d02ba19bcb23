"""`convert`: a trained ANN and a calibration set become a spiking network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.conversion.build import Built, build
from spikeloom.conversion.calibrate import Calibration, images_of
from spikeloom.conversion.choices import Settings, settings
from spikeloom.conversion.correct import absorb, correct
from spikeloom.conversion.faithful import check_faithful, check_parameters
from spikeloom.conversion.graph import LAYER, Graph
from spikeloom.conversion.lockstep import Pair
from spikeloom.conversion.max_pool import CountMaxPool
from spikeloom.conversion.network import ConvertedNet
from spikeloom.conversion.offset import OffsetIF
from spikeloom.conversion.pools import place_pools
from spikeloom.conversion.rate_if import RateIF
from spikeloom.conversion.report import make_report, unmeasured
from spikeloom.conversion.scales import fold_scales

_CHECKED = 2  # images
_FITTED = 1024
_OF_AXES = ("flatten", "view", "reshape", "permute", "transpose", "mean", "sum")


def convert(
    ann: nn.Module, calibration_loader: Iterable[Any] | None = None, *, method: str = "ltb", **overrides: Any
) -> ConvertedNet:
    """Put integrate-and-fire neurons in the place of every activation of an ANN; the ANN is left as it is.

    Args:
        ann: a network of images `[B, ...]` -> logits `[B, K]`, with ReLU or another activation that converts at every
            call site; evaluated in evaluation mode.
        calibration_loader: batches of images, prepared as in training, or tuples that start with them; a few hundred
            in 16 batches or more. None: only for networks that bring their thresholds (QCFS); then nothing is compared
            with the ANN, and the report says so.
        method: "ltb", "max", "channel_max", "percentile", "channel_percentile", "mse", "qcfs", "light", "advanced",
            "weights", "cos", "srp"; each is a set of `Settings`.
        overrides: fields of `Settings` to replace, such as `T=32` or `max_pool="before"`.

    Returns:
        A module of images or frames -> logits `[T, B, K]`, in evaluation mode; `net.report` prints a table of layers.

    Raises:
        NotConvertibleError: the model is spiking already, cannot be traced, or has operations that do not convert.
        ValueError: no such method or setting, an empty calibration set, batches of another form; parameters, images or
            activations that are NaN or infinite.
    """
    choices = settings(method, **overrides)
    built = build(ann)
    check_parameters(built.graph)
    plain = replace(built, graph=Graph(list(built.graph.nodes), dict(built.graph.modules)))
    graph, counted = place_pools(built.graph, choices.max_pool)
    calibration = Calibration(graph, choices)
    like = next(ann.parameters(), torch.zeros(()))
    kept = _calibrate(ann, plain, calibration, calibration_loader, like)
    calibration.check()
    thresholds = {name: theta.to(like) for name, theta in calibration.thresholds().items()}
    steps = max(choices.T, choices.rho) if choices.offset != "none" else choices.T
    neurons = {name: _neuron(calibration.shaped(name, theta), choices) for name, theta in thresholds.items()}
    pair = Pair(graph, neurons, calibration.axes, counted, choices.T, steps)
    if kept:
        correct(pair, torch.cat(kept) if choices.correct == "weights" else kept[0], choices)
        report = make_report(pair, kept[-1], calibration.notes(), calibration.images if calibration.learns() else 0)
    else:
        report = unmeasured(pair, calibration.notes())
    ndim = kept[0].ndim if kept else _input_ndim(graph)
    net = ConvertedNet(_assemble(pair, thresholds, calibration.ndims, choices), choices, ndim, report)
    return net.to(like.device).eval()


def _calibrate(
    ann: nn.Module, built: Built, calibration: Calibration, loader: Iterable[Any] | None, like: Tensor
) -> list[Tensor]:
    """Run the calibration set; returns the first and last batch, or all up to 1024 images to fit weights on."""
    kept: list[Tensor] = []
    every = calibration.choices.correct == "weights"
    for batch in () if loader is None else images_of(loader, like):
        if not kept:
            check_faithful(ann, built, batch[:_CHECKED])
        calibration.add(batch)
        if not every:
            kept = [*kept[:1], batch]
        elif sum(map(len, kept)) < _FITTED:
            kept.append(batch)
    return kept


def _neuron(theta: Tensor, choices: Settings) -> nn.Module:
    """The neurons of a site with threshold `theta`, shaped for `[B, ...]`."""
    if choices.offset != "none":
        return OffsetIF(theta, choices.rho, choices.offset)
    half = choices.initial * theta
    if choices.half_step == "initial":
        return RateIF(theta, half)
    return RateIF(theta, torch.zeros_like(theta), half / choices.T)


def _assemble(pair: Pair, thresholds: dict[str, Tensor], ndims: dict[str, int], choices: Settings) -> Graph:
    """The spiking graph: corrected layers, pools that count, scales in the weights, neurons at the sites."""
    graph = pair.graph
    graph.modules |= pair.changed
    shift = choices.initial / choices.T if choices.half_step == "per_step" else 0.0
    absorb(graph, pair.neurons, shift)
    for name in pair.counted:
        graph.modules[name] = CountMaxPool(graph.modules[name])
    graph.modules |= pair.neurons
    return fold_scales(graph, thresholds, pair.axes, ndims, choices.fold)


def _input_ndim(graph: Graph) -> int:
    """Axes of a batch of images where none was given, by the first layer with weights.

    Raises:
        ValueError: a linear layer, behind which axes are moved or averaged: of `[B, D]` or of `[B, N, D]`?
    """
    kinds = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}
    flat = found = None
    for node in graph.nodes:
        module = graph.modules.get(node.name)
        if found is not None and (isinstance(module, nn.Flatten) or node.target in _OF_AXES):
            raise ValueError(
                f"the network's first layer is linear, and {node.name} ({node.where}) behind it is about axes, so "
                "without images it is not known how many axes they have; pass a batch of images."
            )
        if found is None and node.kind == LAYER and type(module) in kinds:
            found = 4 if flat else kinds[type(module)]
            if flat or not isinstance(module, nn.Linear):
                return found
        flat = flat or isinstance(module, nn.Flatten) or node.target in ("flatten", "view", "reshape")
    return found or 4
