"""What the tests of the loom share: devices, memory full of NaN, and the comparison of a kernel with the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.kernels import Step

GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}
"""Largest relative error of a gradient, as a norm. float32: the derived step divides and takes exponentials quickly,
sums are added up in another order. Half types: one rounding of the stored gradient."""

CANCELLED = 50
"""How much larger the error of a parameter's gradient may be: a sum of addends of both signs."""


@dataclass
class Run:
    """What one backend made of a call: values and gradients, on the CPU."""

    outputs: list[Tensor]
    states: list[Tensor]
    gradients: dict[str, Tensor] = field(default_factory=dict)


class Loom:
    """Calls steps on `device`; every value that a call leaves unwritten shows, because fresh memory is full of NaN."""

    def __init__(self, device: str) -> None:
        self.device = device

    def run(
        self,
        step: Step,
        inputs: Sequence[Tensor],
        values: Mapping[str, Any] | None = None,
        state: Sequence[Tensor] | None = None,
        *,
        backend: str | None = None,
        backward: bool = True,
        only: int | None = None,
        ones: bool = False,
    ) -> Run:
        """Call a step and differentiate it with respect to every tensor that goes in.

        Args:
            backend: None is the compiled kernel of the device; "reference" runs on the CPU.
            only: index of the one output that gets a cotangent; None gives one to all outputs and final states.
            ones: cotangents of one instead of random ones.
        """
        device = "cpu" if backend == "reference" else self.device
        leaves: dict[str, Tensor] = {}

        def leaf(name: str, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            leaves[name] = laid_out_alike(value.detach(), device).requires_grad_(backward)
            return leaves[name]

        xs = [leaf(name, x) for name, x in zip(step.inputs, inputs, strict=True)]
        start = None if state is None else tuple(leaf(n, s) for n, s in zip(step.states, state, strict=True))
        held = {name: leaf(name, value) for name, value in (values or {}).items()}
        with nan_filled():
            outputs, states = step(*xs, state=start, backend=backend or self.device, **held)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            results = [*outputs, *states]
            if backward:
                reached = [
                    (r, g) for r, g in zip(results, cotangents(results, only, ones), strict=True) if r.requires_grad
                ]
                torch.autograd.backward([r for r, _ in reached], [g for _, g in reached])
        found = {
            n: t.grad.cpu() if t.grad is not None else torch.zeros_like(t, device="cpu") for n, t in leaves.items()
        }
        return Run([o.detach().cpu() for o in outputs], [s.detach().cpu() for s in states], found)

    def agree(
        self,
        step: Step,
        inputs: Sequence[Tensor],
        values: Mapping[str, Any] | None = None,
        state: Sequence[Tensor] | None = None,
        *,
        gradient: float | None = None,
        rounding: float = 0.0,
        **options: Any,
    ) -> tuple[Run, Run]:
        """Assert that the kernel does what the reference does on the CPU; return both runs, the reference first.

        Outputs and final states are equal bit for bit, or within `rounding` (relative and absolute) for steps with
        transcendental functions. Gradients are equal within `gradient`, the relative error of their norm.
        """
        expected = self.run(step, inputs, values, state, backend="reference", **options)
        got = self.run(step, inputs, values, state, **options)
        for one, other in zip([*expected.outputs, *expected.states], [*got.outputs, *got.states], strict=True):
            torch.testing.assert_close(other, one, rtol=rounding, atol=rounding, equal_nan=True)
        for name, one in expected.gradients.items():
            limit = GRADIENT[one.dtype] if gradient is None else gradient
            limit *= CANCELLED if name in step.defaults else 1
            assert self.distance(one, got.gradients[name]) <= limit, f"gradient of {name}"
        return expected, got

    @staticmethod
    def distance(expected: Tensor, got: Tensor) -> float:
        """Relative error of a norm; infinite where either is not finite."""
        assert expected.shape == got.shape
        assert expected.dtype == got.dtype
        if not (expected.isfinite().all() and got.isfinite().all()):
            return float("inf")
        scale = expected.double().norm().item()
        error = (got.double() - expected.double()).norm().item()
        return error / scale if scale else error


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Every test that takes this runs on the CPU, and on the GPU where there is one."""
    return str(request.param)


@pytest.fixture
def loom(device: str) -> Loom:
    """Runs steps on the device and compares them with the reference."""
    return Loom(device)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """torch's own layers are initialised the same in every run."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(2026)


@pytest.fixture
def compiled(device: str) -> Callable[[], int]:
    """How many kernels this process has built or loaded so far for the device."""
    from spikeloom.kernels.cpu.run import _library
    from spikeloom.kernels.cuda.build import function

    cache = _library if device == "cpu" else function
    return lambda: cache.cache_info().currsize


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a fresh Python, with the environment changed by keywords (None removes a variable)."""

    def run(script: str, *arguments: str, timeout: float = 120, **environment: str | None) -> Any:
        merged = {**os.environ, "OMP_NUM_THREADS": "2", **environment}
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env={k: v for k, v in merged.items() if v is not None},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@contextmanager
def nan_filled() -> Iterator[None]:
    """Inside, `torch.empty` and its relatives give NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """Fresh memory is full of NaN during the whole test."""
    with nan_filled():
        yield


def laid_out_alike(value: Tensor, device: str) -> Tensor:
    """A copy on a device with the same strides and storage offset, so that a view stays a view."""
    size = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) if value.numel() else 0
    flat = torch.zeros(value.storage_offset() + size, dtype=value.dtype, device=device)
    twin = flat.as_strided(value.shape, value.stride(), value.storage_offset())
    if value.numel():
        source = value.as_strided((size,), (1,), value.storage_offset())
        flat[value.storage_offset() :] = source.to(device)
    return twin


def cotangents(results: Sequence[Tensor], only: int | None, ones: bool) -> list[Tensor]:
    """Random gradients, the same for the same shapes; with `only`, zeros for all results but one."""
    generator = torch.Generator().manual_seed(7)
    drawn = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    drawn = [torch.ones_like(g) for g in drawn] if ones else drawn
    kept = [g if only in (None, i) else torch.zeros_like(g) for i, g in enumerate(drawn)]
    return [torch.empty_like(r).copy_(g) for r, g in zip(results, kept, strict=True)]
