"""Golden conversion: the kind of a file is the beginning of its name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

MODULES = {
    "qcfs_": "qcfs",
    "rate_coding_": "rates",
    "calibration_": "calibrated",
    "offset_spike_": "offset",
    "dynamic_confidence_": "confidence",
    "diet_": "diet",
}
"""Beginning of a name -> module of `spikeloom_tests.golden.conversion`, with `check(path, variant)`."""


def _module(path: Path) -> Any:
    name = next(module for prefix, module in MODULES.items() if path.stem.startswith(prefix))
    return importlib.import_module(f"spikeloom_tests.golden.conversion.{name}")


def variants(path: Path) -> list[str]:
    """Every file in both precisions, but for corrections: a spike that rounding moves changes all that follow."""
    if path.stem.startswith("calibration_"):
        return ["float64"]
    return ["float64", "float32"] if path.stem.startswith(tuple(MODULES)) else []


def check(path: Path, variant: str) -> None:
    """Compare a file in one precision."""
    _module(path).check(path, variant)
