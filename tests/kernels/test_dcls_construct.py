"""DCLS kernels built in one pass: the operator, and its CUDA kernels on the CPU, on a GPU, and through nvcc."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from spikeloom.kernels import backends
from spikeloom.kernels.cpu import build
from spikeloom.kernels.dcls import construct, cuda, op, reference, serves

NVCC = shutil.which("nvcc")
SHIM = Path(__file__).with_name("cuda_on_cpu.h").read_text()
DRIVER = """
extern "C" void start_NAME(const void* a, unsigned b, unsigned t) { every_thread<Arguments>(NAME, a, b, t); }
"""
INSTRUCTIONS = {
    'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));': "y = expf(x);",
    'asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));': "y = 1 / x;",
    'asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));': "f = (float)::bits<_Float16>(v.bits);",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"((float)v));': "to.bits = ::bits<unsigned short>((_Float16)v);",
}
KERNELS = ("dcls_construct", "dcls_gradients")
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Of a kernel, relative to its largest entry; of gradients, `GRADIENT`, as those of P are differences of sums."""
GRADIENT = 2e-5
SHAPES = [(3, 5, 2, 7), (2, 4, 1, 31), (4, 3, 3, 6), (1, 1, 1, 3), (130, 9, 2, 9)]
"""O, I, c, K: odd and even kernels, one pair, more pairs than a block has threads."""


class OnCpu:
    """Stands in for `launch.Kernel`."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        for asm, plain in INSTRUCTIONS.items():
            assert source.count(asm) == 1
            source = source.replace(asm, plain)
        library = build.load(SHIM + source + "".join(DRIVER.replace("NAME", n) for n in KERNELS))
        self.start, self.grid, self.struct = library[f"start_{name}"], (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, nan_memory: None) -> None:
    """CPU tensors go to the CUDA kernels; what these leave unwritten is NaN."""
    monkeypatch.setattr(cuda, "Kernel", OnCpu)
    monkeypatch.setattr(cuda, "_kernel", cuda._kernel.__wrapped__)


def elements(version: str, O: int, I: int, c: int, K: int) -> tuple[Tensor, Tensor, Tensor | None]:  # noqa: E741
    """Weights, positions (whole ones, halves, borders, outside) and widths (0, negative, wide), float64."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(O, I, c, generator=generator, dtype=torch.float64)
    P = (torch.rand(1, O, I, c, generator=generator, dtype=torch.float64) - 0.5) * (K + 2)
    P = torch.where(torch.rand(P.shape, generator=generator) < 0.5, P, (2 * P).round() / 2)
    SIG = torch.randn(P.shape, generator=generator, dtype=torch.float64)
    SIG[..., :1] *= 4
    SIG[0, 0] = 0
    # what float32 holds exactly, so that every type has the same kinks
    weight, P, SIG = (t.float().double() for t in (weight, P, SIG))
    return weight, P, SIG if version in reference.WIDTHS else None


def cotangent(O: int, I: int, K: int) -> Tensor:  # noqa: E741
    return torch.randn(O, K, I, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def exact(given: Sequence[Tensor | None], size: int, version: str, grad: Tensor) -> list[Tensor | None]:
    """The kernel and its gradients by autograd of the formulas in float64."""
    leaves = [None if t is None else t.clone().requires_grad_() for t in given]
    assert leaves[0] is not None
    assert leaves[1] is not None
    kernel = reference.construct(leaves[0], leaves[1], leaves[2], size, version)
    kernel.backward(grad)
    return [kernel.detach(), *(None if t is None else t.grad for t in leaves)]


def same(got: Tensor | None, wanted: Tensor | None, rounding: float) -> None:
    assert (got is None) == (wanted is None)
    if got is None or wanted is None:
        return
    assert got.shape == wanted.shape
    scale = float(wanted.abs().max()) or 1.0
    error = float((got.detach().cpu().double() - wanted).abs().max()) / scale
    assert error <= rounding, error


def single(given: Sequence[Tensor | None], device: str = "cpu") -> list[Any]:
    return [None if t is None else t.to(device, torch.float32) for t in given]


@pytest.mark.parametrize("version", reference.VERSIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_written_out_are_those_of_the_formulas(version: str, shape: tuple[int, int, int, int]) -> None:
    O, I, _, K = shape  # noqa: E741
    given, grad = elements(version, *shape), cotangent(O, I, K)
    wanted = exact(given, K, version, grad)
    same(reference.construct_in_parts(*given, K, version), wanted[0], 1e-15)
    for got, one in zip(reference.gradients(grad, *given, K, version), wanted[1:], strict=True):
        same(got, one, 1e-12)


def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    given, grad = elements("gauss", 7, 3, 2, 5), cotangent(7, 3, 5)
    wanted = exact(given, 5, "gauss", grad)
    monkeypatch.setattr(reference, "_AT_ONCE", 2 * 3 * 2 * 5)  # of the 7 channels: 2, 2, 2, 1
    same(reference.construct_in_parts(*given, 5, "gauss"), wanted[0], 1e-15)
    for got, one in zip(reference.gradients(grad, *given, 5, "gauss"), wanted[1:], strict=True):
        same(got, one, 1e-12)


@pytest.mark.parametrize("version", reference.VERSIONS)
def test_the_kernels_on_the_cpu(emulated: None, version: str) -> None:
    for shape in SHAPES:
        O, I, _, K = shape  # noqa: E741
        given, grad = elements(version, *shape), cotangent(O, I, K).float().double()
        wanted = exact(given, K, version, grad)
        held = single(given)
        same(cuda.construct(*held, K, version, torch.float32), wanted[0], ROUNDING[torch.float32])
        found = cuda.gradients(grad.float(), *held, version, "11" + "01"[held[2] is not None])
        for got, one in zip(found, wanted[1:], strict=True):
            same(got, one, GRADIENT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_kernel_is_the_float_one_rounded(emulated: None, dtype: torch.dtype) -> None:
    given, grad = elements("gauss", 3, 5, 2, 7), cotangent(3, 5, 7).to(dtype)
    held = single(given)
    whole = cuda.construct(*held, 7, "gauss", torch.float32)
    assert torch.equal(cuda.construct(*held, 7, "gauss", dtype), whole.to(dtype))
    found, wanted = (cuda.gradients(g, *held, "gauss", "111") for g in (grad, grad.float()))
    for got, one in zip(found, wanted, strict=True):
        assert got is not None
        assert one is not None
        assert torch.equal(got, one)


def test_only_what_is_wanted_is_written(emulated: None) -> None:
    given, grad = single(elements("gauss", 3, 5, 2, 7)), cotangent(3, 5, 7).float()
    every = cuda.gradients(grad, *given, "gauss", "111")
    for wanted in ("100", "010", "001", "110"):
        found = cuda.gradients(grad, *given, "gauss", wanted)
        for got, one, w in zip(found, every, wanted, strict=True):
            assert (got is not None) == (w == "1")
            if got is not None and one is not None:
                assert torch.equal(got, one)


@pytest.mark.parametrize("version", ["v1", "max"])
def test_whole_positions_learn_nothing_and_have_one_tap(emulated: None, version: str) -> None:
    weight = torch.randn(2, 3, 1, generator=torch.Generator().manual_seed(2))
    P = torch.tensor([[-3.0, 0, 3], [1, 2, -1]]).view(1, 2, 3, 1)
    SIG = torch.zeros_like(P) if version == "max" else None
    kernel = cuda.construct(weight, P, SIG, 7, version, torch.float32)
    assert torch.equal(kernel, reference.construct_in_parts(weight, P, SIG, 7, version))
    assert torch.equal((kernel != 0).sum(1), torch.ones(2, 3, dtype=torch.long))
    of_weight, of_p, _ = cuda.gradients(torch.randn(2, 7, 3), weight, P, SIG, version, "110")
    assert of_weight is not None
    assert of_p is not None
    assert bool(of_weight.all())
    assert not of_p.any()


def op_arguments(version: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Any, ...]:
    given = single(elements(version, 3, 4, 2, 5), device)
    for t in given:
        if t is not None:
            t.requires_grad_()
    return (*given, 5, version, dtype)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("version", ["v0", "gauss"])
def test_opcheck(device: str, version: str) -> None:
    opcheck(torch.ops.spikeloom.dcls_construct.default, op_arguments(version, torch.float32, device))
    given = [None if t is None else t.detach() for t in op_arguments(version, torch.float32, device)[:3]]
    wanted = "11" + "01"[given[2] is not None]
    grad = cotangent(3, 4, 5).float().to(device)
    opcheck(torch.ops.spikeloom.dcls_construct_backward.default, (grad, *given, 5, version, wanted))
    opcheck(torch.ops.spikeloom.dcls_construct_backward.default, (grad, *given, 5, version, "010"))


@pytest.mark.parametrize("version", reference.VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator(device: str, version: str, dtype: torch.dtype) -> None:
    shape = (70, 40, 2, 31)
    given, grad = elements(version, *shape), cotangent(70, 40, 31).to(dtype).double()
    wanted = exact(given, 31, version, grad)
    leaves = [None if t is None else t.requires_grad_() for t in single(given, device)]
    assert leaves[0] is not None
    assert leaves[1] is not None
    kernel = construct(leaves[0], leaves[1], leaves[2], 31, version, dtype)
    assert kernel.dtype == dtype
    assert kernel.is_contiguous()
    kernel.backward(grad.to(device, dtype))
    same(kernel, wanted[0], ROUNDING[dtype])
    for leaf, one in zip(leaves, wanted[1:], strict=True):
        same(None if leaf is None else leaf.grad, one, GRADIENT)


def test_the_operator_keeps_parameters_alone_and_asks_for_what_is_needed(device: str) -> None:
    kept: list[Tensor] = []
    weight, P, SIG, *rest = op_arguments("gauss", torch.float32, device)
    SIG.requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        kernel = construct(weight, P, SIG, *rest)
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in (weight, P, SIG)}
    kernel.square().sum().backward()
    assert weight.grad is not None
    assert P.grad is not None
    assert SIG.grad is None


def test_a_second_derivative_is_that_of_the_formulas(device: str) -> None:
    found = []
    for build_kernel in (lambda w, P, s: construct(w, P, s, 5, "gauss", torch.float32), plain):
        leaves = op_arguments("gauss", torch.float32, device)[:3]
        first = torch.autograd.grad(build_kernel(*leaves).pow(3).sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def plain(weight: Tensor, P: Tensor, SIG: Tensor) -> Tensor:
    return reference.construct(weight, P, SIG, 5, "gauss")


def test_what_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, P, SIG = single(elements("gauss", 3, 4, 2, 5))
    assert serves(weight, P, SIG)
    assert serves(weight, P, None)
    assert not serves(weight.double(), P.double(), SIG.double())
    assert not serves(weight, P.double(), SIG)
    assert not serves(weight.to("meta"), P.to("meta"), None)
    monkeypatch.setattr(op, "dispatched", lambda: True)
    assert not serves(weight, P, SIG)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("version", reference.VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_source_compiles_without_spilling(tmp_path: Path, dtype: torch.dtype, version: str) -> None:
    code = tmp_path / "code.cu"
    code.write_text(cuda.source(dtype, version, 2))
    command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, "--diag-suppress=177", "-o", "/dev/null", str(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    assert done.stderr.count("0 bytes spill stores") == 2, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("version", reference.VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_kernels_on_a_gpu(dtype: torch.dtype, version: str) -> None:
    assert backends.choose("auto", "cuda") == "cuda"
    for shape in (*SHAPES, (64, 140, 2, 31), (35, 70, 1, 25), (8, 16, 5, 15)):
        O, I, _, K = shape  # noqa: E741
        given, grad = elements(version, *shape), cotangent(O, I, K).to(dtype).double()
        wanted = exact(given, K, version, grad)
        held = single(given, "cuda")
        assert serves(*held)
        same(cuda.construct(*held, K, version, dtype), wanted[0], ROUNDING[dtype])
        mask = "11" + "01"[held[2] is not None]
        found, again = (cuda.gradients(grad.to("cuda", dtype), *held, version, mask) for _ in range(2))
        for got, repeated, one in zip(found, again, wanted[1:], strict=True):
            same(got, one, GRADIENT)
            assert got is repeated is None or torch.equal(got, repeated)  # type: ignore[arg-type]


@pytest.mark.gpu
def test_a_cuda_graph_follows_its_parameters() -> None:
    weight, P, SIG = single(elements("gauss", 64, 32, 2, 15), "cuda")
    leaves = [t.requires_grad_() for t in (weight, P, SIG)]
    grad = cotangent(64, 32, 15).float().cuda()

    def step(leaves: list[Tensor]) -> list[Tensor]:
        kernel = construct(*leaves, 15, "gauss", torch.float32)
        return [kernel, *torch.autograd.grad(kernel, leaves, grad)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(leaves)
    with torch.no_grad():
        for leaf in leaves:
            leaf.add_(0.25)
    graph.replay()
    others = [leaf.detach().requires_grad_() for leaf in leaves]  # of this stream, not of the capture's
    for got, wanted in zip(captured, step(others), strict=True):
        assert torch.equal(got, wanted)
