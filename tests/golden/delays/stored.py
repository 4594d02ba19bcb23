"""A golden file of the delay networks, and how far ours may be from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

DESCRIPTIVE = ("sig_at_capture", "T", "B", "steps", "labels_of_step_e", "lrs_columns")
"""Fields of a network's `config` that describe the file, not the network."""


@dataclass(frozen=True)
class Stored:
    """The tensors by their full names, and what the metadata say."""

    name: str
    tensors: dict[str, Tensor]
    config: dict[str, Any]
    mode: str

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {key.removeprefix(prefix): x for key, x in self.tensors.items() if key.startswith(prefix)}

    def network(self) -> dict[str, Any]:
        """The official configuration of a network."""
        return {key: value for key, value in self.config.items() if key not in DESCRIPTIVE}

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]


def read(path: Path) -> Stored:
    """Read a file."""
    with safe_open(path, "pt") as stored:  # type: ignore[no-untyped-call]
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        meta = stored.metadata()
    return Stored(path.stem, tensors, json.loads(meta["config"]), meta["mode"])


def close(ours: Tensor, theirs: Tensor, relative: float, what: str) -> None:
    """Largest difference over the largest value, or alone where that is 0."""
    assert ours.shape == theirs.shape, what
    difference = (ours.detach().double() - theirs.double()).abs().max().item()
    scale = theirs.double().abs().max().item() or 1.0
    assert difference <= relative * scale, f"{what}: {difference:.3g} apart, {relative * scale:.3g} allowed"


def near(ours: Tensor, theirs: Tensor, absolute: float, what: str) -> None:
    """Largest difference."""
    assert ours.shape == theirs.shape, what
    difference = (ours.detach().double() - theirs.double()).abs().max().item()
    assert difference <= absolute, f"{what}: {difference:.3g} apart, {absolute:.3g} allowed"


def same(ours: Tensor, theirs: Tensor, what: str) -> None:
    """Equal values."""
    assert torch.equal(ours.detach().double(), theirs.double()), what
