"""Golden SpikMamba: the kind of a file is its name up to the first "_"."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULES = {
    "scan": "scan",
    "conv1d": "scan",
    "mixer": "mixer",
    "official": "official",
    "clean": "clean",
    "afe": "frames",
}
"""Kind -> module of `spikeloom_tests.golden.mamba`, with `variants(path)` and `check(path, variant)`."""


def _module(path: Path) -> Any:
    return importlib.import_module(f"spikeloom_tests.golden.mamba.{MODULES[path.stem.partition('_')[0]]}")


def variants(path: Path) -> list[str]:
    """In how many ways a file is compared."""
    found: Callable[[Path], list[str]] = _module(path).variants
    return found(path)


def check(path: Path, variant: str) -> None:
    """Compare a file in one way."""
    _module(path).check(path, variant)
