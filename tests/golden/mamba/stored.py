"""What a golden file of SpikMamba holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """One file: its tensors by their full names, and its metadata."""

    name: str
    tensors: dict[str, Tensor]
    meta: dict[str, str]
    config: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def read(path: Path) -> Stored:
    """Read a file as it is."""
    with safe_open(path, "pt") as stored:  # type: ignore[no-untyped-call]
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        meta = stored.metadata()
    return Stored(path.stem, tensors, meta, json.loads(meta["config"]))


def agree(found: Tensor | None, expected: Tensor, single: bool, what: str) -> None:
    """Double precision: every entry within 1e-10 + 1e-9 of it. Single: the distance within 1e-4 of its norm."""
    assert found is not None, what
    gap = (found.detach().cpu().double().reshape(expected.shape) - expected.double()).abs()
    if single:
        limit = 1e-4 * expected.norm().item() + 1e-5
        assert gap.norm().item() <= limit, f"{what}: {gap.norm().item():.3g} apart, {limit:.3g} allowed"
    else:
        excess = (gap - 1e-10 - 1e-9 * expected.abs()).max().item()
        assert excess <= 0, f"{what}: {gap.max().item():.3g} apart"
