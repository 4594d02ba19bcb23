"""Golden Max-Former: whole networks, Max-ResNet, MS-QKFormer, and every embedding, mixer and MLP on its own."""

from __future__ import annotations

from pathlib import Path

import torch
from spikeloom_tests.golden.maxformer.build import build
from spikeloom_tests.golden.maxformer.compare import compare


def variants(path: Path) -> list[str]:
    """In both precisions, in single precision on a GPU too."""
    return ["float64", "float32", "cuda"] if path.suffix == ".safetensors" else []


def check(path: Path, variant: str) -> None:
    """Compare a file in one way."""
    dtype = torch.float64 if variant == "float64" else torch.float32
    compare(path, build(path), dtype, "cuda" if variant == "cuda" else "cpu")
