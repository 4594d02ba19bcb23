"""Kernels of whole-number delays: both walks, chunks, threads, the operator, the CUDA kernels on the CPU, errors."""

from __future__ import annotations

import copy
import ctypes
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.kernels.cpu import build
from spikeloom.kernels.delays import Tables, cuda, delayed_sum

NVCC = shutil.which("nvcc")
SHIM = (Path(__file__).parent.parent / "kernels" / "cuda_on_cpu.h").read_text()
MORE_SHIM = "#define __shared__ static\n#define __ffs __builtin_ffs\n"
HALF_LOAD = ('asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));', "f = 0;")
HALF_STORE = ('asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"((float)v));', "to.bits = 0;")
SIZES: dict[str, tuple[int, int, int, int, int]] = {  # O, I, c, groups, K
    "one": (1, 1, 1, 1, 1),
    "groups": (6, 4, 2, 2, 7),
    "tiles": (130, 70, 1, 1, 31),
    "tiles_of_groups": (132, 6, 3, 2, 5),
    "long": (5, 9, 1, 1, 200),
}


class Case:
    """Elements, inputs and what is on its way."""

    def __init__(self, size: str, dtype: torch.dtype, T: int = 23, B: int = 3) -> None:
        outputs, inputs, elements, self.groups, self.size = SIZES[size]
        random = torch.Generator().manual_seed(0)
        shape = (outputs, inputs // self.groups, elements)
        self.weight = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
        self.delay = torch.randint(0, self.size, shape, generator=random, dtype=torch.int32)
        self.bias: Tensor | None = torch.randn(outputs, generator=random, dtype=torch.float64).to(dtype)
        self.x = torch.poisson(torch.full((T, B, inputs), 0.3, dtype=torch.float64), random).to(dtype)
        self.x[1] *= -0.3  # neither zeros and ones nor counts alone
        self.pending: Tensor | None = torch.randn(self.size - 1, B, outputs, generator=random, dtype=torch.float64)
        self.pending = self.pending.to(dtype)

    def to(self, device: str) -> Case:
        moved = copy.copy(self)
        for name, value in vars(self).items():
            setattr(moved, name, value.to(device) if isinstance(value, Tensor) else value)
        return moved

    def run(self, **options: Any) -> list[Tensor]:
        x, pending = options.pop("x", self.x), options.pop("pending", self.pending)
        tables = Tables.of(self.weight, self.delay, self.size, self.groups)
        elements = self.weight, self.delay, self.bias, tables
        return delayed_sum(x, pending, *elements, size=self.size, groups=self.groups, **options)

    def expected(self, pending: Tensor | None) -> list[Tensor]:
        """As a convolution with a dense kernel."""
        kernel = self.weight.new_zeros(*self.weight.shape[:2], self.size)
        kernel.scatter_add_(2, self.size - 1 - self.delay.long(), self.weight)
        wait, T = self.size - 1, len(self.x)
        lines = nn.functional.pad(self.x, (0, 0, 0, 0, wait, wait)).permute(1, 2, 0)
        sums = nn.functional.conv1d(lines, kernel, groups=self.groups).permute(2, 0, 1).clone()
        if pending is not None:
            sums[:wait] += pending
        return [sums[:T] + (0 if self.bias is None else self.bias), sums[T:]]


def close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        tolerance = 1e-12 if theirs.dtype == torch.float64 else 2e-5
        torch.testing.assert_close(ours.cpu(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_both_walks_are_the_convolution_with_the_same_bits(size: str, dtype: torch.dtype) -> None:
    case = Case(size, dtype)
    found = case.run(form="spikes", keep=True)
    close(found, case.expected(case.pending))
    close(case.run(backend="reference", keep=True), found)
    for form in ("outputs", "auto"):
        assert all(map(torch.equal, case.run(form=form, keep=True), found)), form
    assert torch.equal(case.run()[0], found[0])
    case.bias = None
    close(case.run(form="spikes", keep=True, pending=None), case.expected(None))
    close(case.run(form="outputs", keep=True, pending=None), case.expected(None))


@pytest.mark.parametrize("form", ["spikes", "outputs", "auto"])
def test_chunks_threads_and_layouts_do_not_change_a_bit(form: str) -> None:
    case = Case("tiles", torch.float32, T=200, B=5)
    y, kept = case.run(form=form, keep=True)
    state, parts = case.pending, []
    for chunk in case.x.split([1, 1, 7, 100, 91]):
        part, state = case.run(x=chunk, pending=state, form=form, keep=True)
        parts.append(part)
    assert torch.equal(torch.cat(parts), y)
    assert state is not None
    assert torch.equal(state, kept)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(case.run(form=form)[0], y)
        one = case.x[:, :1]
        single = case.run(x=one, pending=None, form=form)[0]
        assert torch.equal(single, case.run(pending=None, form=form)[0][:, :1])
    finally:
        torch.set_num_threads(threads)
    turned = case.x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(case.run(x=turned, form=form)[0], y)
    assert case.bias is not None
    case.bias = torch.stack([case.bias, case.bias + 1], 1)[:, 0]
    assert torch.equal(case.run(form=form)[0], y)


def test_steps_at_the_front_can_be_inputs_alone() -> None:
    case = Case("groups", torch.float64)
    whole = case.run(pending=None)[0]
    for form in ("spikes", "outputs"):
        assert torch.equal(case.run(pending=None, skip=6, form=form)[0], whole[6:])
    assert case.run(x=case.x[:, :0], pending=None)[0].shape == (23, 0, 6)
    y, kept = case.run(x=case.x[:0], keep=True)
    assert y.shape == (0, 3, 6)
    assert case.pending is not None
    assert torch.equal(kept, case.pending)


def test_the_operator_holds_what_torch_expects_of_one() -> None:
    case = Case("groups", torch.float32)
    tables = list(Tables.of(case.weight, case.delay, case.size, case.groups))
    elements = case.weight, case.delay, case.bias, tables, case.size, case.groups
    for arguments in ((case.pending, *elements, 0, True), (None, *elements, 2, False)):
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
        operator = torch.ops.spikeloom.delayed_sum.default
        torch.library.opcheck(operator, (case.x, *arguments, "auto"), test_utils=tests)
    with pytest.raises(ValueError, match="have no gradient"):
        torch.ops.spikeloom.delayed_sum(case.x.requires_grad_(), None, *elements, 0, False, "auto")


def test_bad_input_is_explained() -> None:
    case = Case("groups", torch.float32)
    assert case.pending is not None
    with pytest.raises(ValueError, match=r"expected \[T, B, 4\]"):
        case.run(x=case.x[0])
    with pytest.raises(ValueError, match=r"layer\.float\(\)"):
        case.run(x=case.x.bfloat16())
    with pytest.raises(ValueError, match=r"expected \[K - 1, B, O\] = \[6, 3, 6\].*stream.reset"):
        case.run(pending=case.pending[1:])
    with pytest.raises(ValueError, match=r"delays from 0 to 6; expected 0 to K - 1 = 5"):
        Tables.of(case.weight, case.delay, 6, case.groups)
    with pytest.raises(ValueError, match="one of auto, spikes, outputs"):
        case.run(form="gather")
    for bias in (torch.zeros(1), torch.zeros(6, dtype=torch.float64), torch.zeros(6, device="meta")):
        case.bias = bias
        with pytest.raises(ValueError, match=r"a bias .* expected \[O\] = \[6\] of torch.float32 on cpu"):
            case.run()
    case.bias = None
    for wrong in ({"skip": 7, "pending": None}, {"skip": 2}, {"skip": 2, "pending": None, "keep": True}):
        with pytest.raises(ValueError, match=r"skip is .* expected 0 to min\(T, K - 1\) = 6, and 0 with a state"):
            case.run(**wrong)
    with pytest.raises(ValueError, match=r"torch.no_grad\(\).*train the layer as DelayConv1d"):
        case.run(x=case.x.requires_grad_())


class OnCpu:
    """Stands in for `launch.Kernel`: no thread reads what another one of its kernel writes."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        drivers = [
            f'extern "C" void start_{n}(const void* a, unsigned b, unsigned t)'
            f"{{ every_thread<Arguments>({n}, a, b, t); }}"
            for n in ("delays_mark", "delays_list", "delays_send")
        ]
        library = build.load("\n".join([SHIM, MORE_SHIM, source.replace(*HALF_LOAD).replace(*HALF_STORE), *drivers]))
        self.start, self.grid, self.struct = library[f"start_{name}"], (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cuda, "Kernel", OnCpu)
    cuda._kernel.cache_clear()
    yield
    cuda._kernel.cache_clear()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_the_cuda_kernels_on_the_cpu(size: str, dtype: torch.dtype) -> None:
    """Same bits as the CPU's; sums of 200 slots do not fit into shared memory."""
    case = Case(size, dtype)
    tables = Tables.of(case.weight, case.delay, case.size, case.groups)
    elements = case.weight, case.delay, case.bias, tables, case.size, case.groups
    found = cuda.delayed_sum(case.x, case.pending, *elements, 0, True, "auto")
    assert all(map(torch.equal, found, case.run(form="spikes", keep=True)))
    skip = min(3, case.size - 1)
    (late,) = cuda.delayed_sum(case.x, None, *elements, skip, False, "spikes")
    assert torch.equal(late, case.run(pending=None, skip=skip, form="spikes")[0])
    _, kept = cuda.delayed_sum(case.x[:0], case.pending, *elements, 0, True, "auto")
    assert case.pending is not None
    assert torch.equal(kept, case.pending)
    with pytest.raises(ValueError, match="walk over spikes"):
        cuda.delayed_sum(case.x, None, *elements, 0, False, "outputs")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_the_kernels_on_a_gpu(size: str, dtype: torch.dtype) -> None:
    case = Case(size, dtype)
    expected = case.run(form="spikes", keep=True)
    there = case.to("cuda")
    found = there.run(keep=True, backend="cuda")
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(there.run(keep=True)[0], found[0])
    close(there.run(keep=True, backend="reference"), expected)


@pytest.mark.gpu
def test_a_cuda_graph_captures_a_tick() -> None:
    case = Case("tiles", torch.float32).to("cuda")
    x, expected = case.x[:1].clone(), case.run(x=case.x[1:2], keep=True)
    case.run(x=x, keep=True)
    torch.cuda.synchronize()
    tables = Tables.of(case.weight, case.delay, case.size, case.groups)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, kept = delayed_sum(
            x, case.pending, case.weight, case.delay, case.bias, tables, size=case.size, groups=case.groups, keep=True
        )
    x.copy_(case.x[1:2])
    graph.replay()
    assert torch.equal(y, expected[0])
    assert torch.equal(kept, expected[1])


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("shared", "elements"), [(31, 1), (0, 2)])
def test_the_source_compiles_without_spilling(tmp_path: Path, dtype: torch.dtype, shared: int, elements: int) -> None:
    code = tmp_path / "code.cu"
    code.write_text(cuda.source(dtype, shared, elements))
    command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v"]
    command += ["--diag-suppress=177", "-o", "/dev/null", str(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("0 bytes spill stores") == 3, done.stderr
