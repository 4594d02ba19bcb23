"""How large a model is: parameters, and multiply-accumulates of one time step as a FLOPs counter sees them.

Both come from shapes alone (device `meta`): no memory, no arithmetic. The multiply-accumulates are the nominal, dense
ones of convolutions, linear maps and attention products, taps on padding included. What a spiking network really adds
up is a matter of its spikes: `spikeloom.energy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from spikeloom.models.registry import create_model, default_config, describe


@dataclass(frozen=True)
class Size:
    """parameters: all of them. parts: those of each child of the model. macs: per time step of one sample.

    T: time steps of an image; None: any number of frames. shape: (C, H, W) of an input, (N,) of a vector; () where
    it is a token id.
    """

    parameters: int
    parts: Mapping[str, int]
    macs: int
    T: int | None
    shape: tuple[int, ...]


def size_of(name: str, **overrides: Any) -> Size:
    """The size of a registered model.

    Raises:
        ValueError: no such model, no such field, or a configuration that does not say what the model takes.
    """
    defaults = default_config(name)
    T = overrides.get("T", getattr(defaults, "T", None))
    fixed = getattr(describe(name).kind, "fixed_input", False)  # parameters depend on T
    one_step: dict[str, Any] = {"T": 1} if hasattr(defaults, "T") and not fixed else {}
    steps = int(T) if fixed and T is not None else 1
    one_step |= {"tail": "none"} if hasattr(defaults, "tail") else {}  # steps that a delay network runs on for
    with torch.device("meta"):
        model = create_model(name, **{**overrides, **one_step})
    shape = input_shape(model.config, name)
    counter = _Macs()
    with torch.no_grad(), counter:
        model.eval()(torch.empty(steps, 1, *shape, device="meta", dtype=torch.float32 if shape else torch.int64))
    parts = {key: sum(p.numel() for p in child.parameters()) for key, child in model.named_children()}
    parts |= {key: value.numel() for key, value in model.named_parameters(recurse=False)}
    return Size(parameters(model), {key: n for key, n in parts.items() if n}, counter.total // steps, T, shape)


def parameters(model: nn.Module) -> int:
    """The number of a model's parameters."""
    return sum(value.numel() for value in model.parameters())


def input_shape(config: Any, name: str) -> tuple[int, ...]:
    """(C, H, W) by a model's configuration, (N,) of sequences; () of a language model.

    Raises:
        ValueError: it does not say.
    """
    known = {field.name for field in fields(config)}
    if "vocab_size" in known:
        return ()
    if "in_features" in known:
        return (int(config.in_features),)
    if not {"in_channels", "input_size"} <= known:
        raise ValueError(f"The configuration of {name} has no in_channels and input_size, so its input is not known.")
    size = config.input_size
    height, width = size if isinstance(size, tuple) else (size, size)
    return int(config.in_channels), int(height), int(width)


class _Macs(TorchDispatchMode):
    """Adds up what torch's formulas say of the operations that run; those count a multiply-accumulate as two."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out) // 2
        return out
