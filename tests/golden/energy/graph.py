"""A golden network: its graph, input, parameters and counts, and the operations that have no weights.

Activations are [T, B, ...] everywhere. A node is `{name, op, inputs, attrs}`; the nodes come in execution order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Node = Mapping[str, Any]
NEURONS = ("lif", "if", "if_soft", "ilif", "recurrent_lif")
CONVS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
TAKEN = {*dir(nn.Module), "training", "module", "compute", "norm", "folded", "reset"}


@dataclass(frozen=True)
class Case:
    """A golden file: `golden` is the JSON, `tensors` the arrays."""

    golden: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Case:
        """Read `<name>.safetensors` and the JSON beside it."""
        golden = json.loads(path.with_suffix(".json").read_text())
        assert golden["format"] == "spikeloom-energy-golden", golden["format"]
        assert golden["version"] == 1, golden["version"]
        return cls(golden, load_file(path.with_suffix(".safetensors")))

    @property
    def nodes(self) -> list[Node]:
        """The graph without its input."""
        return [node for node in self.golden["graph"] if node["op"] != "input"]

    @cached_property
    def input(self) -> str:
        """Name of the input node."""
        (name,) = (node["name"] for node in self.golden["graph"] if node["op"] == "input")
        return str(name)

    @property
    def final(self) -> str:
        """Name of the node whose output is the network's."""
        return str(self.golden["final_node"])

    @property
    def x(self) -> Tensor:
        """The input [T, B, ...], float32."""
        return self.tensors[f"in.{self.input}"]

    @property
    def steps(self) -> int:
        """Time steps."""
        return int(self.x.shape[0])

    @property
    def samples(self) -> int:
        """Samples."""
        return int(self.x.shape[1])

    @property
    def is_frames(self) -> bool:
        """Is the input [T, B, C, H, W]?"""
        return self.x.dim() == 5

    def expected(self) -> dict[str, Tensor]:
        """The stored outputs: spikes of each neuron node, and the network's output."""
        return {name[4:]: tensor for name, tensor in self.tensors.items() if name.startswith("out.")}

    def parameters(self, name: str) -> dict[str, Tensor]:
        """Parameters and buffers of a node, by their names inside it."""
        prefix = f"state.{name}."
        return {key[len(prefix) :]: value for key, value in self.tensors.items() if key.startswith(prefix)}

    def consumers(self, name: str) -> list[Node]:
        """The nodes that read a node's output."""
        return [node for node in self.nodes if name in node["inputs"]]


def module_name(node: str) -> str:
    """Name of a node's module: the node's, unless modules have a method of this name."""
    return f"{node}_" if node in TAKEN else node


class Plain(nn.Module):
    """A function of tensors as a module, so that what runs inside carries the node's name."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[..., N, D] -> [..., heads, N, D / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    """[..., heads, N, d] -> [..., N, heads d]."""
    return x.transpose(-2, -3).flatten(-2)


def over_frames(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function of [frames, ...] to [T, B, ...]."""
    return function(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def pool(node: Node) -> Callable[[Tensor], Tensor]:
    """avg_pool2d or max_pool2d of [frames, C, H, W]."""
    function = getattr(nn.functional, node["op"])
    return lambda x: function(x, **node["attrs"])


def weightless(node: Node) -> Callable[..., Tensor] | None:
    """The function of a node without parameters and without memory, on [T, B, ...]; None for other nodes."""
    attrs, op = node["attrs"], node["op"]
    functions: dict[str, Callable[..., Tensor]] = {
        "add": lambda a, b: a + b,
        "mul": lambda a, b: a * b,
        "scale": lambda x: x * attrs["c"],
        "sum": lambda x: x.sum(attrs["dim"], keepdim=attrs.get("keepdim", False)),
        "softmax": lambda x: torch.softmax(x, -1),
        "matmul": torch.matmul,
        "transpose_last": lambda x: x.transpose(-1, -2),
        "split_heads": lambda x: split_heads(x, attrs["heads"]),
        "merge_heads": merge_heads,
        "to_tokens": lambda x: x.flatten(-2).transpose(-1, -2),
        "flatten": lambda x: x.flatten(2),
        "avg_pool2d": lambda x: over_frames(pool(node), x),
        "max_pool2d": lambda x: over_frames(pool(node), x),
    }
    return functions.get(op)


def to_channels(function: Callable[[Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """Apply a function of [T, B, C, ...] to a tensor with the channels at `axis`, moved there and back."""
    return function(x.movedim(axis, 2)).movedim(2, axis)
