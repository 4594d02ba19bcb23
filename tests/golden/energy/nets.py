"""A golden network as modules, one submodule per node and of its name, `net(x) -> {name: output}`.

`ProjectNet` has spikeloom's layers, with batch norms merged into the neuron behind them where it is their only reader.
`PlainNet` has torch's layers on folded tensors, batch norms of their own, and neurons by their reference. `StepNet` is
`PlainNet` called for one time step after the other by an outside loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikeloom_tests.golden.energy.functional import all_values
from spikeloom_tests.golden.energy.graph import (
    CONVS,
    NEURONS,
    Case,
    Node,
    Plain,
    module_name,
    over_frames,
    to_channels,
    weightless,
)
from spikeloom_tests.golden.energy.layers import fill, linear, with_memory
from torch import Tensor, nn

from spikeloom import synapses

CLASSES = {op: "".join(part.capitalize() for part in op.split("_")) for op in CONVS}  # conv1d: Conv1d
PER_FRAME = (*CONVS, "avg_pool2d", "max_pool2d")
TORCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
OWN_NORMS = {2: synapses.BatchNorm1d, 3: synapses.BatchNorm1d, 4: synapses.BatchNorm2d}
SIMPLE_NEURONS = ("lif", "if", "if_soft", "ilif")


class GraphNet(nn.Module):
    """Runs the nodes in order."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._case = case
        self._wanted = {node["name"] for node in case.nodes if node["op"] in NEURONS} | {case.final}
        self._axes = {name: value.dim() for name, value in all_values(case, torch.float32).items()}
        for node in case.nodes:
            self.add_module(module_name(node["name"]), self.module(node))

    def module(self, node: Node) -> nn.Module:
        """The submodule of a node."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        values = {self._case.input: x}
        for node in self._case.nodes:
            values[node["name"]] = self.compute(node, *(values[name] for name in node["inputs"]))
        return {name: values[name] for name in self._wanted}

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        """The output of a node."""
        return self.get_submodule(module_name(node["name"]))(*inputs)

    def norm(self, node: Node, classes: dict[int, type[Any]]) -> nn.Module:
        """The batch norm of a node, of the class for its input's number of axes (time folded into the batch)."""
        attrs = node["attrs"]
        cls = classes[self._axes[node["name"]] - 1]
        return fill(cls(attrs["num_features"], eps=attrs["eps"]), self._case.parameters(node["name"]))


class ProjectNet(GraphNet):
    """spikeloom's layers on [T, B, ...]."""

    def module(self, node: Node) -> nn.Module:
        case, op = self._case, node["op"]
        if (function := weightless(node)) is not None:
            own = {"avg_pool2d": synapses.AvgPool2d, "max_pool2d": synapses.MaxPool2d, "flatten": synapses.Flatten}
            return own[op](**node["attrs"]) if op in own else Plain(function)
        if op == "linear":
            return linear(synapses.Linear, node, case.parameters(node["name"]))
        if op in CONVS:
            own_cls = getattr(synapses, CLASSES[op], None)
            layer = fill((own_cls or getattr(nn, CLASSES[op]))(**node["attrs"]), case.parameters(node["name"]))
            return layer if own_cls else OverFrames(layer)
        if op == "batchnorm":
            return nn.Identity() if self._merged(node) else at_axis(self.norm(node, OWN_NORMS), node["attrs"]["axis"])
        return self._neuron(node)

    def _neuron(self, node: Node) -> nn.Module:
        module = with_memory(self._case, node, synapses.Linear, "auto")
        assert module is not None, node["op"]
        norms = [n for n in self._case.nodes if n["name"] in node["inputs"] and n["op"] == "batchnorm"]
        if not norms or not self._merged(norms[0]):
            return module
        attrs, values = norms[0]["attrs"], self._case.parameters(norms[0]["name"])
        merged = synapses.NormNeuron(attrs["num_features"], module, eps=attrs["eps"])
        return at_axis(fill(merged, values), attrs["axis"])

    def _merged(self, norm: Node) -> bool:
        """Is this batch norm part of the neuron behind it?"""
        readers = self._case.consumers(norm["name"])
        return len(readers) == 1 and readers[0]["op"] in SIMPLE_NEURONS


class OverFrames(nn.Module):
    """A torch layer of [frames, ...] on [T, B, ...]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return over_frames(self.layer, x)


class AtAxis(nn.Module):
    """A module of [T, B, C, ...] on tensors whose channels are at another axis."""

    streams = True

    def __init__(self, inner: nn.Module, axis: int) -> None:
        super().__init__()
        self.inner, self.axis = inner, axis
        self.streams = getattr(inner, "streams", False)

    def forward(self, x: Tensor, **streaming: Any) -> Any:
        out = self.inner(x.movedim(self.axis, 2), **streaming)
        if streaming.get("return_state"):
            return out[0].movedim(2, self.axis), out[1]
        return out.movedim(2, self.axis)


def at_axis(inner: nn.Module, axis: int) -> nn.Module:
    """A module of [T, B, C, ...] for tensors whose channels are at `axis`."""
    return inner if axis == 2 else AtAxis(inner, axis)


class PlainNet(GraphNet):
    """torch's layers on [T * B, ...]."""

    def module(self, node: Node) -> nn.Module:
        case, op = self._case, node["op"]
        if op in ("avg_pool2d", "max_pool2d"):
            return {"avg_pool2d": nn.AvgPool2d, "max_pool2d": nn.MaxPool2d}[op](**node["attrs"])
        if (function := weightless(node)) is not None:
            return Plain(function)
        if op == "linear":
            return linear(nn.Linear, node, case.parameters(node["name"]))
        if op in CONVS:
            return fill(getattr(nn, CLASSES[op])(**node["attrs"]), case.parameters(node["name"]))
        if op == "batchnorm":
            return self.norm(node, TORCH_NORMS)
        module = with_memory(case, node, nn.Linear, "reference")
        assert module is not None, op
        return module

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        module = self.get_submodule(module_name(node["name"]))
        if node["op"] == "batchnorm":
            return to_channels(self.folded(module), *inputs, node["attrs"]["axis"])
        return self.folded(module)(*inputs) if node["op"] in PER_FRAME else module(*inputs)

    def folded(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """A layer of [frames, ...] as a function of [T, B, ...]."""
        return lambda x: over_frames(module, x)


class StepNet(PlainNet):
    """`net(x[t])` for t = 0, 1, ...: [B, ...] in, outputs of one step; `reset` before a new sequence."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.reset()

    def reset(self) -> None:
        """Start from rest."""
        self._states: dict[str, Any] = {}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: value[0] for name, value in super().forward(x.unsqueeze(0)).items()}

    def compute(self, node: Node, *inputs: Tensor) -> Tensor:
        name = node["name"]
        if node["op"] not in (*NEURONS, "delay_linear"):
            return super().compute(node, *inputs)
        module = self.get_submodule(module_name(name))
        result, self._states[name] = module(*inputs, state=self._states.get(name), return_state=True)
        return result

    def folded(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda x: module(x[0]).unsqueeze(0)
