"""NIR graphs of converted networks back as networks: what `to_nir` writes, from this or another machine.

An integrator (`nir.I`, r = 1) with a threshold behind it whose spikes, scaled by a negative number, come back, is a
layer of neurons with reset by subtraction (see nir_export). Other loops and neurons have another meaning and are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeloom.conversion.choices import Settings
from spikeloom.conversion.graph import CALL, INPUT, LAYER, OUTPUT, SITE, Graph, Node, Ref
from spikeloom.conversion.network import ConvertedNet
from spikeloom.conversion.nir_export import require_nir
from spikeloom.conversion.rate_if import RateIF
from spikeloom.conversion.report import Report
from spikeloom.conversion.scaling import Scale


def from_nir(graph: Any, T: int | None = None) -> ConvertedNet:
    """The network of a NIR graph, or of a file that `nir.write` wrote.

    Args:
        T: time steps of an image; None: those of the graph's metadata.

    Raises:
        ValueError: no T; a node or a loop that is no part of a converted network, by name.
        ModuleNotFoundError: nir is not installed.
    """
    nir = require_nir()
    graph = graph if isinstance(graph, nir.NIRGraph) else nir.read(graph)
    T = graph.metadata.get("T") if T is None else T
    if T is None:
        raise ValueError("the graph's metadata has no number of time steps T; pass T=.")
    reader = _Reader(nir, graph)
    settings = replace(Settings(), method="nir", rule="known", T=int(T))
    report = Report(T=int(T), notes=("read from a NIR graph; not compared with an ANN",))
    ndim = len(next(iter(graph.inputs.values())).input_type["input"]) + 1
    return ConvertedNet(reader.read(), settings, ndim, report).eval()


class _Reader:
    def __init__(self, nir: Any, graph: Any) -> None:
        self.nir, self.given = nir, graph.nodes
        self.into: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for source, target in graph.edges:
            self.into[target].append(source)
        self.neurons = dict(self._neuron(name) for name, n in graph.nodes.items() if isinstance(n, nir.I))
        self.inside = {name for parts in self.neurons.values() for name in parts}
        self.nodes: list[Node] = []
        self.modules: dict[str, nn.Module] = {}
        self.value = {fires: name for name, (fires, _) in self.neurons.items()}

    def _neuron(self, name: str) -> tuple[str, tuple[str, str]]:
        """The threshold and the way back of an integrator."""
        for back in self.into[name]:
            behind = self.into[back]
            loop = isinstance(self.given[back], self.nir.Scale) and len(behind) == 1
            if loop and isinstance(self.given[behind[0]], self.nir.Threshold) and self.into[behind[0]] == [name]:
                if not np.all(self.given[name].r == 1) or not np.all(self.given[back].scale < 0):
                    break
                return name, (behind[0], back)
        raise ValueError(
            f"{name} is an integrator without a threshold whose spikes are subtracted from it (nir.I with r = 1, "
            "nir.Threshold, nir.Scale < 0 and back); expected what spikeloom.conversion.to_nir writes."
        )

    def read(self) -> Graph:
        """The operations in an order in which they can run."""
        waits = {
            name: [self.value.get(source, source) for source in sources if source not in self._ways_back()]
            for name, sources in self.into.items()
            if name not in self.inside
        }
        try:
            order = list(TopologicalSorter(waits).static_order())
        except CycleError as error:
            raise ValueError(f"the graph has a loop that is no neuron: {' -> '.join(error.args[1])}.") from error
        for name in order:
            self._add(name, self._sum(name, waits[name]))
        return Graph(self.nodes, self.modules)

    def _ways_back(self) -> set[str]:
        return {back for _, back in self.neurons.values()}

    def _sum(self, name: str, sources: list[str]) -> tuple[Ref, ...]:
        """What a node reads; several edges into it are added."""
        total = [Ref(_safe(source)) for source in sources]
        while len(total) > 1:
            added = f"{_safe(name)}_sum_{len(total)}"
            self.nodes.append(Node(added, CALL, "add", (total[0], total[1])))
            total = [Ref(added), *total[2:]]
        return tuple(total)

    def _add(self, name: str, reads: tuple[Ref, ...]) -> None:
        given, safe = self.given[name], _safe(name)
        if isinstance(given, self.nir.Input):
            self.nodes.append(Node(safe, INPUT))
        elif isinstance(given, self.nir.Output):
            self.nodes.append(Node(safe, OUTPUT, args=reads))
        elif isinstance(given, self.nir.I):
            fires, back = (self.given[part] for part in self.neurons[name])
            theta = -_tensor(back.scale)
            level = _tensor(np.nextafter(fires.threshold, np.full_like(fires.threshold, np.inf)))
            self.modules[safe] = RateIF(theta, theta - level)
            self.nodes.append(Node(safe, SITE, args=reads))
        else:
            self.modules[safe] = self._module(name, given).requires_grad_(False)
            self.nodes.append(Node(safe, LAYER, args=reads))

    def _module(self, name: str, given: Any) -> nn.Module:
        nir = self.nir
        if isinstance(given, (nir.Affine, nir.Linear)):
            weights = {"weight": given.weight, **({"bias": given.bias} if isinstance(given, nir.Affine) else {})}
            return _filled(nn.Linear(given.weight.shape[1], len(given.weight), isinstance(given, nir.Affine)), weights)
        if isinstance(given, (nir.Conv1d, nir.Conv2d)):
            out, each, *kernel = given.weight.shape
            kind: Any = nn.Conv1d if isinstance(given, nir.Conv1d) else nn.Conv2d
            sizes = [_plain(value) for value in (given.stride, given.padding, given.dilation)]
            groups = int(given.groups)
            return _filled(
                kind(each * groups, out, tuple(kernel), *sizes, groups), {"weight": given.weight, "bias": given.bias}
            )
        if isinstance(given, nir.Scale):
            factor = _tensor(given.scale).flatten(1)[:, 0] if given.scale.ndim > 1 else _tensor(given.scale)
            if np.all(np.moveaxis(given.scale, 0, -1) == factor.numpy()):
                return Scale(factor, 1)
            raise ValueError(f"{name} scales places of a channel by different factors; expected one per channel.")
        if isinstance(given, nir.AvgPool2d):
            return nn.AvgPool2d(*(_plain(value) for value in (given.kernel_size, given.stride, given.padding)))
        if isinstance(given, nir.Flatten) and (int(given.start_dim), int(given.end_dim)) == (0, -1):
            return nn.Flatten()
        raise ValueError(f"{name} is nir.{type(given).__name__}, which is no part of a converted network.")


def _filled(module: nn.Module, weights: Mapping[str, Any]) -> nn.Module:
    """A layer with these weights, in their type."""
    found = {key: _tensor(value) for key, value in weights.items()}
    module.to(found["weight"].dtype).load_state_dict(found)
    return module


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value))


def _plain(value: Any) -> Any:
    """Numbers and strings of Python: a file gives arrays and bytes."""
    if isinstance(value, (bytes, str)):
        return value.decode() if isinstance(value, bytes) else value
    found = np.asarray(value)
    return int(found) if found.ndim == 0 else tuple(int(item) for item in found)


def _safe(name: str) -> str:
    """A name that a module may have."""
    return name.replace(".", "_")
