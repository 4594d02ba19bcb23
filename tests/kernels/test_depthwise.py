"""Depth-wise convolution: the CUDA kernels on the CPU, on a GPU, and through nvcc, against torch in float64."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels import backends
from spikeloom.kernels.bits import pack
from spikeloom.kernels.cpu import build
from spikeloom.kernels.depthwise import convolution, convolve, depthwise, input_gradient, serves, weight_gradient
from spikeloom.kernels.depthwise.tile import LANES, choose
from spikeloom.synapses import Conv2d
from spikeloom.synapses.depthwise import DepthwiseConv2d
from spikeloom.synapses.spike_conv import spike_conv

NVCC = shutil.which("nvcc")
HALF = (torch.bfloat16, torch.float16)
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Half types: the result is rounded once. float32: sums are added up in another order."""
SHIM = "".join(Path(__file__).with_name(f"cuda_{what}on_cpu.h").read_text() for what in ("", "blocks_"))
MORE = """
#undef __launch_bounds__
#define __launch_bounds__(...)
static unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    const unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; ++i) r |= (unsigned)(both >> (8 * (s >> (4 * i) & 7)) & 255) << (8 * i);
    return r;
}
"""
HALF_LOAD = ('asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));', "f = 0;")
HALF_STORE = ('asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"((float)v));', "to.bits = 0;")


class OnCpu:
    """Stands in for `launch.Kernel`."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        assert threads <= 256
        call = f"every_block([](const void* a) {{ {name}(*(const Arguments*)a); }}, a, b, t)"
        driver = f'extern "C" void start(const void* a, unsigned b, unsigned t) {{ {call}; }}'
        self.library = build.load(SHIM + MORE + source.replace(*HALF_LOAD).replace(*HALF_STORE) + driver)
        self.grid, self.struct = (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.library.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors go to the CUDA kernels, on a device with so few multiprocessors that blocks take several tiles."""
    monkeypatch.setattr(convolution, "Kernel", OnCpu)
    monkeypatch.setattr(convolution, "_processors", lambda device: 2)
    monkeypatch.setattr(convolution, "_kernel", convolution._kernel.__wrapped__)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def spikes(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (drawn(shape, torch.float32, 3) > 0.4).to(dtype).contiguous(memory_format=torch.channels_last)


def bits_of(x: Tensor) -> Tensor:
    return pack(x.permute(0, 2, 3, 1))


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor) -> list[Tensor]:
    """Result and gradients of x, weight and bias by torch in float64 on the CPU."""
    leaves = [t.detach().cpu().double().requires_grad_() for t in (x, weight, bias) if t is not None]
    with torch.autocast("cpu", enabled=False):
        y = F.conv2d(*leaves, padding=weight.shape[-1] // 2, groups=len(weight))
    y.backward(grad.cpu().double())
    return [y.detach(), *[t.grad for t in leaves if t.grad is not None]]


def same(got: Tensor, wanted: Tensor, *, rounding: float | None = None) -> None:
    assert got.shape == wanted.shape
    rounding = ROUNDING[got.dtype] if rounding is None else rounding
    error = (got.detach().cpu().double() - wanted).norm() / wanted.norm()
    assert error <= rounding, float(error)
    # no single element is off by more than the sums' rounding, so none is in the wrong place
    torch.testing.assert_close(
        got.detach().cpu().double(), wanted, rtol=2 * rounding, atol=2e-3 * float(wanted.abs().max())
    )


SHAPES = [(2, 40, 9, 10), (1, 33, 14, 14), (3, 12, 7, 7), (1, 64, 17, 30)]
EMULATED = [
    (3, torch.float32, (1, 33, 14, 14)),
    (3, torch.bfloat16, (1, 64, 17, 30)),
    (5, torch.bfloat16, (3, 12, 7, 7)),
    (7, torch.float32, (2, 36, 9, 10)),
    (7, torch.bfloat16, (2, 40, 14, 29)),
]
"""Every one is compiled four times, which is what takes the time."""


@pytest.mark.parametrize(("kernel", "dtype", "shape"), EMULATED, ids=str)
def test_the_kernels_on_the_cpu(
    emulated: None, nan_memory: None, kernel: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    C = shape[1]
    x, grad = spikes(shape, dtype), drawn(shape, dtype, 1)
    real = drawn(shape, dtype, 4)
    weight, bias = drawn((C, 1, kernel, kernel), dtype, 2), drawn((C,), dtype, 5)
    y, of_x, of_weight, of_bias = expected(x, weight, bias, grad)
    same(convolve(x, weight, bias), y)
    same(input_gradient(grad, weight), of_x)
    dense, packed = weight_gradient(grad, x, kernel), weight_gradient(grad, bits_of(x), kernel)
    same(dense[0], of_weight)
    same(dense[1], of_bias)
    assert torch.equal(dense[0], packed[0])
    assert torch.equal(dense[1], packed[1])
    y, _, of_weight = expected(real, weight, None, grad)
    same(convolve(real, weight), y)
    same(weight_gradient(grad, real, kernel)[0], of_weight)


def test_a_layer_on_spikes_gives_the_kernels_bits(monkeypatch: pytest.MonkeyPatch, emulated: None) -> None:
    module = import_module("spikeloom.synapses.spike_conv")
    monkeypatch.setattr(module, "serves", lambda *given: True)
    shape = (1, 8, 7, 9)
    x, grad = spikes(shape, torch.float32), drawn(shape, torch.float32, 6)
    weight, bias = drawn((8, 1, 3, 3), torch.float32, 2), drawn((8,), torch.float32, 3)
    window = (1, 1), (1, 1), (1, 1), 8
    wanted = expected(x, weight, bias, grad)
    for needs in ((True, True, True), (True, False, True), (False, True, False)):
        leaves = [t.clone().requires_grad_(n) for t, n in zip((x, weight, bias), needs, strict=True)]
        y = spike_conv(*leaves, window)
        same(y, wanted[0])
        y.backward(grad)
        for leaf, gradient, need in zip(leaves, wanted[1:], needs, strict=True):
            assert (leaf.grad is not None) == need
            if leaf.grad is not None:
                same(leaf.grad, gradient)


def test_autograd_asks_only_for_what_is_needed(emulated: None) -> None:
    shape = (1, 8, 7, 9)
    x, grad = drawn(shape, torch.float32, 1), drawn(shape, torch.float32, 6)
    weight, bias = drawn((8, 1, 3, 3), torch.float32, 2), drawn((8,), torch.float32, 3)
    wanted = expected(x, weight, bias, grad)[1:]
    for needs in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        leaves = [t.clone().requires_grad_(n) for t, n in zip((x, weight, bias), needs, strict=True)]
        depthwise(*leaves).backward(grad)
        for leaf, gradient, need in zip(leaves, wanted, needs, strict=True):
            assert (leaf.grad is not None) == need
            if leaf.grad is not None:
                same(leaf.grad, gradient)


def test_a_second_derivative_is_refused(emulated: None) -> None:
    x = drawn((1, 8, 7, 9), torch.float32, 1).requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(depthwise(x, drawn((8, 1, 3, 3), torch.float32, 2), None).sum(), x, create_graph=True)


class Gpu(torch.Tensor):
    is_cuda = True


def test_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "is_plain", lambda tensor: True)
    monkeypatch.setattr(convolution, "dispatched", lambda: False)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "cuda")
    x, weight = drawn((2, 8, 9, 9), torch.float32, 1).as_subclass(Gpu), drawn((8, 1, 5, 5), torch.float32, 2)
    usual = (1, 1), (2, 2), (1, 1)
    assert serves(x, weight, None, *usual)
    assert serves(x, weight, torch.zeros(8), *usual)
    assert not serves(x, weight, None, (2, 2), (2, 2), (1, 1))
    assert not serves(x, weight, None, (1, 1), (1, 1), (1, 1))
    assert not serves(x, weight, None, (1, 1), (2, 2), (2, 2))
    assert not serves(x, weight[:, :, :3], None, *usual)
    assert not serves(x, weight.expand(8, 8, 5, 5), None, *usual)
    assert not serves(x, weight.double(), None, *usual)
    assert not serves(x, weight, torch.zeros(8, dtype=torch.bfloat16), *usual)
    assert not serves(x.contiguous(), weight, None, *usual)
    assert not serves(x.double(), weight.double(), None, *usual)
    assert not serves(x[:0], weight, None, *usual)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "reference")  # a GPU without CuPy
    assert not serves(x, weight, None, *usual)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "cuda")
    monkeypatch.setattr(convolution, "dispatched", lambda: True)
    assert not serves(x, weight, None, *usual)


def test_the_layer_elsewhere_is_torchs() -> None:
    ours, theirs = DepthwiseConv2d(6, 3), Conv2d(6, 6, 3, padding=1, groups=6)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x), theirs(x))
    assert torch.autograd.gradcheck(ours.double(), x[:1, :1].double().requires_grad_())


@pytest.mark.parametrize("kernel", [2, 0, 4])
def test_even_kernels_are_refused(kernel: int) -> None:
    with pytest.raises(ValueError, match=f"kernel={kernel}; expected an odd size"):
        DepthwiseConv2d(6, kernel)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_tiles_fit(kernel: int, itemsize: int) -> None:
    for side in (1, 7, 8, 14, 16, 28, 32, 56, 100):
        tile = choose(kernel, side, side, itemsize)
        assert tile.down * tile.across % tile.warps == 0
        assert tile.warps * LANES <= 256
        assert (tile.staged(kernel) + kernel * kernel) * LANES * itemsize <= 48 * 1024
        assert tile.staged(kernel) * itemsize >= (kernel * kernel + 1) * 4  # warps' sums take the tile's place
    for side in (7, 14, 28, 56, 8, 16, 32):
        tall, wide = choose(kernel, side, side, 2).size
        assert -(-side // tall) * tall == side
        assert -(-side // wide) * wide <= side + 2


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_sources_compile_without_spilling(tmp_path: Path, dtype: torch.dtype, kernel: int) -> None:
    name = str(dtype).removeprefix("torch.")
    side = {7: 56, 5: 28, 3: 16}[kernel]
    tile, unit = choose(kernel, side, side, dtype.itemsize), 16 // dtype.itemsize
    kinds: list[dict[str, bool]] = [{"flip": True}, {"bits": True}, {"bits": False}]
    for kind in kinds:
        code = tmp_path / "code.cu"
        code.write_text(convolution.source(name, kernel, tile, unit, **kind))
        command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v"]
        done = subprocess.run(
            [*command, "--diag-suppress=177", "-o", "/dev/null", str(code)], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr, done.stderr
        assert done.stderr.count("0 bytes spill stores") == (1 if "flip" in kind else 2), done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_the_kernels_on_a_gpu(dtype: torch.dtype, kernel: int) -> None:
    for shape in (*SHAPES, (5, 96, 56, 56), (7, 192, 28, 28), (3, 100, 31, 33)):
        C = shape[1]
        x, grad = spikes(shape, dtype).cuda(), drawn(shape, dtype, 1).cuda()
        weight, bias = drawn((C, 1, kernel, kernel), dtype, 2).cuda(), drawn((C,), dtype, 5).cuda()
        pads = (kernel // 2,) * 2
        assert serves(x, weight, bias, (1, 1), pads, (1, 1))
        y, of_x, of_weight, of_bias = expected(x, weight, bias, grad)
        same(convolve(x, weight, bias), y)
        same(input_gradient(grad, weight), of_x)
        first, again = weight_gradient(grad, x, kernel), weight_gradient(grad, bits_of(x), kernel)
        same(first[0], of_weight, rounding=max(ROUNDING[dtype], 3e-6))
        same(first[1], of_bias, rounding=max(ROUNDING[dtype], 3e-6))
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@pytest.mark.gpu
def test_the_layer_on_a_gpu_under_autocast() -> None:
    layer = DepthwiseConv2d(96, 7).cuda()
    x = torch.randn(2, 3, 96, 28, 28, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 3)).requires_grad_()
    grad = torch.randn_like(x).bfloat16()
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
    y.backward(grad)
    assert y.dtype == torch.bfloat16
    assert y[0].is_contiguous(memory_format=torch.channels_last)
    assert layer.bias is not None
    held = [t.detach().bfloat16() for t in (x.flatten(0, 1), layer.weight, layer.bias)]
    wanted = expected(held[0], held[1], held[2], grad.flatten(0, 1))
    assert x.grad is not None
    got = [y.flatten(0, 1), x.grad.flatten(0, 1), layer.weight.grad, layer.bias.grad]
    for one, other in zip(got, wanted, strict=True):
        assert one is not None
        same(one, other, rounding=2**-8)
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(layer(x), y)
