"""Causal depthwise convolution: the definition, and the CUDA kernels on the CPU, on a GPU, and through nvcc."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.kernels.test_selective_scan_kernel import INSTRUCTIONS, NVCC, SHIM, SHUFFLES
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels.cpu import build
from spikeloom.kernels.scan import causal_conv1d, convolution

KERNELS = ("conv_forward", "conv_backward")
DRIVER = """
extern "C" void start_NAME(const void* a, unsigned b, unsigned t) {
    every_warp([](const void* p) { NAME(*static_cast<const Arguments*>(p)); }, a, b, t);
}
"""
UNUSED = 'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));'
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
CASES = [(1, 1, 1, 1, 0), (2, 3, 21, 4, 0), (2, 3, 2, 4, 0), (1, 2, 600, 4, 4), (2, 2, 513, 3, 2), (1, 2, 40, 1, 2)]
"""b, d, L, W, reversed rows; some rows reversed: two rows per channel."""


class OnCpu:
    """Stands in for `launch.Kernel`."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        for asm, plain in INSTRUCTIONS.items():
            assert source.count(asm) == (asm != UNUSED)
            source = source.replace(asm, plain)
        text = SHIM + SHUFFLES + source + "".join(DRIVER.replace("NAME", n) for n in KERNELS)
        self.start, self.grid, self.struct = build.load(text)[f"start_{name}"], (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, nan_memory: None) -> Iterator[None]:
    """The kernels on the CPU, in double precision for double inputs; what they leave unwritten is NaN."""
    monkeypatch.setattr(convolution, "Kernel", OnCpu)
    convolution._kernel.cache_clear()
    yield
    convolution._kernel.cache_clear()


def given(case: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    b, d, L, W, reverse = case
    g = torch.Generator().manual_seed(sum(case))
    rows = 2 * d if reverse else d
    x, weight, bias = (
        torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((b, d, L), (rows, W), (rows,))
    )
    real = torch.float64 if dtype == torch.float64 else torch.float32
    return [x.to(dtype), weight.to(real), bias.to(real)]


def found(run: Any, tensors: Sequence[Tensor]) -> list[Tensor]:
    """y and the gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = run(*leaves)
    g = torch.Generator().manual_seed(5)
    cotangent = torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.device, y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]


def agree(ours: Sequence[Tensor], expected: Sequence[Tensor], allowed: float) -> None:
    for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
        assert (a.cpu().double() - b.double()).abs().max().item() <= allowed * max(1.0, b.abs().max().item()), i


@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_definition(case: tuple[int, ...], silu: bool) -> None:
    tensors, (_, d, L, W, reverse) = given(case, torch.float64), case
    activation = "silu" if silu else None

    def spelt(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rows = []
        for r in range(len(weight)):
            way = -1 if r >= len(weight) - reverse else 1
            of = x[:, r % d].flip(-1) if way < 0 else x[:, r % d]
            padded = F.pad(of, (W - 1, 0))
            y = bias[r] + sum(weight[r, k] * padded[:, k : k + L] for k in range(W))
            rows.append(y.flip(-1) if way < 0 else y)
        y = torch.stack(rows, 1)
        return F.silu(y) if silu else y

    ours = found(lambda *t: causal_conv1d(*t, activation, reversed_channels=reverse), tensors)
    agree(ours, found(spelt, tensors), 1e-12)


@pytest.mark.parametrize("silu", [False, True], ids=["plain", "silu"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_are_the_definition(
    emulated: None, monkeypatch: pytest.MonkeyPatch, case: tuple[int, ...], silu: bool
) -> None:
    monkeypatch.setattr(convolution, "_REAL", torch.float64)
    tensors, activation = given(case, torch.float64), "silu" if silu else None
    ours = found(lambda *t: convolution.convolve(*t, silu, case[4]), tensors)
    agree(ours, found(lambda *t: causal_conv1d(*t, activation, reversed_channels=case[4]), tensors), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_storage_types(emulated: None, dtype: torch.dtype) -> None:
    tensors = given((2, 2, 70, 4, 2), dtype)
    exact = [t.double() for t in tensors]
    expected = found(lambda *t: causal_conv1d(*t, "silu", reversed_channels=2), exact)
    for ours in (
        found(lambda *t: convolution.convolve(*t, True, 2), tensors),
        found(lambda *t: causal_conv1d(*t, "silu", reversed_channels=2), tensors),
    ):
        assert [t.dtype for t in ours] == [dtype, *(t.dtype for t in tensors)]
        agree(ours, expected, 4 * TOLERANCES[dtype])


def test_only_wanted_gradients(emulated: None) -> None:
    tensors = given((2, 3, 30, 4, 0), torch.float32)
    whole = found(lambda *t: convolution.convolve(*t, True, 0), tensors)
    cotangent = torch.randn((2, 3, 30), generator=torch.Generator().manual_seed(5), dtype=torch.float64).float()
    for i in range(3):
        leaves = [t.clone().requires_grad_(i == j) for j, t in enumerate(tensors)]
        convolution.convolve(*leaves, True, 0).backward(cotangent)
        assert [t.grad is not None for t in leaves] == [i == j for j in range(3)]
        assert torch.equal(leaves[i].grad, whole[1 + i])  # type: ignore[arg-type]
    assert convolution.convolve(tensors[0], tensors[1], None, False, 0).isfinite().all()
    x = tensors[0].requires_grad_()
    y = convolution.convolve(x, tensors[1], None, False, 0).sum()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(y, x, create_graph=True)


def test_what_does_not_fit_is_refused() -> None:
    x, weight = torch.zeros(2, 3, 5), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="L >= 1"):
        causal_conv1d(x[..., :0], weight)
    with pytest.raises(ValueError, match=r"\[d, 1, W\]"):
        causal_conv1d(x, weight.unsqueeze(1))
    with pytest.raises(ValueError, match=r"\[k d, W\]"):
        causal_conv1d(x, torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"bias \[2\]"):
        causal_conv1d(x, weight, torch.zeros(2))
    with pytest.raises(ValueError, match="'silu'"):
        causal_conv1d(x, weight, activation="relu")
    with pytest.raises(ValueError, match="last half"):
        causal_conv1d(x, weight, reversed_channels=1)
    with pytest.raises(ValueError, match="int64"):
        causal_conv1d(x.long(), weight)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_source_compiles_without_spilling(tmp_path: Path, dtype: torch.dtype) -> None:
    code = tmp_path / "code.cu"
    code.write_text(convolution.source((dtype, 4, True)))
    command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, "--diag-suppress=177", "-o", "/dev/null", str(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    assert done.stderr.count("0 bytes spill stores") == len(KERNELS), done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [*CASES, (3, 70, 2049, 4, 70)], ids=str)
def test_on_a_gpu(case: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = given(case, dtype)
    there = [t.cuda() for t in tensors]
    assert convolution.takes(*there)
    ours = found(lambda *t: causal_conv1d(*t, "silu", reversed_channels=case[4]), there)
    exact = [t.double() for t in tensors]
    agree(ours, found(lambda *t: causal_conv1d(*t, "silu", reversed_channels=case[4]), exact), 4 * TOLERANCES[dtype])
    again = found(lambda *t: causal_conv1d(*t, "silu", reversed_channels=case[4]), there)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))


def test_autocast_changes_nothing() -> None:
    tensors = given((2, 3, 21, 4, 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = causal_conv1d(*tensors, "silu", reversed_channels=3)
    assert torch.equal(y, causal_conv1d(*tensors, "silu", reversed_channels=3))
