"""Neurons and delays of a golden network as modules: what all flavours share."""

from __future__ import annotations

from typing import Any

import torch
from spikeloom_tests.golden.energy.graph import Case, Node
from torch import Tensor, nn

from spikeloom.neurons import IF, ILIF, LIF, Neuron, Recurrent


class DelayLinear(nn.Module):
    """y[t, b, o] = sum_i weight[o, i] x[t - delay[o, i], b, i] on [T, B, in], zero before the first step.

    `forward(x, state=None, return_state=True)` continues from the last `max_delay` inputs, [max_delay, B, in].
    """

    streams = True

    def __init__(self, weight: Tensor, delay: Tensor, max_delay: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.register_buffer("delay", delay)
        self.max_delay = max_delay

    def forward(self, x: Tensor, *, state: Tensor | None = None, return_state: bool = False) -> Any:
        past = x.new_zeros(self.max_delay, *x.shape[1:]) if state is None else state
        held = torch.cat([past, x])
        steps = torch.arange(x.shape[0], device=x.device)[:, None, None] + self.max_delay - self.delay  # [T, out, in]
        late = held[steps, :, torch.arange(x.shape[-1], device=x.device)]  # [T, out, in, B]
        y = (late * self.weight[None, :, :, None]).sum(2).transpose(1, 2)
        return (y, held[x.shape[0] :]) if return_state else y


def neuron(node: Node, backend: str) -> Neuron:
    """The neuron of a node; the spec's I-LIF leaks by V / tau per step, ours by V - V / tau'."""
    attrs, op = node["attrs"], node["op"]
    if op == "ilif":
        tau = attrs["tau"]
        ours = float("inf") if tau == 1 else tau / (tau - 1)
        return ILIF(ours, 1.0, attrs["levels"], rounding="half_up", backend=backend)
    if op == "if":
        return IF(attrs["v_threshold"], attrs["v_reset"], backend=backend)
    if op == "if_soft":
        return IF(attrs["v_threshold"], None, backend=backend)
    assert op in ("lif", "recurrent_lif"), op
    return LIF(attrs["tau"], attrs["v_threshold"], attrs["v_reset"], backend=backend)


class RecurrentLayer(nn.Module):
    """I[t] = ff x[t] + rec s[t-1], then the neuron; the layers are called `<name>.ff` and `<name>.rec`."""

    streams = True

    def __init__(self, ff: nn.Linear, rec: nn.Linear, cell: Neuron) -> None:
        super().__init__()
        self.ff = ff
        self.rec = Recurrent(cell, rec)

    def forward(self, x: Tensor, *, state: Any = None, return_state: bool = False) -> Any:
        return self.rec(self.ff(x), state=state, return_state=return_state)


def fill(module: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    """Put stored parameters into a module of the same names (a batch norm's counter of batches is not stored)."""
    missing = module.load_state_dict(values, strict=False)
    assert not missing.unexpected_keys, missing
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys), missing
    return module


def linear(cls: type[nn.Linear], node: Node, values: dict[str, Tensor]) -> nn.Linear:
    """A linear layer with its stored weight."""
    attrs = node["attrs"]
    layer = cls(attrs["in_features"], attrs["out_features"], bias=attrs["bias"])
    fill(layer, values)
    return layer


def with_memory(case: Case, node: Node, cls: type[nn.Linear], backend: str) -> nn.Module | None:
    """The module of a neuron, recurrent or delay node; None for other nodes."""
    attrs, values = node["attrs"], case.parameters(node["name"])
    if node["op"] == "delay_linear":
        return DelayLinear(values["weight"], values["delay"].long(), attrs["max_delay"])
    if node["op"] == "recurrent_lif":
        sizes = attrs["in_features"], attrs["hidden"]
        ff, rec = cls(sizes[0], sizes[1], bias=False), nn.Linear(sizes[1], sizes[1], bias=False)
        fill(ff, {"weight": values["ff.weight"]})
        fill(rec, {"weight": values["rec.weight"]})
        return RecurrentLayer(ff, rec, neuron(node, backend))
    return neuron(node, backend) if node["op"] in ("lif", "if", "if_soft", "ilif") else None
