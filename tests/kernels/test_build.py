"""The disk cache of C++ kernels, and what happens without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeloom.kernels import backends, detach, spike, step, where
from spikeloom.kernels.cpu import build
from spikeloom.kernels.cpu.run import _library

RUN = """
import sys, warnings
import torch
from spikeloom.kernels import backends, detach, spike, step, where
from spikeloom.kernels.cpu import build

@step(state={"v": 0.0})
def leaky(x, v, *, tau=2.0):
    h = v + (x - v) / tau
    s = spike(h - 1.0)
    return s, where(detach(s), 0.0, h)

compiled = []
compile_ = build._compile
build._compile = lambda source, library: (compiled.append(library.name), compile_(source, library))
x = torch.full((4, 2, 3), 1.5)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        y, _ = leaky(x)
print("spikes", y.sum().item())
print("compiled", len(compiled))
for warning in caught:
    print("warning", warning.category.__name__, str(warning.message).replace("\\n", " "))
try:
    leaky(x, backend="cpu")
    print("named backend ran")
except backends.BackendError as error:
    print("BackendError", str(error).replace("\\n", " "))
"""
SPIKES = "spikes 12.0"
"""h = 0.75, 1.125 (fires), 0.75, 1.125 (fires): two spikes of six neurons each."""


def start(cache: Path, **environment: str | None) -> subprocess.Popen[str]:
    merged = {**os.environ, "SPIKELOOM_CACHE": str(cache), "OMP_NUM_THREADS": "1", **environment}
    kept = {name: value for name, value in merged.items() if value is not None}
    return subprocess.Popen(
        [sys.executable, "-c", RUN], env=kept, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    """The lines that a process printed."""
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out.splitlines()


def test_processes_share_the_cache(tmp_path: Path) -> None:
    """Two that build the same kernel at once both work; one that comes later compiles nothing."""
    together = [start(tmp_path) for _ in range(2)]
    found = [finish(process) for process in together]
    assert [(spikes, backend) for spikes, _, backend in found] == [(SPIKES, "named backend ran")] * 2
    assert "compiled 2" in [compiled for _, compiled, _ in found]  # the probe and the kernel
    left = sorted(p.suffix for p in (tmp_path / "cpu").iterdir())
    assert left == [".sha256", ".sha256", ".so", ".so"], "scratch files were left behind"
    assert finish(start(tmp_path)) == [SPIKES, "compiled 0", "named backend ran"]


def test_a_machine_without_compiler(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    spikes, compiled, warning, refusal = finish(start(tmp_path, CXX=None, PATH=str(tmp_path / "bin")))
    assert spikes == SPIKES, "the reference did not run"
    assert compiled == "compiled 0"
    for said in ("plain PyTorch (slow) on cpu", "no C++ compiler found", "apt-get install g++", "`spikeloom doctor`"):
        assert said in warning
    assert warning.startswith("warning RuntimeWarning")
    assert refusal.startswith("BackendError backend='cpu' cannot run: no C++ compiler found")
    assert "apt-get install g++" in refusal
    assert "backend='reference'" in refusal


@step(state={"v": 0.0})
def leaky(x: Any, v: Any, *, tau: Any = 2.0) -> Any:
    h = v + (x - v) / tau
    s = spike(h - 1.0)
    return s, where(detach(s), 0.0, h)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """File names of the libraries compiled in this test, which starts with an empty cache and knows no compiler yet."""
    monkeypatch.setenv("SPIKELOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(backends, "_chosen", {})
    made: list[str] = []
    compile_ = build._compile

    def watched(source: str, library: Path) -> None:
        made.append(library.name)
        compile_(source, library)

    monkeypatch.setattr(build, "_compile", watched)
    forget()
    yield made
    monkeypatch.undo()
    forget()


def forget() -> None:
    """What this process knows about compilers and kernels."""
    for known in (build.compiler, build._machine, _library):
        known.cache_clear()


def fires(times: int = 1) -> None:
    x = torch.full((4, 2, 3), 1.5)
    assert [leaky(x)[0].sum().item() for _ in range(times)] == [12.0] * times


def test_damaged_libraries_are_rebuilt(compiled: list[str], tmp_path: Path) -> None:
    def again(damage: Callable[[Path], None] | None = None) -> int:
        """Forget all kernels, damage the files of all, run, and count what was compiled."""
        for library in (tmp_path / "cache" / "cpu").glob("*.so"):
            whole = library.read_bytes()
            library.unlink()  # this process has it mapped: a new file, not the same one overwritten
            library.write_bytes(whole)
            if damage:
                damage(library)
        forget()
        backends._chosen.clear()
        compiled.clear()
        fires()
        return len(compiled)

    assert again() == 2  # the probe and the kernel
    assert again() == 0
    assert again(lambda library: library.write_bytes(library.read_bytes()[:1000])) == 2
    assert again(lambda library: library.write_bytes(library.read_bytes()[:-100] + bytes(100))) == 2
    assert again(lambda library: library.with_suffix(".sha256").unlink()) == 2
    assert again(lambda library: library.with_suffix(".sha256").write_text("")) == 2
    assert again(lambda library: library.unlink()) == 2
    assert again() == 0


def runs_without_kernels(*reasons: str) -> None:
    """The reference runs, one warning says why and what to do, and the named backend refuses with the same words."""
    with pytest.warns(RuntimeWarning, match="plain PyTorch") as caught:
        fires(3)
    assert len(caught) == 1
    with pytest.raises(backends.BackendError, match="backend='cpu' cannot run") as refused:
        leaky(torch.ones(4, 3), backend="cpu")
    for reason in (*reasons, "backend='reference'"):
        assert reason in str(refused.value)
    for reason in (*reasons, "spikeloom doctor"):
        assert reason in str(caught[0].message)


def test_a_compiler_that_is_not_there(compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    runs_without_kernels("no C++ compiler found", "apt-get install g++")


def test_a_compiler_that_does_not_even_start(compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(shutil.which("false")))
    runs_without_kernels("false", "install a working g++ or clang++")


def test_a_compiler_that_fails_on_the_kernel(
    compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "c++"
    broken.write_text(
        '#!/bin/sh\ntest "$1" = --version && exec echo broken 1.0\necho "cannot find omp.h" >&2\nexit 1\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    runs_without_kernels("cannot find omp.h", "install a working g++ or clang++ with OpenMP")
    assert list((tmp_path / "cache" / "cpu").iterdir()) == []


def test_a_cache_that_cannot_be_written(compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SPIKELOOM_CACHE", str(tmp_path / "file"))
    runs_without_kernels(str(tmp_path / "file"), "make the cache folder writeable")


def test_cache_folder_is_found_as_documented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPIKELOOM_CACHE", str(tmp_path / "a"))
    assert build.cache_dir() == tmp_path / "a"
    monkeypatch.delenv("SPIKELOOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert build.cache_dir() == tmp_path / "b" / "spikeloom"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache_dir() == Path.home() / ".cache" / "spikeloom"


def test_kernels_are_compiled_without_fast_math() -> None:
    assert "-ffp-contract=off" in build.FLAGS
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-fassociative-math"} & set(build.FLAGS)
