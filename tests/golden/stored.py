"""What a golden file holds: tensors by their full names, and metadata with the configuration."""

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
