"""A golden file of the conversion family, and comparisons at the tolerances of both precisions."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from spikeloom.conversion import ConvertedNet


@dataclass(frozen=True)
class Stored:
    """Tensors in the precision of the comparison, results as they are."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    mode: str
    dtype: torch.dtype

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def given(self, name: str) -> Tensor:
        return self.tensors[f"in.{name}"].to(self.dtype)

    def load(self, net: nn.Module) -> nn.Module:
        net.load_state_dict(
            {k: v if v.dtype == torch.int64 else v.to(self.dtype) for k, v in self.part("state.").items()}
        )
        return net

    def close(self, ours: Tensor, name: str) -> None:
        """Within 1e-9 in float64, 1e-4 in float32."""
        theirs = self.tensors[f"out.{name}"]
        atol = 1e-9 if self.dtype == torch.float64 else 1e-4
        torch.testing.assert_close(ours.detach().double().reshape(theirs.shape), theirs, rtol=0, atol=atol)

    def same(self, ours: Tensor, name: str) -> None:
        """Equal counts, in both precisions."""
        assert torch.equal(ours.double(), self.tensors[f"out.{name}"]), name


def read(path: Path, variant: str) -> Stored:
    with safe_open(path, "pt") as stored:  # type: ignore[no-untyped-call]
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        meta = stored.metadata()
    return Stored(tensors, json.loads(meta["config"]), meta["mode"], getattr(torch, variant))


@contextmanager
def counting(net: ConvertedNet) -> Iterator[dict[str, Tensor]]:
    """Spike counts of every layer of neurons in one call."""
    counts: dict[str, Tensor] = {}
    handles = []
    for name, layer in net.layers.items():
        if getattr(layer, "v_threshold", None) is not None:

            def keep(module: nn.Module, given: Any, y: Tensor, name: str = name) -> None:
                counts[name] = y.sum(0)

            handles.append(layer.register_forward_hook(keep))
    yield counts
    for handle in handles:
        handle.remove()


@contextmanager
def few_batches() -> Iterator[None]:
    """The files have few calibration batches, of which `convert` warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "local threshold balancing saw", UserWarning)
        warnings.filterwarnings("ignore", "the thresholds are from", UserWarning)
        warnings.filterwarnings("ignore", "the calibration data is not in the range", UserWarning)
        yield
