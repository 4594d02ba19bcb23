"""WKV in chunks: the CUDA kernels on the CPU, on a GPU, and through nvcc, against the loop over the tokens.

On the CPU they also run in double precision, in which nothing but the algebra of the chunks is left to be wrong.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.kernels import backends
from spikeloom.kernels.cpu import build
from spikeloom.kernels.watch import watching
from spikeloom.kernels.wkv import chunked, takes, weighted_means
from spikeloom.neurons import Stream
from spikeloom.spiking_attention import WKV
from spikeloom.spiking_attention.wkv import wkv

NVCC = shutil.which("nvcc")
SHIM = Path(__file__).with_name("cuda_on_cpu.h").read_text()
KERNELS = ("wkv_summaries", "wkv_scan", "wkv_replay", "wkv_adjoints", "wkv_scan_back", "wkv_gradients")
DRIVER = """
extern "C" void start_NAME(const void* a, unsigned b, unsigned t) { every_thread<Arguments>(NAME, a, b, t); }
"""
INSTRUCTIONS = {
    'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.4426950408889634f));': "y = expf(x);",
    'asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));': "y = 1 / x;",
    'asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));': "f = (float)::bits<_Float16>(v.bits);",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"((float)v));': "to.bits = ::bits<unsigned short>((_Float16)v);",
}
"""What stands in for what the source spells out."""

TOLERANCES = {torch.float64: (1e-11, 1e-9), torch.float32: (2e-5, 5e-5), torch.bfloat16: (2**-7, 2**-6)}
TOLERANCES[torch.float16] = (2**-10, 2**-9)
"""Of results and states, and of gradients, relative to the largest entry. Half: a rounding, and that of the input."""

SIZES = [(1, 2, 3), (7, 1, 1), (8, 3, 5), (37, 3, 5), (203, 2, 7), (20, 8, 100), (1001, 1, 2)]
"""T, B, C: no whole batch, none left over, whole chunks, chunks cut short, one chunk alone, many chunks."""


class OnCpu:
    """Stands in for `launch.Kernel`."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        for asm, plain in INSTRUCTIONS.items():
            assert source.count(asm) == 1
            source = source.replace(asm, plain)
        head, body = source.replace("__launch_bounds__(THREADS, RESIDENT)", "").split("struct Arguments", 1)
        if head.startswith("typedef double"):
            body = body.replace("__fmaf_rn(", "fma(").replace("loom_reciprocal(", "(1 / ")
        text = SHIM + head + "struct Arguments" + body + "".join(DRIVER.replace("NAME", n) for n in KERNELS)
        self.start, self.grid, self.struct = build.load(text)[f"start_{name}"], (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, nan_memory: None) -> Iterator[None]:
    """The kernels on the CPU, on one multiprocessor; what they leave unwritten is NaN."""
    monkeypatch.setattr(chunked, "Kernel", OnCpu)
    monkeypatch.setattr(chunked, "_processors", lambda device: 1)
    chunked._kernel.cache_clear()
    yield
    chunked._kernel.cache_clear()


@pytest.fixture
def exact(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in double precision."""
    monkeypatch.setattr(chunked, "_REAL", torch.float64)


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def case(T: int, B: int, C: int, dtype: torch.dtype, *, state: bool, size: float = 2.0) -> list[Tensor]:
    """k, v, time_decay, time_first and, with `state`, p, q and o."""
    given = [random(T, B, C, seed=1, scale=size), random(T, B, C, seed=2)]
    given += [random(C, seed=3) - 1, random(C, seed=4)]
    if state:
        given += [random(B, C, seed=5), random(B, C, seed=6).abs() + 1, random(B, C, seed=7, scale=size)]
    return [t.to(dtype if i < 2 else torch.promote_types(dtype, torch.float32)) for i, t in enumerate(given)]


Results = dict[str, Tensor]
NAMES = ("k", "v", "time_decay", "time_first", "p", "q")


def results(run: Any, given: Sequence[Tensor], dtype: torch.dtype, device: str = "cpu") -> Results:
    """y, the true sums p e^o and q e^o behind it (of exponent o itself), and the gradients of both."""
    leaves = [t.to(device, dtype if i < 2 or dtype == torch.float64 else t.dtype) for i, t in enumerate(given)]
    for leaf in leaves[:6]:
        leaf.requires_grad_()
    k, v, *params = leaves
    y, (p, q, o) = run(k, v, *params[:2], tuple(params[2:]) or None)
    assert y.dtype == dtype
    top = o.detach().amax()
    sums = [x * (o.detach() - top).exp() for x in (p, q)]
    loss = (y.double() * random(*y.shape, seed=8).to(device)).sum()
    loss = loss + sum((s.double() * random(*s.shape, seed=9).to(device)).sum() for s in sums)
    grads = torch.autograd.grad(loss, leaves[:6])
    found = {"y": y, "sum of v": sums[0], "sum": sums[1], "o": o}
    found |= {f"grad {name}": g for name, g in zip(NAMES, grads, strict=False)}
    return {name: t.detach().cpu().double() for name, t in found.items()}


def loop(k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor, state: Any) -> Any:
    return wkv(k, v, state=state, time_decay=time_decay, time_first=time_first)


def agree(found: Results, expected: Results, dtype: torch.dtype) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        allowed = TOLERANCES[dtype][name.startswith("grad")] * max(1.0, wanted.abs().max().item())
        assert (found[name] - wanted).abs().max().item() <= allowed, name


@pytest.mark.parametrize("state", [False, True], ids=["rest", "state"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_chunks_are_the_loop(exact: None, size: tuple[int, int, int], state: bool) -> None:
    given = case(*size, torch.float64, state=state)
    agree(results(weighted_means, given, torch.float64), results(loop, given, torch.float64), torch.float64)


@pytest.mark.parametrize("length", [8, 16, 24, 48])
def test_any_length_of_a_chunk(exact: None, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(chunked, "cut", lambda T, lanes, processors: (length, -(-T // length)))
    given = case(45, 2, 3, torch.float64, state=True)
    agree(results(weighted_means, given, torch.float64), results(loop, given, torch.float64), torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_storage_types(emulated: None, dtype: torch.dtype) -> None:
    for size, state in (((37, 3, 5), True), ((203, 2, 7), False)):
        given = case(*size, dtype, state=state)
        agree(results(weighted_means, given, dtype), results(loop, given, torch.float64), dtype)


@pytest.mark.parametrize("order", ["batch first", "channels first", "repeated", "differently"])
def test_layouts(exact: None, order: str) -> None:
    """Batch-first tensors are read where they lie, others copied."""
    k, v, *params = case(45, 3, 5, torch.float64, state=True)
    wanted = results(loop, [k, v, *params], torch.float64)
    if order == "repeated":
        k, v = (t[:, :1].expand(45, 3, 5) for t in (k, v))
        wanted = results(loop, [k.contiguous(), v.contiguous(), *params], torch.float64)
    elif order == "channels first":
        k, v = (t.permute(1, 2, 0).contiguous().permute(2, 0, 1) for t in (k, v))
    else:
        k = k.transpose(0, 1).contiguous().transpose(0, 1)
        v = v.clone() if order == "differently" else v.transpose(0, 1).contiguous().transpose(0, 1)
    y, _ = weighted_means(k, v, *params[:2])
    assert (y.transpose(0, 1) if order in ("batch first", "differently") else y).is_contiguous()
    agree(results(weighted_means, [k, v, *params], torch.float64), wanted, torch.float64)


@pytest.mark.parametrize("cut", [1, 8, 21, 44])
def test_pieces_with_the_state_are_one_call(exact: None, cut: int) -> None:
    """Gradients through the state included."""

    def pieces(k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor, state: Any) -> Any:
        first, middle = weighted_means(k[:cut], v[:cut], time_decay, time_first, state)
        second, end = weighted_means(k[cut:], v[cut:], time_decay, time_first, middle)
        return torch.cat([first, second]), end

    given = case(45, 2, 3, torch.float64, state=True)
    agree(results(pieces, given, torch.float64), results(weighted_means, given, torch.float64), torch.float64)


@pytest.mark.parametrize("size", [300.0, 1e4])
def test_large_keys(emulated: None, monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    """Finite, and within the values seen; in double precision the loop's."""
    given = case(203, 2, 7, torch.float64, state=False)
    k = given[0] = size * random(203, 2, 7, seed=1).clamp(-1, 1)
    k[::3] = k[::3].abs()
    found = results(weighted_means, given, torch.float32)
    assert all(bool(t.isfinite().all()) for t in found.values())
    assert bool((found["y"] <= given[1].amax(0) + 1e-4).all())
    assert bool((found["y"] >= given[1].amin(0) - 1e-4).all())
    chunked._kernel.cache_clear()
    monkeypatch.setattr(chunked, "_REAL", torch.float64)
    agree(results(weighted_means, given, torch.float64), results(loop, given, torch.float64), torch.float64)


@pytest.mark.parametrize("decay", [88.8, 100.0, 700.0])
def test_decays_whose_exponential_overflows(emulated: None, monkeypatch: pytest.MonkeyPatch, decay: float) -> None:
    """Nothing is left of the past: finite, and the loop's in double precision, which holds e^700."""
    monkeypatch.setattr(chunked, "cut", lambda T, lanes, processors: (16, -(-T // 16)))
    given = case(45, 2, 3, torch.float32, state=True)
    given[2] = torch.tensor([decay, -1.0, decay])
    found = results(weighted_means, given, torch.float32)
    assert all(bool(t.isfinite().all()) for t in found.values())
    agree(found, results(loop, given, torch.float64), torch.float32)


def test_the_first_token_is_its_value(emulated: None) -> None:
    k, v, *params = case(64, 2, 3, torch.float32, state=False, size=50.0)
    assert torch.equal(weighted_means(k, v, *params)[0][0], v[0])


def test_what_needs_no_gradient_gets_none(exact: None) -> None:
    """Frozen parameters; and a loss that sees the state alone."""
    k, v, *params = case(37, 2, 3, torch.float64, state=True)
    k.requires_grad_()
    whole = results(weighted_means, [k.detach(), v, *params], torch.float64)
    y, end = weighted_means(k, v, *params[:2], tuple(params[2:]))
    assert not end[2].requires_grad
    of_y = torch.autograd.grad(y, k, random(*y.shape, seed=8), retain_graph=True)[0]
    scale = (end[2] - end[2].amax()).exp()
    of_state = torch.autograd.grad(sum((s * scale * random(2, 3, seed=9)).sum() for s in end[:2]), k)[0]
    torch.testing.assert_close(of_y + of_state, whole["grad k"], rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        plain, _ = weighted_means(k, v, *params[:2], tuple(params[2:]))
    assert torch.equal(plain, y)
    assert not plain.requires_grad


def test_a_second_derivative_is_refused(emulated: None) -> None:
    k, v, *params = case(16, 1, 2, torch.float32, state=False)
    y, _ = weighted_means(k.requires_grad_(), v, *params)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(y.sum(), k, create_graph=True)


def test_how_texts_are_cut() -> None:
    assert chunked.cut(1024, 12 * 768, 132) == (96, 11)  # fills the GPU once: 11 * 12 * 768 threads
    assert chunked.cut(8192, 768, 132) == (64, 128)
    assert chunked.cut(1000, 10**6, 132) == (1000, 1)
    for T, lanes in ((1, 1), (64, 7), (10**6, 1), (777, 30000)):
        length, chunks = chunked.cut(T, lanes, 132)
        assert length % chunked.STEPS == 0
        assert (chunks - 1) * length < T <= chunks * length


class Gpu(torch.Tensor):
    is_cuda = True


def test_what_the_kernels_take(monkeypatch: pytest.MonkeyPatch) -> None:
    T, B, C = chunked.SHORTEST, 2, 3
    state = tuple(torch.zeros(B, C) for _ in range(3))

    def asked(k: Tensor, v: Tensor | None = None, state: Any = None, C: int = C) -> bool:
        v = k if v is None else v
        return takes(k.as_subclass(Gpu), v, torch.zeros(C), nn.Parameter(torch.zeros(C)), state)

    k = torch.zeros(T, B, C)
    assert not asked(k)  # a subclass
    monkeypatch.setattr(chunked, "is_plain", lambda t: True)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "cuda")
    assert asked(k)
    assert asked(k.bfloat16())
    assert asked(k, state=state)
    assert not asked(k.double())
    assert not asked(k[1:])  # too short
    assert not asked(k[:, :0])
    assert not asked(k.unsqueeze(1))
    assert not asked(k, k[:, :, :2])
    assert not asked(k, k.bfloat16())
    assert not asked(k, C=1)
    assert not asked(k, state=state[:2])
    assert not asked(k, state=k)
    assert not asked(k, state=(*state[:2], state[2][:1]))
    with watching(object()):  # type: ignore[arg-type]
        assert not asked(k)
    monkeypatch.setattr(chunked, "dispatched", lambda: True)
    assert not asked(k)
    monkeypatch.setattr(chunked, "dispatched", lambda: False)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "reference")  # a GPU without CuPy
    assert not asked(k)
    monkeypatch.undo()
    assert not takes(k, k, torch.zeros(C), torch.zeros(C), None)  # on a CPU


def test_the_module_asks(exact: None, monkeypatch: pytest.MonkeyPatch) -> None:
    k, v, time_decay, time_first = case(100, 2, 3, torch.float64, state=False)
    net, module = WKV(time_decay, time_first), sys.modules["spikeloom.spiking_attention.wkv"]
    with torch.no_grad():
        expected, end = net(k, v, return_state=True)
        asked: list[int] = []
        monkeypatch.setattr(module, "takes", lambda k, *given: asked.append(len(k)) or len(k) > 1)
        y, state = net(k, v, return_state=True)
        stream = Stream(net)
        pieces = torch.cat([stream(*pair) for pair in zip(k.split([70, 1, 29]), v.split([70, 1, 29]), strict=True)])
        assert asked == [100, 70, 1, 29]
        net.backend = "reference"
        net(k, v)
    assert len(asked) == 4
    for found, wanted in zip((y, *state, pieces), (expected, *end, expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_source_compiles_without_spilling(tmp_path: Path, dtype: torch.dtype) -> None:
    code = tmp_path / "code.cu"
    code.write_text(chunked.source(dtype))
    command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, "--diag-suppress=177", "-o", "/dev/null", str(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr
    assert done.stderr.count("0 bytes spill stores") == len(KERNELS), done.stderr
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", done.stderr)]
    assert max(registers) * chunked._THREADS * chunked._RESIDENT <= 65536


@pytest.mark.gpu
@pytest.mark.parametrize("state", [False, True], ids=["rest", "state"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu(dtype: torch.dtype, state: bool) -> None:
    for size in ((64, 1, 1), (129, 3, 5), (1024, 2, 96), (4099, 1, 33)):
        given = case(*size, dtype, state=state)
        found = results(weighted_means, given, dtype, "cuda")
        agree(found, results(loop, given, torch.float64, "cuda"), dtype)
        again = results(weighted_means, given, dtype, "cuda")
        assert all(torch.equal(found[name], again[name]) for name in found)


@pytest.mark.gpu
def test_the_module_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the kernels for a text, one by one the loop, with the same results."""
    k, v, time_decay, time_first = (t.cuda() for t in case(300, 2, 40, torch.float32, state=False))
    net, module = WKV(time_decay, time_first), sys.modules["spikeloom.spiking_attention.wkv"]
    served: list[int] = []

    def counted(k: Tensor, *given: Any) -> Any:
        served.append(len(k))
        return weighted_means(k, *given)

    monkeypatch.setattr(module, "weighted_means", counted)
    with torch.no_grad():
        whole, stream = net(k, v), Stream(net)
        pieces = [stream(*pair) for pair in zip(k.split([200, 1, 99]), v.split([200, 1, 99]), strict=True)]
        net.backend = "reference"
        expected = net(k, v)
    assert served == [300, 200, 99]
    torch.testing.assert_close(whole, expected, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(torch.cat(pieces), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [300.0, 1e4])
def test_large_keys_on_a_gpu(size: float) -> None:
    given = case(1024, 2, 64, torch.float32, state=False)
    given[0] = (size * random(1024, 2, 64, seed=1).clamp(-1, 1)).float()
    found = results(weighted_means, given, torch.float32, "cuda")
    assert all(bool(t.isfinite().all()) for t in found.values())
    assert bool((found["y"].abs() <= given[1].double().abs().amax(0) + 1e-4).all())
