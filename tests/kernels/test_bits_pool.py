"""Spikes as bits and the pooling that keeps a byte: the CUDA kernels on the CPU, on a GPU, and through nvcc."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels import backends
from spikeloom.kernels.bits import pack, packing, unpack
from spikeloom.kernels.cpu import build
from spikeloom.kernels.pool import max_pool, takes
from spikeloom.kernels.pool.max_pool import _MaxPool
from spikeloom.kernels.pool.max_pool import source as pool_source

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NVCC = shutil.which("nvcc")
SHIM = Path(__file__).with_name("cuda_on_cpu.h").read_text()
HALF_LOAD = ('asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));', "f = 0;")
HALF_STORE = ('asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"((float)v));', "to.bits = 0;")


class OnCpu:
    """Stands in for `launch.Kernel`."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        call = f"every_thread<Arguments>({name}, a, b, t)"
        driver = f'extern "C" void start(const void* a, unsigned b, unsigned t) {{ {call}; }}'
        text = SHIM + source.replace(*HALF_LOAD).replace(*HALF_STORE) + driver
        self.library, self.grid, self.struct = build.load(text), (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.library.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


def spikes(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) < 0.4).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000, 4099])
def test_bits_and_back(dtype: torch.dtype, count: int, device: str) -> None:
    x = spikes(count, dtype=dtype).to(device)
    bits = pack(x)
    assert bits.dtype == torch.uint8
    assert bits.numel() == -(-count // 8)
    assert torch.equal(unpack(bits, x.shape, dtype), x)
    assert (
        bits.cpu().tolist() == [sum(int(v) << i for i, v in enumerate(part)) for part in x.cpu().split(8)][: len(bits)]
    )


def test_bits_of_what_is_not_dense_are_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        pack(spikes(4, 6).t())
    with pytest.raises(ValueError, match=r"torch\.int64"):
        pack(torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 64, 1003])
def test_the_kernels_of_bits_on_the_cpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, count: int) -> None:
    monkeypatch.setattr(packing, "Kernel", OnCpu)
    packing._kernel.cache_clear()
    x = spikes(count, dtype=dtype)
    x = torch.where(x == 0, -x, x)  # minus zero is no spike
    bits, again = torch.zeros_like(pack(x)), torch.full_like(x, 5)
    packing._kernel("pack", dtype, 0, len(bits))((x.data_ptr(), bits.data_ptr(), count))
    packing._kernel("unpack", dtype, 0, len(bits))((again.data_ptr(), bits.data_ptr(), count))
    packing._kernel.cache_clear()
    assert torch.equal(bits, pack(x))
    assert torch.equal(again, x)
    assert bits.any() == x.any()


WINDOWS = [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 0)]


def maps(dtype: torch.dtype, kind: str, shape: tuple[int, ...] = (3, 12, 9, 10)) -> Tensor:
    """Channels-last maps: spikes, whose windows are full of ties, or values of both signs with NaN and infinity."""
    if kind == "spikes":
        x = spikes(*shape, dtype=dtype)
    else:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        x[0, 0, 3, 3], x[0, 1, 4, 4], x[1, :, :5, :5] = torch.nan, torch.inf, -torch.inf
    return x.contiguous(memory_format=torch.channels_last)


def agree(x: Tensor, window: tuple[int, int, int], pooled: Any) -> None:
    """Values and gradients of `pooled` are torch's."""
    ours = x.clone(memory_format=torch.preserve_format).requires_grad_()
    theirs = x.cpu().double().requires_grad_()  # on a GPU torch takes another element of a window that is all -inf
    y, expected = pooled(ours, *window), F.max_pool2d(theirs, *window)
    torch.testing.assert_close(y.cpu().double(), expected, rtol=0, atol=0, equal_nan=True)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    y.backward(grad.to(y.device))
    expected.backward(grad.double())
    assert ours.grad is not None
    once = {torch.float64: 1e-15, torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[x.dtype]
    torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, rtol=once, atol=1e-6)
    assert ours.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["spikes", "values"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_pooling_kernels_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, window: tuple[int, int, int], kind: str
) -> None:
    from importlib import import_module

    module = import_module("spikeloom.kernels.pool.max_pool")
    monkeypatch.setattr(module, "Kernel", OnCpu)
    module._kernel.cache_clear()
    for shape in ((3, 12, 9, 10), (2, 5, 8, 8)):  # channels in vectors, and one by one
        agree(maps(dtype, kind, shape), window, _MaxPool.apply)
    module._kernel.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["spikes", "values"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_pooling_kernels_on_a_gpu(dtype: torch.dtype, window: tuple[int, int, int], kind: str) -> None:
    for shape in ((3, 12, 9, 10), (2, 5, 8, 8), (4, 64, 33, 31)):
        x = maps(dtype, kind, shape).cuda()
        assert takes(x.requires_grad_(), window[0])
        agree(x.detach(), window, max_pool)


def test_pooling_serves_training_on_a_gpu_alone() -> None:
    x = maps(torch.float32, "spikes").requires_grad_()
    assert not takes(x, 3)


def test_what_torch_refuses_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu(torch.Tensor):
        is_cuda = True

    module = sys.modules["spikeloom.kernels.pool.max_pool"]
    x = maps(torch.float32, "spikes").requires_grad_().as_subclass(Gpu)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "cuda")
    assert not takes(x, 3, 1)  # a subclass
    monkeypatch.setattr(module, "is_plain", lambda t: True)
    assert takes(x, 3, 1)
    assert not takes(x, 2, 2)  # more padding than half of the window
    assert not takes(x, 12, 0)  # a window larger than the map
    assert not takes(x, 17, 0)  # more places than a byte counts
    monkeypatch.setattr(backends, "choose", lambda backend, device: "reference")  # a GPU without CuPy
    assert not takes(x, 3, 1)


def test_a_second_derivative_of_pooling_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import import_module

    module = import_module("spikeloom.kernels.pool.max_pool")
    monkeypatch.setattr(module, "_run", lambda *given: None)
    x = maps(torch.float32, "spikes").requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(max_pool(x, 3, 2, 1).sum(), x, create_graph=True)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sources_compile_without_spilling(tmp_path: Path, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    pools = (pool_source(name, 16 // dtype.itemsize, (3, 2, 1)), pool_source(name, 1, (2, 2, 0), True))
    for text in (packing.source(dtype), *pools):
        code = tmp_path / "code.cu"
        code.write_text(text)
        command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, "--diag-suppress=177", "-o", "/dev/null", str(code)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr, done.stderr
        assert done.stderr.count("0 bytes spill stores") == 2, done.stderr
