"""A golden network written with `torch.nn.functional` on parameters that one module holds."""

from __future__ import annotations

import torch
from spikeloom_tests.golden.energy.graph import (
    CONVS,
    NEURONS,
    Case,
    Node,
    module_name,
    over_frames,
    to_channels,
    weightless,
)
from spikeloom_tests.golden.energy.layers import with_memory
from torch import Tensor, nn
from torch.nn import functional as F

GEOMETRY = ("stride", "padding", "output_padding", "dilation", "groups")


class FunctionalNet(nn.Module):
    """`net(x [T, B, ...]) -> {name: output}`; only what has memory (neurons, delays) is a submodule.

    Args:
        keep: return the outputs of all nodes, not those of the neurons and the final node alone.
    """

    def __init__(self, case: Case, keep: bool = False) -> None:
        super().__init__()
        self._case = case
        wanted = {node["name"] for node in case.nodes if node["op"] in NEURONS} | {case.final}
        self._wanted = {node["name"] for node in case.nodes} | {case.input} if keep else wanted
        for node in case.nodes:
            module = with_memory(case, node, nn.Linear, "auto")
            if module is not None:
                self.add_module(module_name(node["name"]), module)
                continue
            for key, value in case.parameters(node["name"]).items():
                name = f"{node['name']}_{key}"
                if key.startswith("running"):
                    self.register_buffer(name, value)
                else:
                    self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        values = {self._case.input: x}
        for node in self._case.nodes:
            values[node["name"]] = self._compute(node, *(values[name] for name in node["inputs"]))
        return {name: values[name] for name in self._wanted}

    def _compute(self, node: Node, *inputs: Tensor) -> Tensor:
        function = weightless(node)
        if function is not None:
            return function(*inputs)
        name, op = node["name"], node["op"]
        if op == "linear":
            return F.linear(*inputs, self._held(name, "weight"), self._held(name, "bias"))
        if op == "batchnorm":
            return to_channels(lambda x: over_frames(lambda y: self._norm(node, y), x), *inputs, node["attrs"]["axis"])
        if op in CONVS:
            return over_frames(lambda x: self._conv(node, x), *inputs)
        return self.get_submodule(module_name(name))(*inputs)

    def _held(self, node: str, key: str) -> Tensor | None:
        return getattr(self, f"{node}_{key}", None)

    def _norm(self, node: Node, x: Tensor) -> Tensor:
        held = [self._held(node["name"], key) for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *held, eps=node["attrs"]["eps"])

    def _conv(self, node: Node, x: Tensor) -> Tensor:
        attrs = node["attrs"]
        geometry = {
            key: attrs[key] for key in ("stride", "padding", "output_padding", "dilation", "groups") if key in attrs
        }
        weight, bias = self._held(node["name"], "weight"), self._held(node["name"], "bias")
        mode = attrs.get("padding_mode", "zeros")
        if mode != "zeros":
            pads = [side for pad in reversed(geometry["padding"]) for side in (pad, pad)]
            x, geometry["padding"] = F.pad(x, pads, mode), 0
        return getattr(F, node["op"])(x, weight, bias, **geometry)


def all_values(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """The output of every node, and the input."""
    with torch.no_grad():
        return FunctionalNet(case, keep=True).to(dtype).eval()(case.x.to(dtype))
