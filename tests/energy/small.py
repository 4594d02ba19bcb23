"""Small networks and random spikes for tests of the counter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikeloom_tests.golden.energy.graph import Case
from spikeloom_tests.golden.energy.nets import ProjectNet
from torch import Tensor, nn

from spikeloom.energy import Counts, count

DATA = Path(__file__).parents[1] / "golden" / "data" / "energy"

T, B = 3, 2
VALUES = {
    "binary": (1.0,),
    "ternary": (-1.0, 1.0),
    "integer": (1.0, 2.0, 3.0, -2.0),
    "float": (0.3, -1.7, 2.0, 0.0123),
}


class Folded(nn.Module):
    """A torch layer of [frames, ...] on [T, B, ...]."""

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Call(nn.Module):
    """A function of tensors as a network."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def sparse(shape: Sequence[int], kind: str = "binary", rate: float = 0.3, seed: int = 0) -> Tensor:
    """Random [T, B, *shape] of a kind, never silent."""
    random = np.random.default_rng(seed)
    x = random.choice(VALUES[kind], (T, B, *shape)) * (random.random((T, B, *shape)) < rate)
    x.flat[: len(VALUES[kind])] = VALUES[kind]
    return torch.from_numpy(x)


def counted(net: nn.Module, *inputs: Tensor, inference: bool = False) -> Counts:
    """One run of a network."""
    with torch.inference_mode() if inference else torch.no_grad(), count(net, strict=True) as run:
        net(*inputs)
    return run.counts()


def same_counts(first: Counts, second: Counts, *, names: bool = False) -> None:
    """Assert that two runs counted the same in their layers, in order; `names`: called the same too."""
    assert len(first.layers) == len(second.layers), ([y.name for y in first.layers], [y.name for y in second.layers])
    fields = ["operands", "kind", "quantum", "dense_exact", "dense_nominal", "out_numel", "bias_adds", "static_input"]
    arrays = ["sop", "events", "sop_nonzero_weight", "sop_unit", "sop_a", "sop_b", "events_b"]
    for a, b in zip(first.layers, second.layers, strict=True):
        for field in [*fields, "kind_b", "quantum_b", *(["name"] if names else [])]:
            assert getattr(a, field) == getattr(b, field), (a.name, field)
        for name in arrays:
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None), (a.name, name)
            assert x is None or x.tolist() == y.tolist(), (a.name, name)


def golden(name: str) -> tuple[nn.Module, Tensor]:
    """A golden network of the project's layers, and its input [T, B, ...]."""
    case = Case.load(DATA / f"{name}.safetensors")
    return ProjectNet(case).double().eval(), case.x.double()


@torch.no_grad()
def in_batches(net: nn.Module, x: Tensor, sizes: list[int], **options: Any) -> Counts:
    """A run of several calls, each with so many samples."""
    with count(net, strict=True, **options) as run:
        for part in x.split(sizes, 1):
            net(part)
    return run.counts()
