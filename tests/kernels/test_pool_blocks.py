"""Gradients of max pooling by 2 x 2 pixels: the same bits as one pixel at a time, on the CPU and on a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.kernels import test_norm_pool as one_pass
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels.norm_pool import fused, trained

max_pool = import_module("spikeloom.kernels.pool.max_pool")  # the package exports a function of this name
NVCC = shutil.which("nvcc")
WINDOW = (3, 2, 1)
SIZES = ((8, 10), (7, 10), (8, 9), (7, 9), (1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (1, 7), (6, 1))
CASES = (  # channels in whole vectors, in half vectors, one by one
    (torch.bfloat16, 16),
    (torch.bfloat16, 12),
    (torch.bfloat16, 5),
    (torch.float32, 16),
    (torch.float32, 5),
    (torch.float16, 16),
)
BITS = {2: torch.int16, 4: torch.int32}
CACHED = (fused._kernel, fused.source, max_pool._kernel)


def forget() -> None:
    """Kernels and sources that were made for the other way."""
    for cached in CACHED:
        cached.cache_clear()


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels on the CPU; of `norm_pool` with few threads, so that every thread handles several blocks."""
    monkeypatch.setattr(max_pool, "Kernel", Pool)
    monkeypatch.setattr(fused, "Kernel", one_pass.OnCpu)
    monkeypatch.setattr(fused, "statistics", one_pass.statistics)
    monkeypatch.setattr(fused.finish, "backward_cuda", one_pass.finished)
    monkeypatch.setattr(fused, "_processors", lambda device: 1)
    monkeypatch.setattr(fused, "_THREADS", dict.fromkeys(one_pass.KERNELS, 32))
    monkeypatch.setattr(fused, "_BLOCKS", dict.fromkeys(one_pass.KERNELS, 1))
    forget()
    yield
    forget()


class Pool(one_pass.OnCpu):
    """Stands in for `launch.Kernel` in `kernels.pool`."""

    kernels = ("pool", "unpool")


def frames(dtype: torch.dtype, channels: int, size: tuple[int, int]) -> Tensor:
    """Maps with peaks, each the maximum of every window that holds it."""
    y = torch.randn((3, channels, *size), generator=torch.Generator().manual_seed(sum(size)))
    y[:, :, 1::4, 1::4] += 6
    return y.to(dtype).contiguous(memory_format=torch.channels_last)


def by_pool(y: Tensor) -> Tensor:
    return max_pool.max_pool(y, *WINDOW)


def by_norm_pool(y: Tensor) -> Tensor:
    weight, bias = one_pass.affine(y.shape[1])
    device = y.device
    running = one_pass.Running(*(t.to(device) for t in one_pass.fresh(y.shape[1])[:3]), 0.1)
    return trained(y, 1, weight.abs().to(device), bias.to(device), 1e-5, running, WINDOW)


def gradient(y: Tensor, pooled_by: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = y.detach().requires_grad_()
    pooled = pooled_by(leaf)
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(3))
    grad[:, ::2] = torch.where(grad[:, ::2] > 0.5, -0.0, grad[:, ::2])
    (found,) = torch.autograd.grad(pooled, leaf, grad.to(y.device, y.dtype))
    assert found.is_contiguous(memory_format=torch.channels_last)
    return found


def both(monkeypatch: pytest.MonkeyPatch, y: Tensor, pooled_by: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient by blocks and by single pixels."""
    blocks = gradient(y, pooled_by)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "BLOCKED", None)
        patch.setattr(max_pool, "BLOCKED", None)
        forget()
        singles = gradient(y, pooled_by)
    forget()
    return blocks, singles


@pytest.mark.parametrize("pooled_by", [by_pool, by_norm_pool])
@pytest.mark.parametrize(("dtype", "channels"), CASES, ids=str)
def test_blocks_and_single_pixels_agree_bit_by_bit(
    emulated: None,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    channels: int,
    pooled_by: Callable[[Tensor], Tensor],
) -> None:
    for size in SIZES:
        blocks, singles = both(monkeypatch, frames(dtype, channels, size), pooled_by)
        bits = BITS[dtype.itemsize]
        assert torch.equal(blocks.view(bits), singles.view(bits)), size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_peaks_are_torchs(emulated: None, dtype: torch.dtype) -> None:
    """A peak in four windows gets the sum of their four gradients."""
    for size in SIZES:
        y = frames(dtype, 4, size)
        expected = gradient(y.double(), lambda leaf: F.max_pool2d(leaf, *WINDOW))
        torch.testing.assert_close(gradient(y, by_pool).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooled_by", [by_pool, by_norm_pool])
def test_lanes_counted_in_64_bits(
    emulated: None, monkeypatch: pytest.MonkeyPatch, pooled_by: Callable[[Tensor], Tensor]
) -> None:
    y = frames(torch.float32, 8, (7, 10))
    narrow = gradient(y, pooled_by)
    for module in (fused, max_pool):
        source = module.source
        monkeypatch.setattr(module, "source", lambda *given, source=source: source(*given[:3], True))
        module._kernel.cache_clear()
    assert torch.equal(gradient(y, pooled_by), narrow)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("vector", [8, 1])
def test_blocks_compile_into_few_registers(tmp_path: Path, vector: int, wide: bool) -> None:
    """Five blocks of 128 threads of `norm_pool_grad` fit, and four of 256 of `unpool`."""
    for module, name, most in ((fused, "norm_pool_grad", 96), (max_pool, "unpool", 64)):
        text: Any = module.source("bfloat16", vector, WINDOW, wide)
        code = tmp_path / "code.cu"
        code.write_text(text)
        command = [str(NVCC), *one_pass.NVCC_FLAGS, "-o", "/dev/null", str(code)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr, done.stderr
        used = re.search(
            rf"function '{name}'.*?(\d+) bytes spill stores.*?Used (\d+) registers", done.stderr, re.DOTALL
        )
        assert used is not None, done.stderr
        assert used[1] == "0"
        assert int(used[2]) <= most


@pytest.mark.gpu
@pytest.mark.parametrize("pooled_by", [by_pool, by_norm_pool])
@pytest.mark.parametrize(("dtype", "channels"), CASES, ids=str)
def test_blocks_and_single_pixels_agree_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, channels: int, pooled_by: Callable[[Tensor], Tensor]
) -> None:
    for size in (*SIZES, (32, 32), (57, 30)):
        y = frames(dtype, channels, size).cuda()
        blocks, singles = both(monkeypatch, y, pooled_by)
        bits = BITS[dtype.itemsize]
        assert torch.equal(blocks.view(bits), singles.view(bits)), size
