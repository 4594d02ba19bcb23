"""SNN calibration: what is left between an ANN's activations and the mean spikes, taken out layer by layer.

Sequentially from input to output, on one batch, a = the ANN's activation, y = threshold * spike of a run of T steps
with all corrections of the layers in front:

    bias         b <- b - mean over batch and space of (mean_t y - a)
    potential    v[0] <- T * mean over the batch of (a - mean_t y), per neuron, which fixes the size of the images
    weights      Adam on W: smallest mean of (q(W * mean_t input + b) - a)^2, q(x) = theta / T clip(floor(T x / theta
                 + 1/2), 0, T), what the neurons with half a threshold to begin with do

Paper: Li et al., ICML 2021, "A Free Lunch From ANN: Towards Efficient, Accurate Spiking Neural Networks Calibration".
The weights step is our reconstruction; no result of its authors was compared.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.conversion.choices import Settings
from spikeloom.conversion.graph import LAYER, Graph, Node
from spikeloom.conversion.lockstep import Pair, Site, lockstep
from spikeloom.conversion.operations import WEIGHTED
from spikeloom.conversion.qcfs import floor_through
from spikeloom.conversion.rate_if import RateIF

_BATCH = 32


def correct(pair: Pair, images: Tensor, choices: Settings) -> None:
    """Change the pair's neurons, and for "weights" the layers of its spiking side, on images `[N, ...]`."""
    if choices.correct == "bias":
        _correct_bias(pair, images)
    elif choices.correct == "potential":
        _correct_potential(pair, images)
    elif choices.correct == "weights":
        _correct_weights(pair, images, choices)


@torch.no_grad()
def _correct_bias(pair: Pair, images: Tensor) -> None:
    def visit(site: Site) -> None:
        neuron: Any = pair.neurons[site.node.name]
        error = site.mean - site.ann
        axis = pair.axes[site.node.name] % error.ndim
        dims = [d for d in range(error.ndim) if d != axis]
        neuron.shift = neuron.shift - error.mean(dims, keepdim=True)[0]
        site.fire()

    lockstep(pair, images, visit)


@torch.no_grad()
def _correct_potential(pair: Pair, images: Tensor) -> None:
    def visit(site: Site) -> None:
        neuron: Any = pair.neurons[site.node.name]
        neuron.v_init = pair.T * (site.ann - site.mean).mean(0)
        site.fire()

    lockstep(pair, images, visit)


def feeding(graph: Graph, site: Node) -> str | None:
    """The convolution or linear layer whose output a site, and nothing else, reads."""
    name = site.reads()[0]
    weighted = isinstance(graph.modules.get(name), WEIGHTED) and graph.node(name).kind == LAYER
    return name if weighted and len(graph.readers(name)) == 1 else None


def _correct_weights(pair: Pair, images: Tensor, choices: Settings) -> None:
    sites = {feeding(pair.graph, site): site.name for site in pair.graph.sites()}
    inputs: dict[str, Tensor] = {}

    def before(node: Node, ann: Tensor, snn: Tensor) -> None:
        if node.name in sites:  # the mean over T steps, and the layer's weights before anything reads them
            inputs[node.name] = snn.unflatten(0, (pair.steps, -1))[: pair.T].mean(0)
            target = pair.graph.modules[node.name](ann)
            target = pair.graph.modules[sites[node.name]](target)
            layer: Any = copy.deepcopy(pair.graph.modules[node.name])
            theta = pair.theta(sites[node.name], target)
            fit_weights(layer, inputs.pop(node.name), target, theta, choices)
            pair.changed[node.name] = layer

    with torch.no_grad():
        lockstep(pair, images, lambda site: None, before)


def fit_weights(layer: Any, x: Tensor, target: Tensor, theta: Tensor, choices: Settings) -> None:
    """Adam on the layer's weights; batches of 32 samples in order, cosine to 0."""
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    optimizer = torch.optim.Adam([layer.weight], lr=choices.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, choices.iterations)
    batches = list(zip(x.split(_BATCH), target.split(_BATCH), strict=True))
    T = choices.T
    with torch.enable_grad():
        for step in range(choices.iterations):
            seen, wanted = batches[step % len(batches)]
            levels = floor_through((layer(seen) * T / theta + choices.initial).clamp(0, T))
            loss = (levels * theta / T - wanted).square().sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    layer.weight.requires_grad_(False)


def absorb(graph: Graph, neurons: dict[str, nn.Module], half: float) -> None:
    """Put corrections of the currents into the bias of the layer in front, where there is one.

    half: what stays with the neurons, in thresholds per step.
    """
    for site in graph.sites():
        neuron: Any = neurons[site.name]
        name = feeding(graph, site)
        if name is None or not isinstance(neuron, RateIF) or not isinstance(neuron.shift, Tensor):
            continue
        layer: Any = graph.modules[name]
        stays = half * torch.as_tensor(neuron.v_threshold)
        correction = (neuron.shift - stays).flatten()
        if correction.numel() == layer.weight.shape[0] and bool(correction.any()):
            bias = torch.zeros_like(correction) if layer.bias is None else layer.bias.detach()
            layer.bias = nn.Parameter(bias + correction, requires_grad=False)
            neuron.shift = stays.expand_as(neuron.shift).clone()
