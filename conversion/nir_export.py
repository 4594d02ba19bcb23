"""A converted network as a NIR graph (neuroir.org), exact by NIR's own equations.

NIR's `IF` is reset to a potential, starts at 0 and fires above its threshold; ours is reset by subtraction, starts at
v_init and fires at its threshold. So each layer of neurons becomes three nodes with a loop, u = v - v_init:

    u' = I                              nir.I, r = 1: one unit of time is one time step
    s = 1 where u > threshold - v_init  nir.Threshold, its number the next smaller one, so that u = threshold fires
    -threshold * s                      nir.Scale, back into the integrator, where it arrives one step later

Edges that meet are added, as NIR says: residual additions need no node. NIR has no grouped convolution whose shapes its
package accepts, no max pooling, no concatenation and no shift of single channels: they are refused by name. The number
of steps is no part of a graph; it is in the metadata. The answer is the mean of the output over T steps.

Paper: Pedersen et al., "Neuromorphic Intermediate Representation", Nature Communications 2024, arXiv:2311.14641.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeloom.conversion.graph import CALL, INPUT, OUTPUT, Node, Ref
from spikeloom.conversion.network import ConvertedNet
from spikeloom.conversion.rate_if import RateIF
from spikeloom.conversion.scales import is_flatten
from spikeloom.conversion.scaling import Scale

FIRES, BACK = "_fires", "_back"
"""Ends of the names of the second and third node of a layer of neurons."""


def require_nir() -> Any:
    """The package.

    Raises:
        ModuleNotFoundError: with what to do.
    """
    try:
        import nir
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("NIR needs the package nir: pip install 'spikeloom[interop]'", name="nir") from error
    return nir


def to_nir(net: ConvertedNet, shape: Sequence[int]) -> Any:
    """The NIR graph of a converted network; `nir.write(path, graph)` makes a file of it.

    Args:
        shape: of one image, such as `(1, 28, 28)`.

    Raises:
        ValueError: operations that NIR cannot express, all of them by name.
        ModuleNotFoundError: nir is not installed.
    """
    writer = _Writer(require_nir(), net)
    writer.run(tuple(shape))
    if writer.problems:
        listed = "\n".join(f"  {problem}" for problem in writer.problems)
        raise ValueError(f"NIR cannot express {len(writer.problems)} operations of this network:\n{listed}")
    metadata = {"T": net.T, "method": net.config.method, "answer": "mean of the output over T steps"}
    return writer.nir.NIRGraph(writer.nodes, writer.edges, metadata=metadata)


_ADVICE = {
    "MaxPool": "NIR has no max pooling; train with average pooling, or convert with max_pool='avg'",
    "OffsetIF": "NIR has no neuron that looks ahead; use another method than COS and SRP",
    "Affine": "NIR has no shift of single channels; put the batch normalisation behind a layer that takes it in",
    "cat": "NIR has no concatenation",
}
"""Part of a kind -> why not."""


class _Writer:
    """Nodes and edges so far; `sources` maps an operation to the NIR nodes whose sum it is."""

    def __init__(self, nir: Any, net: ConvertedNet) -> None:
        self.nir, self.net = nir, net
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.sources: dict[str, list[str]] = {}
        self.problems: list[str] = []

    @torch.no_grad()
    def run(self, shape: tuple[int, ...]) -> None:
        """Take over all operations; one image of zeros says what shapes they have."""
        like = next(self.net.parameters(), torch.zeros(()))
        values: dict[str, Any] = {}
        layers = dict(self.net.layers.items())
        for node in self.net.nodes:
            if node.kind == INPUT:
                values[node.name] = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
                self._put(node, self.nir.Input(np.array(shape)), [])
            elif node.kind == OUTPUT:
                given = values[node.reads()[0]]
                self._put(node, self.nir.Output(np.array(given.shape[1:])), node.reads())
            else:
                module = layers.get(node.name)
                seen = values.get(node.reads()[0]) if node.reads() else None
                values[node.name] = _shaped(self.net, node, module, values)
                self._take(node, module, seen, values[node.name])

    def _take(self, node: Node, module: Any, x: Any, y: Any) -> None:
        kind = node.target if module is None else type(module).__name__
        made: Any = next((text for part, text in _ADVICE.items() if part in kind), "it has no form in NIR")
        if isinstance(module, RateIF):
            made = self._neurons(node, module, y)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d)):
            made = self._conv(module, x)
        elif isinstance(module, nn.Linear):
            made = self._linear(module, x)
        elif isinstance(module, Scale):
            made = self.nir.Scale(_numpy(module(torch.ones_like(x))[0]))
        elif _is_average(node, module):
            made = self._average(module, node, x, y)
        elif _flattens(node, module):
            made = self.nir.Flatten(np.array(x.shape[1:]), 0, -1)
        elif node.kind == CALL and node.target in ("size", "contiguous"):
            self.sources[node.name] = self._from(node.reads())
            return
        elif node.kind == CALL and node.target == "add" and _plain_sum(node):
            self.sources[node.name] = self._from(node.reads())
            made = None if len({*self.sources[node.name]}) == len(self.sources[node.name]) else "a sum with itself"
        if isinstance(made, str):
            self.problems.append(f"{node.name} ({kind}, {node.where}): {made}")
            self.sources[node.name] = []
        elif made is not None:
            self._put(node, made, node.reads()[:1])

    def _put(self, node: Node, made: Any, reads: Sequence[str]) -> None:
        self.nodes[node.name] = made
        self.edges += [(source, node.name) for source in self._from(reads)]
        self.sources.setdefault(node.name, [node.name])

    def _from(self, reads: Sequence[str]) -> list[str]:
        return [source for name in reads for source in self.sources[name]]

    def _neurons(self, node: Node, neuron: Any, y: Tensor) -> Any:
        """Threshold and loop of a layer of neurons; returns its integrator."""
        theta, begin, shift = (
            torch.as_tensor(value, dtype=y.dtype, device=y.device).expand_as(y)[0]
            for value in (neuron.v_threshold, neuron.v_init, neuron.shift)
        )
        if bool(shift.any()) and not self._shifted(node, shift):
            return "a current of its own in every step, and no convolution or linear layer in front that could take it"
        level = _numpy(theta - begin)
        fires, back = f"{node.name}{FIRES}", f"{node.name}{BACK}"
        self.nodes[fires] = self.nir.Threshold(np.nextafter(level, np.full_like(level, -np.inf)))
        self.nodes[back] = self.nir.Scale(-_numpy(theta))
        self.edges += [(node.name, fires), (fires, back), (back, node.name)]
        self.sources[node.name] = [fires]
        return self.nir.I(np.ones_like(level))

    def _shifted(self, node: Node, shift: Tensor) -> bool:
        """Put a constant current into the bias of the one layer in front."""
        sources = self._from(node.reads()[:1])
        front = self.nodes.get(sources[0]) if len(sources) == 1 else None
        channels = shift.flatten(1)[:, 0] if shift.ndim > 1 else shift
        alone = len([n for n in self.net.nodes if node.reads()[0] in n.reads()]) == 1
        same = bool((shift.movedim(0, -1) == channels).all())
        if not alone or not same or not isinstance(front, (self.nir.Conv1d, self.nir.Conv2d, self.nir.Affine)):
            return False
        front.bias = front.bias + _numpy(channels)
        return True

    def _conv(self, conv: Any, x: Tensor) -> Any:
        if conv.groups != 1 or conv.padding_mode != "zeros":
            return "grouped convolutions and padding other than with zeros are not in NIR"
        bias = torch.zeros(conv.out_channels).to(conv.weight) if conv.bias is None else conv.bias
        flat = isinstance(conv, nn.Conv1d)
        sizes = [v if isinstance(v, str) or not flat else v[0] for v in (conv.stride, conv.padding, conv.dilation)]
        space = x.shape[2] if flat else tuple(x.shape[2:])
        kind = self.nir.Conv1d if flat else self.nir.Conv2d
        return kind(space, _numpy(conv.weight), *sizes, conv.groups, _numpy(bias))

    def _linear(self, linear: Any, x: Tensor) -> Any:
        if x.ndim != 2:
            return f"a linear layer on {x.ndim - 1} axes; NIR has them on one"
        weight = _numpy(linear.weight)
        bias = np.zeros(len(weight), weight.dtype) if linear.bias is None else _numpy(linear.bias)
        return self.nir.Affine(weight, bias)

    def _average(self, module: Any, node: Node, x: Tensor, y: Tensor) -> Any:
        """An average pool; those by output size if their windows are all alike."""
        if module is not None and type(module) is nn.AvgPool2d:
            if module.ceil_mode or module.divisor_override or (_pair(module.padding) != (0, 0)):
                return "NIR's average pool has whole windows without padding"
            kernel, stride = _pair(module.kernel_size), _pair(module.stride)
        elif x.ndim == 4 and y.ndim == 4 and x.shape[2] % y.shape[2] == 0 and x.shape[3] % y.shape[3] == 0:
            kernel = stride = (x.shape[2] // y.shape[2], x.shape[3] // y.shape[3])
        else:
            return "its windows differ in size, or are not of two axes"
        return self.nir.AvgPool2d(np.array(kernel), np.array(stride), np.array((0, 0)))


def _shaped(net: ConvertedNet, node: Node, module: Any, values: dict[str, Any]) -> Any:
    """The value of one step with one image."""
    if module is not None and getattr(module, "streams", False):  # what neurons and pools do to a shape
        x = values[node.reads()[0]]
        return torch.zeros_like(x) if getattr(module, "pool", None) is None else module.pool(x)
    return net._operate(node, values, 1, set())


def _is_average(node: Node, module: Any) -> bool:
    kinds = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
    return isinstance(module, kinds) or (module is None and node.target == "adaptive_avg_pool2d")


def _flattens(node: Node, module: Any) -> bool:
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    return node.kind == CALL and is_flatten(node)


def _plain_sum(node: Node) -> bool:
    return len(node.args) == 2 and all(isinstance(arg, Ref) for arg in node.args) and not node.kwargs


def _numpy(value: Tensor) -> Any:
    return value.detach().cpu().numpy().copy()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
