"""The selective scan's CUDA kernels: on the CPU, on a GPU, and through nvcc, against the plain recurrence.

On the CPU they also run in double precision, in which nothing but the algebra of chunks and tiles is left to be wrong.
"""

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
from spikeloom_tests.kernels.scan_cases import NAMES, Case, Found, agree, cotangents, through
from torch import Tensor

from spikeloom.kernels.cpu import build
from spikeloom.kernels.scan import cuda, selective_scan
from spikeloom.kernels.scan.given import Scan

NVCC = shutil.which("nvcc")
SHIM = "".join(Path(__file__).with_name(name).read_text() for name in ("cuda_on_cpu.h", "cuda_warps_on_cpu.h"))
SHUFFLES = """
static float __shfl_xor_sync(unsigned m, float v, int other) {
    return bits<float>(__shfl_xor_sync(m, bits<unsigned>(v), other));
}
static double __shfl_xor_sync(unsigned m, double v, int other) {
    const auto w = bits<unsigned long long>(v);
    const unsigned long long high = __shfl_xor_sync(m, (unsigned)(w >> 32), other);
    return bits<double>(high << 32 | __shfl_xor_sync(m, (unsigned)w, other));
}
static void __syncwarp() { meet_warp(); }
"""
KERNELS = ("scan_summaries", "scan_forward", "scan_join", "scan_adjoints", "scan_join_back", "scan_gradients")
DRIVER = """
extern "C" void start_NAME(const void* a, unsigned b, unsigned t) {
    every_warp([](const void* p) { NAME(*static_cast<const Arguments*>(p)); }, a, b, t);
}
"""
INSTRUCTIONS = {
    'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));': "y = expf(x);",
    'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));': "y = exp2f(x);",
    'asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));': "y = 1 / x;",
    'asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));': "f = (float)::bits<_Float16>(v.bits);",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"((float)v));': "to.bits = ::bits<unsigned short>((_Float16)v);",
}
"""What stands in for what the source spells out."""
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
FULL = (torch.float32, torch.float32, 4, True, True, True, True)


class OnCpu:
    """Stands in for `launch.Kernel`."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        for asm, plain in INSTRUCTIONS.items():
            assert source.count(asm) == 1
            source = source.replace(asm, plain)
        text = SHIM + SHUFFLES + source + "".join(DRIVER.replace("NAME", n) for n in KERNELS)
        self.start, self.grid, self.struct = build.load(text)[f"start_{name}"], (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, nan_memory: None) -> Iterator[None]:
    """The kernels on the CPU; what they leave unwritten is NaN."""
    monkeypatch.setattr(cuda, "Kernel", OnCpu)
    monkeypatch.setattr(cuda, "_processors", lambda device: 1)
    cuda._kernel.cache_clear()
    yield
    cuda._kernel.cache_clear()


def on_cpu(given: dict[str, Tensor], case: Case, wanted: Sequence[str] = NAMES) -> Found:
    """Results and gradients by the kernels themselves."""
    given = {k: t.unsqueeze(1) if k in "BC" and t.ndim == 3 else t for k, t in given.items()}
    scan = Scan(*(given.get(k) for k in NAMES), case.softplus, case.reverse)  # type: ignore[arg-type]
    y, last, kept = cuda.forward(scan, True)
    assert kept.shape == cuda.kept_shape(scan)
    of_y, of_last = cotangents(case)
    asked = [k for k in NAMES if k in given and k in wanted]
    mask = "".join("01"[k in asked] for k in NAMES)
    grads = cuda.backward(scan, of_y.to(y.dtype), of_last.to(last.dtype), kept, mask)
    assert [g.dtype for g in grads] == [given[k].dtype for k in asked]
    return {"y": y, "last": last} | {f"grad {k}": g for k, g in zip(asked, grads, strict=True)}


def expected_of(given: dict[str, Tensor], case: Case) -> Found:
    exact = {k: t.double().unsqueeze(1) if k in "BC" and t.ndim == 3 else t.double() for k, t in given.items()}
    return through(selective_scan, exact, case, backend="reference")


CASES = [
    Case(),
    Case(d=40, n=16, L=64, B=2, C=2),
    Case(d=66, n=7, L=33, B=0, C=0, reverse=33),
    Case(d=4, n=16, L=70, B=2, C=2, reverse=2),
    Case(d=5, n=3, L=20, gate=False, extras=False, state=False, softplus=False),
    Case(L=29, B="fixed", C="fixed", gate=False, reverse=3),
    Case(L=29, n=9, B=1, C="fixed", gate=False),
    Case(L=29, B="fixed", C=3, reverse=6),
    Case(b=1, d=2, L=1, n=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_chunk_is_the_recurrence(emulated: None, case: Case) -> None:
    given = case.tensors()
    agree(on_cpu(given, case), expected_of(given, case), TOLERANCES[torch.float64])


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_chunks_are_the_recurrence(emulated: None, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(cuda, "cut", lambda L, blocks, processors: (32, -(-L // 32)))
    given = case.tensors()
    agree(on_cpu(given, case), expected_of(given, case), TOLERANCES[torch.float64])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_storage_types(emulated: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(cuda, "cut", lambda L, blocks, processors: (32, -(-L // 32)))
    case = Case(L=45, n=16)
    given = case.tensors(dtype)
    agree(on_cpu(given, case), expected_of(given, case), TOLERANCES[dtype])
    given["B"] = given["B"].float()
    agree(on_cpu(given, case), expected_of(given, case), TOLERANCES[dtype])


def test_slices_are_read_where_they_lie(emulated: None) -> None:
    case = Case(L=40)
    given = case.tensors()
    wide = torch.cat([given["B"], given["C"]], 2)
    twin = given | {"B": wide[:, :, :4], "C": wide[:, :, 4:], "u": given["u"].mT.contiguous().mT}
    assert cuda._gapless(twin["B"]) is twin["B"]
    agree(on_cpu(twin, case), expected_of(given, case), TOLERANCES[torch.float64])


def test_what_is_not_wanted_is_not_found(emulated: None) -> None:
    case = Case(L=40)
    given = case.tensors()
    whole = on_cpu(given, case)
    for name in NAMES:
        found = on_cpu(given, case, [name])
        assert set(found) == {"y", "last", f"grad {name}"}
        assert torch.equal(found[f"grad {name}"], whole[f"grad {name}"])


def test_backward_needs_what_forward_keeps(emulated: None) -> None:
    scan = Scan(*(Case(L=5).tensors().get(k) for k in NAMES), True, 0)  # type: ignore[arg-type]
    y, _, kept = cuda.forward(scan, False)
    with pytest.raises(ValueError, match="keep=True"):
        cuda.backward(scan, y, None, kept, "1" * 9)


def test_a_gradient_of_one_result_alone(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(L=70)
    given = case.tensors()
    scan = Scan(*(given.get(k) for k in NAMES), True, 0)  # type: ignore[arg-type]
    for length in (96, 32):
        monkeypatch.setattr(cuda, "cut", lambda L, blocks, processors, length=length: (length, -(-L // length)))
        _, _, kept = cuda.forward(scan, True)
        of_y, of_last = cotangents(case)
        both = cuda.backward(scan, of_y, of_last, kept, "1" * 9)
        halves = [cuda.backward(scan, *pair, kept, "1" * 9) for pair in ((of_y, None), (None, of_last))]
        for whole, one, two in zip(both, *halves, strict=True):
            torch.testing.assert_close(one + two, whole, rtol=1e-10, atol=1e-12)


def test_extreme_rates_and_steps(emulated: None) -> None:
    """Rates down to -1e4, steps up to 50 and beyond the softplus's bend: finite, and the recurrence's."""
    case = Case(L=40, extras=False)
    given = case.tensors()
    given["A"][0] = -1e4
    given["delta"][:, :, ::3] = 50.0
    single = {k: t.float() for k, t in given.items()}
    found = on_cpu(single, case)
    assert all(bool(t.isfinite().all()) for t in found.values())
    agree(on_cpu(given, case), expected_of(given, case), TOLERANCES[torch.float64])


def test_how_sequences_are_cut() -> None:
    assert cuda.cut(2048, 256, 132) == (2048, 1)
    assert cuda.cut(2048, 32, 132) == (256, 8)
    assert cuda.cut(5, 1, 132) == (32, 1)
    for L, blocks in ((1, 1), (16384, 1), (16384, 98), (777, 3), (2048, 60)):
        length, chunks = cuda.cut(L, blocks, 132)
        assert length % cuda.TILE == 0
        assert (chunks - 1) * length < L <= chunks * length


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize(
    "kind",
    [FULL, (torch.bfloat16, torch.bfloat16, *FULL[2:]), (torch.float16, torch.float32, 1, False, True, False, False)],
    ids=["float32", "bfloat16", "float16 plain"],
)
def test_the_source_compiles_without_spilling(tmp_path: Path, kind: Any) -> None:
    code = tmp_path / "code.cu"
    code.write_text(cuda.source(kind))
    command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, "--diag-suppress=177", "-o", "/dev/null", str(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    assert done.stderr.count("0 bytes spill stores") == len(KERNELS), done.stderr
    assert max(int(n) for n in re.findall(r"(\d+) bytes smem", done.stderr)) <= 48 * 1024


GPU_CASES = [
    Case(b=2, d=96, n=16, L=1000, reverse=48),
    Case(b=1, d=40, n=16, L=4099, state=False),
    Case(b=3, d=64, n=8, L=257, B=2, C=2, gate=False),
    Case(b=2, d=33, n=3, L=65, B="fixed", C=0),
    Case(b=1, d=32, n=40, L=100),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_on_a_gpu(case: Case, dtype: torch.dtype) -> None:
    given = case.tensors(dtype)
    there = {k: t.cuda() for k, t in given.items()}
    found = through(selective_scan, there, case)
    exact = {k: t.double() for k, t in given.items()}
    agree(found, through(selective_scan, exact, case, backend="reference"), 3 * TOLERANCES[dtype])
    again = through(selective_scan, there, case)
    assert all(torch.equal(found[name], again[name]) for name in found)


@pytest.mark.gpu
def test_double_precision_on_a_gpu() -> None:
    case = Case(L=50)
    given = case.tensors()
    found = through(selective_scan, {k: t.cuda() for k, t in given.items()}, case)
    agree(found, expected_of(given, case), TOLERANCES[torch.float64])
