"""The ANN and its neurons side by side, operation by operation: what corrections and reports compare.

The ANN runs with its own activations, the spiking side with thresholds in real units (threshold * spike), both on one
batch. Values in front of the first neurons are the same at every step and are held once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.conversion.graph import INPUT, OUTPUT, SITE, Graph, Node, Ref, substitute
from spikeloom.conversion.max_pool import CountMaxPool


@dataclass
class Pair:
    """A graph with the neurons that replace its sites.

    neurons: of every site. axes: its channel axis. counted: max pools that count. steps: time steps that run, of which
    the first T are the answer. changed: layers of the spiking side that differ from the ANN's.
    """

    graph: Graph
    neurons: dict[str, nn.Module]
    axes: dict[str, int]
    counted: frozenset[str]
    T: int
    steps: int
    changed: dict[str, nn.Module] = field(default_factory=dict)

    def theta(self, name: str, like: Tensor) -> Tensor:
        """A site's threshold, shaped to multiply `like` `[B, ...]`."""
        neuron: Any = self.neurons[name]
        return torch.as_tensor(neuron.v_threshold, dtype=like.dtype, device=like.device)


@dataclass
class Site:
    """What meets at a site.

    ann: activation `[B, ...]`. current: input of the neurons `[S, B, ...]`. spikes: `[S, B, ...]`, 0 or 1; `fire()`
    makes them again after the neurons were changed. mean: threshold times mean spikes of T steps, `[B, ...]`.
    """

    node: Node
    ann: Tensor
    current: Tensor
    pair: Pair
    spikes: Tensor

    def fire(self) -> None:
        """Run the neurons."""
        self.spikes = self.pair.neurons[self.node.name](self.current)

    @property
    def mean(self) -> Tensor:
        """The mean output of the neurons."""
        spikes = self.spikes[: self.pair.T].mean(0)
        return spikes * self.pair.theta(self.node.name, spikes)


def lockstep(
    pair: Pair,
    images: Tensor,
    visit: Callable[[Site], None],
    before: Callable[[Node, Any, Any], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run both sides on images `[B, ...]`; `visit` sees every site in order and may change its neurons.

    before: called with a node, and its first input on both sides, before it runs.

    Returns:
        The ANN's output `[B, K]`, and that of the spiking side at every step `[T, B, K]`.
    """
    graph, S, B = pair.graph, pair.steps, len(images)
    timed, constant = graph.stepwise(), graph.constants()
    ann: dict[str, Any] = {}
    snn: dict[str, Any] = {}  # of what differs from step to step
    for node, dead in graph.schedule():
        if node.kind == INPUT:
            ann[node.name] = images
            if node.name in timed:
                snn[node.name] = repeated(images, S)
        elif node.kind == OUTPUT:
            name = node.reads()[0]
            out: Tensor = snn[name].unflatten(0, (S, B))[: pair.T]
            return ann[name], out
        else:

            def spread(ref: Ref) -> Any:
                if ref.name in snn:
                    return snn[ref.name]
                value = ann[ref.name]
                return value if ref.name in constant else repeated(value, S)

            if node.name in timed and before is not None:
                before(node, ann[node.reads()[0]], substitute(Ref(node.reads()[0]), spread))
            if node.name in timed:
                args, kwargs = substitute([list(node.args), dict(node.kwargs)], spread)
            plain, named = substitute([list(node.args), dict(node.kwargs)], lambda ref: ann[ref.name])
            ann[node.name] = graph.apply(node, plain, named)
            if node.kind == SITE:
                current = args[0].unflatten(0, (S, B))
                site = Site(node, ann[node.name], current, pair, pair.neurons[node.name](current))
                visit(site)
                snn[node.name] = (site.spikes * pair.theta(node.name, site.spikes[0])).flatten(0, 1)
                del site, current
            elif node.name in timed:
                snn[node.name] = _run(pair, node, args, kwargs, S, B)
            plain, named, args, kwargs = [], {}, [], {}
        for name in dead:
            del ann[name]
            snn.pop(name, None)
    raise ValueError("the graph has no output")


def _run(pair: Pair, node: Node, args: Any, kwargs: Any, S: int, B: int) -> Any:
    if node.name in pair.counted:
        pool = CountMaxPool(pair.graph.modules[node.name])
        return pool(args[0].unflatten(0, (S, B))).flatten(0, 1)
    if node.name in pair.changed:
        return pair.changed[node.name](*args, **kwargs)
    return pair.graph.apply(node, args, kwargs)


def repeated(value: Any, S: int) -> Any:
    """A value of the batch, or a tuple of some, for each of S steps: `[B, ...]` -> `[S B, ...]`."""
    if isinstance(value, Tensor):
        return value.expand(S, *value.shape).flatten(0, 1)
    return tuple(repeated(item, S) for item in value) if isinstance(value, tuple) else value
