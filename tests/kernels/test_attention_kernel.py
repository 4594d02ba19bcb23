"""s Q (K^T V) on tensor cores: the CUDA kernels on the CPU, warp by warp, on a GPU, and through nvcc."""

from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.kernels.attention import keys_first_product, product, takes
from spikeloom.kernels.cpu import build
from spikeloom.spiking_attention import products

DTYPES = (torch.bfloat16, torch.float16)
NVCC = shutil.which("nvcc")
SHIM = "".join(Path(__file__).with_name(name).read_text() for name in ("cuda_on_cpu.h", "cuda_warps_on_cpu.h"))
INSTRUCTIONS = (
    (r'asm\("cvt[^;]*;[^;]*;', "word = nearest_pair(TYPE, second, first);"),
    (r"asm volatile\([^;]*mma[^;]*;[^;]*;", "mma(TYPE, c, a, b0, b1);"),
)
"""What stands in for the two instructions that the source spells out."""


class OnCpu:
    """Stands in for `launch.Kernel`."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        for pattern, call in INSTRUCTIONS:
            source, found = re.subn(pattern, call, source)
            assert found == 1
        for kernel in re.findall(r'extern "C" __global__ .* (\w+)\(const Arguments a\)', source):
            run = f"run_{kernel}(const void* a) {{ {kernel}(*static_cast<const Arguments*>(a)); }}"
            start = f"start_{kernel}(const void* a, unsigned b, unsigned t) {{ every_warp(run_{kernel}, a, b, t); }}"
            source += f'static void {run}\nextern "C" void {start}\n'
        self.start = build.load(SHIM + source)[f"start_{name}"]
        self.grid, self.struct = (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(product, "Kernel", OnCpu)
    product._kernel.cache_clear()
    yield
    product._kernel.cache_clear()


def spikes(T: int, B: int, N: int, heads: int, d: int, density: float, dtype: torch.dtype) -> Tensor:
    """Q, K and V side by side; some zeros are negative, which are no spikes either."""
    shape = (T, B, N, 3 * heads * d)
    x = (torch.rand(shape, generator=torch.Generator().manual_seed(N + d)) < density).to(dtype)
    return torch.where((x == 0) & (torch.arange(shape[3]) % 3 == 0), -x, x)


def split(x: Tensor, heads: int) -> Tensor:
    return x.double().cpu().unflatten(3, (heads, -1)).transpose(2, 3)


def merge(x: Tensor) -> Tensor:
    return x.transpose(2, 3).flatten(3)


def check(qkv: Tensor, heads: int, scale: float = 0.125) -> None:
    """Product and gradient against float64, with the matrices rounded where the kernels round them.

    All sums of the product are whole multiples of s below 2^24 s, so it has to agree to the last bit.
    """
    dtype = qkv.dtype
    q, k, v = (split(part, heads) for part in qkv.chunk(3, dim=3))
    middle = (k.transpose(-1, -2) @ v * scale).to(dtype).double()
    leaf = qkv.clone().requires_grad_()
    y = keys_first_product(leaf, heads, scale)
    expected = merge(q @ middle).to(dtype)
    assert torch.equal(y.cpu(), expected)
    assert torch.equal(keys_first_product(qkv, heads, scale), y)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    y.backward(grad.to(y.device))
    g = split(grad, heads)
    of_middle = q.transpose(-1, -2) @ g * scale
    stored = of_middle.to(dtype).double()
    wanted = [g @ middle.transpose(-1, -2), v @ stored.transpose(-1, -2), k @ stored]
    # a sum next to the border of two numbers may round to the other, and float32 rounds the sums themselves
    step, tiny = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype], 2**-20
    loose = step * of_middle.abs() + tiny * scale * (q.transpose(-1, -2) @ g.abs())
    slack = [tiny * (g.abs() @ middle.transpose(-1, -2)), v @ loose.transpose(-1, -2), k @ loose]
    assert leaf.grad is not None
    for got, want, extra in zip(leaf.grad.chunk(3, dim=3), wanted, slack, strict=True):
        error = (split(got, heads) - want).abs()
        assert (error <= step * 1.01 * want.abs() + extra + 1e-5).all()
        assert error.square().mean() <= step**2 * want.square().mean() + 1e-10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("N", "heads", "d", "density"),
    [(1, 2, 16, 0.9), (17, 2, 32, 0.4), (64, 1, 48, 0.2), (37, 2, 64, 0.5), (70, 1, 64, 1.0), (20, 1, 96, 0.4)],
)
def test_the_kernels_on_the_cpu(on_cpu: None, N: int, heads: int, d: int, density: float, dtype: torch.dtype) -> None:
    check(spikes(1, 2 if d < 48 else 1, N, heads, d, density, dtype), heads)


def test_the_widest_heads_on_the_cpu(on_cpu: None) -> None:
    check(spikes(1, 1, 19, 1, 128, 0.4, torch.bfloat16), 1, 0.25)


def test_what_backward_keeps_on_the_cpu(on_cpu: None) -> None:
    T, B, N, heads, d = 2, 1, 21, 2, 32
    qkv = spikes(T, B, N, heads, d, 0.4, torch.bfloat16)
    y = keys_first_product(qkv.requires_grad_(), heads, 0.125)
    bits, middle = y.grad_fn.saved_tensors  # type: ignore[union-attr]
    rows = torch.stack([split(part.detach(), heads).flatten(0, 2) for part in qkv.chunk(3, dim=3)], 1)
    ones = (bits[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    assert torch.equal(ones.flatten(3).double(), rows.abs())
    assert torch.equal(middle.double(), (rows[:, 1].transpose(1, 2) @ rows[:, 2]) * 0.125)


def test_a_gradient_that_lies_elsewhere(on_cpu: None) -> None:
    """Expanded and misaligned gradients come to the kernel as it reads them."""
    qkv = spikes(1, 1, 18, 1, 16, 0.5, torch.bfloat16).requires_grad_()
    y = keys_first_product(qkv, 1, 0.5)
    (expanded,) = torch.autograd.grad(y.sum(), qkv, retain_graph=True)
    odd = torch.ones(y.numel() + 1, dtype=y.dtype)[1:].view(y.shape)
    assert torch.equal(torch.autograd.grad(y, qkv, odd, retain_graph=True)[0], expanded)
    assert torch.equal(torch.autograd.grad(y, qkv, torch.ones_like(y), retain_graph=True)[0], expanded)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), qkv, create_graph=True)


def test_mix_takes_the_kernel_where_it_serves(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = spikes(1, 2, 40, 2, 16, 0.3, torch.bfloat16)
    plain = {order: products.mix(qkv, 2, 0.125, order) for order in products.ORDERS}
    calls: list[float] = []

    def counted(qkv: Tensor, num_heads: int, scale: float) -> Tensor:
        calls.append(scale)
        return keys_first_product(qkv, num_heads, scale)

    monkeypatch.setattr(products, "takes", lambda qkv, num_heads: True)
    monkeypatch.setattr(products, "keys_first_product", counted)
    for order, expected in plain.items():
        got = products.mix(qkv, 2, 0.125, order)
        assert got.shape == (1, 2, 40, 32)
        assert torch.equal(got, expected)
    assert calls == [0.125] * 2  # not with the other order
    products.mix(qkv, 2, 0.3)
    assert len(calls) == 2  # nor with a factor that is no power of two


class Gpu(torch.Tensor):
    is_cuda = True


def test_where_the_kernel_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_has_tensor_cores", lambda device: True)
    monkeypatch.setattr(product, "choose", lambda backend, device: "cuda")
    monkeypatch.setattr(product, "is_plain", lambda x: True)

    def serves(*shape: int, heads: int = 2, dtype: torch.dtype = torch.bfloat16) -> bool:
        return takes(torch.zeros(shape, dtype=dtype).as_subclass(Gpu), heads)

    assert serves(1, 1, 20, 96)
    assert serves(1, 1, 20, 768)  # d = 128
    assert not serves(1, 1, 20, 864)  # d = 144
    assert not serves(1, 1, 20, 144)  # d = 24
    assert not serves(0, 1, 20, 96)
    assert not serves(1, 1, 20, 96, dtype=torch.float32)
    assert not takes(torch.zeros(1, 1, 96, 20, dtype=torch.bfloat16).transpose(2, 3).as_subclass(Gpu), 2)
    assert not takes(torch.zeros(97, dtype=torch.bfloat16)[1:].view(1, 1, 1, 96).as_subclass(Gpu), 2)
    assert not takes(torch.zeros(1, 1, 20, 96, dtype=torch.bfloat16), 2)
    monkeypatch.setattr(product, "_has_tensor_cores", lambda device: False)
    assert not serves(1, 1, 20, 96)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [16, 32, 48, 64, 96, 112, 128])
@pytest.mark.parametrize("N", [1, 17, 64, 196, 256])
def test_the_kernels_on_a_gpu(N: int, d: int, dtype: torch.dtype) -> None:
    for heads, density in ((1, 0.1), (3, 0.5), (8, 0.9)):
        qkv = spikes(2, 3, N, heads, d, density, dtype).cuda()
        assert takes(qkv, heads)
        check(qkv, heads)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_is_the_plain_path_on_a_gpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    qkv = spikes(4, 8, 196, 6, 64, 0.2, dtype).cuda()
    grad = torch.randn(4, 8, 196, 384, generator=torch.Generator().manual_seed(0)).to("cuda", dtype)
    found = []
    for serves in (True, True, False):
        if not serves:
            monkeypatch.setattr(products, "takes", lambda qkv, num_heads: False)
        leaf = qkv.clone().requires_grad_()
        y = products.mix(leaf, 6, 0.125)
        y.backward(grad)
        assert leaf.grad is not None
        found.append((y.detach(), leaf.grad.float()))
        with torch.no_grad():
            assert torch.equal(products.mix(qkv, 6, 0.125), y)
    (y, of_x), again, (plain_y, plain_of_x) = found
    assert torch.equal(y, plain_y)
    assert torch.equal(y, again[0])
    assert torch.equal(of_x, again[1])
    torch.testing.assert_close(of_x, plain_of_x, rtol=2**-6, atol=2**-7 * plain_of_x.abs().max().item())


@pytest.mark.gpu
def test_what_backward_keeps_on_a_gpu() -> None:
    """One bit per spike, and a [d, d] matrix per head."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    qkv = spikes(2, 4, 196, 4, 32, 0.3, torch.bfloat16).cuda().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        products.mix(qkv, 4, 0.125)
    assert sum(kept.values()) == qkv.numel() // 8 + 2 * 4 * 4 * 32 * 32 * 2


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("d", [48, 64, 128])
def test_the_source_compiles_without_spilling(tmp_path: Path, d: int) -> None:
    code = tmp_path / "code.cu"
    code.write_text(product.source(d, torch.float16 if d == 48 else torch.bfloat16))
    command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v", "--diag-suppress=177"]
    done = subprocess.run([*command, "-o", "/dev/null", str(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    assert done.stderr.count("0 bytes spill stores, 0 bytes spill loads") == 3, done.stderr
