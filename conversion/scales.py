"""From thresholds times spikes to spikes: scales move forward into the weights that read them.

A value's unit is what 1 stands for: a number `[]`, or one per channel `[C]`. Convolutions, linear layers and fixed
normalisations take the unit of their input into their weights; pools and moves of data hand it on; anything else (a
residual addition with its two units, a concatenation with currents) gets an explicit `Scale` in front.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.conversion.graph import CALL, LAYER, OUTPUT, SITE, Graph, Node, Ref
from spikeloom.conversion.max_pool import CountMaxPool
from spikeloom.conversion.operations import AVERAGES, MAXIMA
from spikeloom.conversion.scaling import Affine, Scale

_POOLS = ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d")
_MOVES = [
    "flatten",
    "reshape",
    "view",
    "permute",
    "transpose",
    "unsqueeze",
    "squeeze",
    "chunk",
    "split",
    "getitem",
    "mean",
    "sum",
    "interpolate",
    "pad",
]


@dataclass(frozen=True)
class Unit:
    """factor: `[]` or `[C]`. axis: of the channels. flat: channels and space were merged, channels outermost.

    ndim: axes of the value; of a factor `[]` it may be unknown, 0.
    """

    factor: Tensor
    axis: int = 1
    flat: bool = False
    ndim: int = 0

    @property
    def last(self) -> bool:
        """Whether the last axis is that of the channels, or holds them flat."""
        return self.flat or self.axis in (-1, self.ndim - 1)

    def pools(self, kind: str) -> bool:
        """Whether a pool, such as "AvgPool2d" or "avg_pool2d", leaves the channels apart."""
        return not self.factor.ndim or (self.axis == 1 and not self.flat and self.ndim == 2 + int(kind[-2]))


class _Folder:
    def __init__(self, graph: Graph, fold: bool) -> None:
        self.graph, self.fold = graph, fold
        self.nodes: list[Node] = []
        self.units: dict[str, Unit] = {}
        self.scaled: dict[str, str] = {}

    def site(self, node: Node, factor: Tensor, axis: int, ndim: int) -> None:
        self.other(node)
        self.units[node.name] = Unit(factor, axis, ndim=ndim)
        if not self.fold:
            self.real(node.name)

    def real(self, name: str) -> str:
        """The name under which a value has unit 1."""
        unit = self.units.get(name)
        if unit is None:
            return name
        if name not in self.scaled:
            scaled = f"{name}_scale"
            self.graph.modules[scaled] = Scale(unit.factor.clone(), unit.axis, unit.flat)
            self.nodes.append(Node(scaled, LAYER, args=(Ref(name),)))
            self.scaled[name] = scaled
        return self.scaled[name]

    def other(self, node: Node) -> None:
        """A node that reads real values."""
        self.nodes.append(node.renamed({name: self.real(name) for name in node.reads()}))

    def layer(self, node: Node) -> None:
        module, source = self.graph.modules[node.name], node.reads()[:1]
        unit = self.units.get(source[0]) if source else None
        if unit is None or not self.fold:
            self.other(node)
        elif absorb_unit(module, unit):
            self.nodes.append(node)
        elif isinstance(module, (*AVERAGES, *MAXIMA, CountMaxPool)):
            pool = module.pool if isinstance(module, CountMaxPool) else module
            self.pass_on(node, unit if unit.pools(type(pool).__name__) else None)
        elif isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
            self.pass_on(node, Unit(unit.factor, 1, True, 2) if unit.axis == 1 else None)
        else:
            self.other(node)

    def call(self, node: Node) -> None:
        units = [self.units.get(name) for name in node.reads()]
        unit = units[0] if units else None
        if node.target == "size":
            self.nodes.append(node)
        elif unit is None or not self.fold:
            self.other(node)
        elif node.target == "cat" and _dim(node) == 1:
            self.pass_on(node, _together(units))
        elif node.target == "contiguous" or (node.target in _POOLS and unit.pools(node.target)):
            self.pass_on(node, unit)
        elif (gone := _spatial_mean(node, unit)) is not None:
            self.pass_on(node, replace(unit, ndim=unit.ndim - gone))
        elif is_flatten(node) and unit.axis == 1:
            self.pass_on(node, Unit(unit.factor, 1, True, 2))
        elif node.target in _MOVES and unit.factor.ndim == 0 and not _fills(node):
            self.pass_on(node, unit)
        else:
            self.other(node)

    def pass_on(self, node: Node, unit: Unit | None) -> None:
        """A node that reads its first input as it is; None: there is no one unit."""
        if unit is None:
            self.other(node)
            return
        self.nodes.append(node)
        self.units[node.name] = unit


def fold_scales(
    graph: Graph, thresholds: dict[str, Tensor], axes: dict[str, int], ndims: dict[str, int], fold: bool
) -> Graph:
    """The graph with spikes 0 or 1 at its sites; weights are changed in place.

    Args:
        thresholds: of every site, `[]` or `[C]`.
        axes: channel axis of every site. ndims: axes of its value `[B, ...]`; may lack sites with a threshold `[]`.
        fold: False puts a `Scale` behind every site.
    """
    folder = _Folder(graph, fold)
    for node in graph.nodes:
        if node.kind == SITE:
            folder.site(node, thresholds[node.name], axes[node.name], ndims.get(node.name, 0))
        elif node.kind == LAYER:
            folder.layer(node)
        elif node.kind == CALL:
            folder.call(node)
        elif node.kind == OUTPUT:
            folder.other(node)
        else:
            folder.nodes.append(node)
    return Graph(folder.nodes, graph.modules)


def absorb_unit(module: Any, unit: Unit) -> bool:
    """Multiply a layer's weights by the unit of its input, if it can take it."""
    factor = unit.factor
    if isinstance(module, nn.Linear):
        if factor.ndim and not unit.last:
            return False
        if factor.ndim and unit.flat:
            factor = factor.repeat_interleave(module.in_features // len(factor))
        if factor.ndim and len(factor) != module.in_features:
            return False
        _replace(module, module.weight * factor)
        return True
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and not unit.flat:
        if factor.ndim:
            if unit.axis != 1 or unit.ndim != module.weight.ndim or len(factor) != module.in_channels:
                return False
            per_group = factor.view(module.groups, 1, -1).expand(-1, module.out_channels // module.groups, -1)
            factor = per_group.reshape(module.out_channels, -1, *[1] * (module.weight.ndim - 2))
        _replace(module, module.weight * factor)
        return True
    if isinstance(module, Affine) and unit.axis == 1:
        if factor.ndim and unit.flat:
            factor = factor.repeat_interleave(len(module.weight) // len(factor))
        _replace(module, module.weight * factor)
        return True
    return False


def _replace(module: Any, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight.detach(), requires_grad=False)


def _together(units: list[Unit | None]) -> Unit | None:
    """The unit of a concatenation of channels, if all parts have one per channel."""
    parts = [unit for unit in units if unit is not None and unit.factor.ndim and not unit.flat and unit.axis == 1]
    return Unit(torch.cat([part.factor for part in parts]), ndim=parts[0].ndim) if len(parts) == len(units) else None


def _dim(node: Node) -> Any:
    return node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)


def is_flatten(node: Node) -> bool:
    """flatten(x, 1), or a view to [size of the batch, -1]."""
    rest = node.args[1:]
    if node.target == "flatten":
        start = node.kwargs.get("start_dim", rest[0] if rest else 0)
        return start == 1 and node.kwargs.get("end_dim", rest[1] if len(rest) > 1 else -1) == -1
    shape = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
    return node.target in ("view", "reshape") and len(shape) == 2 and isinstance(shape[0], Ref) and shape[1] == -1


def _spatial_mean(node: Node, unit: Unit) -> int | None:
    """How many axes a mean over space alone takes away; None: it is no such mean, or of an unknown number of axes."""
    rest = node.args[1:]
    dims = node.kwargs.get("dim", rest[0] if rest else None)
    if node.target != "mean" or dims is None or unit.axis != 1 or unit.flat or unit.ndim < 3:
        return None
    axes = {dim % unit.ndim for dim in (dims if isinstance(dims, (list, tuple)) else [dims])}
    kept = node.kwargs.get("keepdim", rest[1] if len(rest) > 1 else False)
    return (0 if kept else len(axes)) if min(axes, default=0) >= 2 else None


def _fills(node: Node) -> bool:
    """A pad with a number of its own, which has unit 1."""
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    return node.target == "pad" and value not in (None, 0)
