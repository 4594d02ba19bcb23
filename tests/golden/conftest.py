"""Golden files: inputs, parameters and results that were computed elsewhere, one folder per family.

A family is compared by `families/<family>.py`, which has

    variants(case)          names of the ways in which this file is compared
    check(case, variant)    compares, by assertions

A variant with "cuda" in its name is marked `gpu`. `case` is the path of the file (`.safetensors`, or `.json` where
there is no `.safetensors` of the same name).
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

FAMILIES = Path(__file__).parent / "families"


@dataclass(frozen=True)
class GoldenCase:
    """One file of a family, compared in one way; `runner` is None if nothing compares this family yet."""

    family: str
    path: Path
    variant: str
    runner: ModuleType | None

    @property
    def id(self) -> str:
        """family/name, and how it is compared."""
        return f"{self.family}/{self.path.stem}" + (f"-{self.variant}" if self.variant else "")


def runner_of(family: str) -> ModuleType | None:
    """The module that compares a family."""
    if not (FAMILIES / f"{family}.py").exists():
        return None
    return importlib.import_module(f"spikeloom_tests.golden.families.{family}")


def files_of(folder: Path) -> list[Path]:
    """The cases of one family's folder, by name."""
    tensors = sorted(folder.glob("*.safetensors"))
    names = {path.stem for path in tensors}
    return sorted([*tensors, *(path for path in folder.glob("*.json") if path.stem not in names)])


def cases_of(folder: Path) -> list[GoldenCase]:
    """The cases of one family, each as often as its runner has variants."""
    family, cases = folder.name, []
    runner = runner_of(family)
    for path in files_of(folder):
        variants = runner.variants(path) if runner is not None else [""]
        cases += [GoldenCase(family, path, variant, runner) for variant in variants]
    return cases


def collect(root: Path) -> list[GoldenCase]:
    """All cases below `root`, which is one family's folder or a folder of families.

    Raises:
        pytest.UsageError: there is no golden file.
    """
    root = Path(os.path.abspath(root.expanduser()))  # keeps the name of a linked folder
    folders = [root, *sorted(path for path in root.rglob("*") if path.is_dir())] if root.is_dir() else []
    cases = [case for folder in folders for case in cases_of(folder)]
    if not cases:
        raise pytest.UsageError(f"--golden {root}: no .safetensors or .json file there or in its folders")
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`golden_case`: every case below --golden."""
    if "golden_case" in metafunc.fixturenames:
        cases = collect(Path(metafunc.config.getoption("--golden")))
        marked = [pytest.param(c, id=c.id, marks=[pytest.mark.gpu] if "cuda" in c.variant else []) for c in cases]
        metafunc.parametrize("golden_case", marked)
