"""BatchNorm -> max pooling in one pass: the CUDA kernels on the CPU, on a GPU, and through nvcc."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import BaseTorchFunctionMode

from spikeloom.kernels import backends
from spikeloom.kernels.cpu import build
from spikeloom.kernels.norm import Running, finish
from spikeloom.kernels.norm_pool import evaluated, fused, takes, trained
from spikeloom.spiking_attention.normed import ConvNorm
from spikeloom.spiking_attention.pooled_conv import PooledConv
from spikeloom.synapses import BatchNorm2d, ConvNeuron, MaxPool2d, norm_pool
from spikeloom.synapses.norm_pool import norm_then_pool

NVCC = shutil.which("nvcc")
NVCC_FLAGS = ("-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v", "--diag-suppress=177")
SHIM = Path(__file__).with_name("cuda_on_cpu.h").read_text()
HALVES = {
    'asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));': "f = (float)::bits<_Float16>(v.bits);",
    'asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"((float)v));': (
        "to.bits = ::bits<unsigned short>((_Float16)(float)v);"
    ),
}
KERNELS = ("norm_pool", "norm_pool_eval", "norm_pool_sums", "norm_pool_grad")
DRIVER = """
extern "C" void start_NAME(const void* a, unsigned b, unsigned t) { every_thread<Arguments>(NAME, a, b, t); }"""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WINDOWS = [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 0), (2, 3, 1)]
SHAPES = ((3, 16, 9, 10), (2, 5, 8, 7), (4, 12, 6, 6))  # channels in whole vectors, one by one, in half vectors
EPS = 1e-5


class OnCpu:
    """Stands in for `launch.Kernel`."""

    kernels: Sequence[str] = KERNELS  # of the source

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        for asm, cast in HALVES.items():
            source = source.replace(asm, cast)
        library = build.load(SHIM + source + "".join(DRIVER.replace("NAME", n) for n in self.kernels))
        self.start, self.grid, self.struct = library[f"start_{name}"], (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


def statistics(y: Tensor, aligned: bool, weight: Tensor, bias: Tensor, eps: float, running: Running | None) -> Tensor:
    """Stands in for the kernels of `kernels.norm`; takes NaN for 0."""
    var, mean = torch.var_mean(y.double().nan_to_num(), (0, 1, 3, 4), correction=0)
    stats = finish.forward(mean, var, y.numel() / y.shape[2], weight, bias, eps, "").float()
    if running is not None:
        finish.update(running, stats)
    return stats


def finished(weighted: Tensor, plain: Tensor, width: int, stats: Tensor, eps: float) -> Tensor:
    assert width == 1
    assert weighted.shape == plain.shape == (len(weighted), stats.shape[1])
    assert len(weighted) > 1
    return finish.backward(weighted.sum(0), plain.sum(0), stats, eps, "")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels on the CPU, with few threads, so that every thread handles several pixels."""
    monkeypatch.setattr(fused, "Kernel", OnCpu)
    monkeypatch.setattr(fused, "statistics", statistics)
    monkeypatch.setattr(fused.finish, "backward_cuda", finished)
    monkeypatch.setattr(fused, "_processors", lambda device: 1)
    monkeypatch.setattr(fused, "_THREADS", dict.fromkeys(KERNELS, 32))
    monkeypatch.setattr(fused, "_BLOCKS", dict.fromkeys(KERNELS, 1))
    fused._kernel.cache_clear()
    yield
    fused._kernel.cache_clear()


def maps(dtype: torch.dtype, shape: tuple[int, ...], kind: str) -> Tensor:
    """Channels-last maps: values, spikes, whose windows are full of ties, or values with NaN and infinity."""
    generator = torch.Generator().manual_seed(shape[1])
    y = torch.randn(shape, generator=generator) * 3 + 1
    if kind == "ties":
        y = (y > 1.5).float()
    y = y.to(dtype)
    if kind == "nan":
        y[0, 0, 3, 3], y[0, 0, 4, 4], y[0, 1, 2, 2], y[-1, 2, :5, :5] = torch.nan, torch.nan, torch.inf, -torch.inf
    return y.contiguous(memory_format=torch.channels_last)


def affine(C: int) -> tuple[Tensor, Tensor]:
    """Weight and bias with both signs and zeros."""
    weight = torch.linspace(-1.5, 1.5, C)
    weight[C // 2] = 0
    return weight, torch.linspace(1, -1, C)


def chosen(y: Tensor, scale: Tensor, shift: Tensor, window: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Pooled values as stored, and torch's index of each maximum within its map."""
    v = y.float() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    pooled, index = F.max_pool2d(v.to(y.dtype).double(), *window, return_indices=True)
    return pooled, index


def indices(code: Tensor, like: Tensor, window: tuple[int, int, int], width: int) -> Tensor:
    """Codes [M, H', W', C] as torch's indices [M, C, H', W']."""
    kernel, stride, padding = window
    code = code.view(like.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2).long()
    h = torch.arange(like.shape[2]).view(-1, 1) * stride - padding + code // kernel
    w = torch.arange(like.shape[3]) * stride - padding + code % kernel
    return h * width + w


def fresh(C: int) -> Running:
    return Running(torch.zeros(C), torch.ones(C), torch.tensor(0), 0.1)


def gradients_agree(pooled: Tensor, index: Tensor, of: tuple[Tensor, Tensor, Tensor], summed: float) -> None:
    """Gradients of y, weight and bias against torch in double precision, for these choices of the maxima."""
    grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2)).to(pooled.dtype)
    ours = torch.autograd.grad(pooled, of, grad.to(pooled.device))
    leaves = [t.detach().cpu().double().requires_grad_() for t in of]
    v = F.batch_norm(leaves[0], None, None, leaves[1], leaves[2], True, 0.1, EPS)
    theirs = torch.autograd.grad(v.flatten(2).gather(2, index.flatten(2)).view_as(grad), leaves, grad.double())
    once = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[pooled.dtype]
    for got, wanted, error in zip(ours, theirs, (once, summed, summed), strict=True):
        atol = error * wanted.abs().max().item() + 1e-6
        torch.testing.assert_close(got.cpu().double(), wanted, rtol=error, atol=atol)
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["values", "ties"])
@pytest.mark.parametrize(
    ("dtype", "window"), [*((torch.float32, w) for w in WINDOWS), *((d, WINDOWS[0]) for d in DTYPES[1:])], ids=str
)
def test_training_on_the_cpu(emulated: None, dtype: torch.dtype, window: tuple[int, int, int], kind: str) -> None:
    """Values and choices exactly; gradients of y, weight and bias against torch in double precision."""
    for shape in SHAPES:
        y = maps(dtype, shape, kind).requires_grad_()
        weight, bias = (v.requires_grad_() for v in affine(shape[1]))
        stats = statistics(y.detach().unsqueeze(0), True, weight.detach(), bias.detach(), EPS, None)
        expected, index = chosen(y.detach(), stats[2], stats[3], window)
        pooled = trained(y, 1, weight, bias, EPS, fresh(shape[1]), window)
        assert pooled.dtype == dtype
        assert pooled.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(pooled.double(), expected)
        code = pooled.grad_fn.saved_tensors[1]  # type: ignore[union-attr]
        assert torch.equal(indices(code, pooled, window, shape[3]), index)
        gradients_agree(pooled, index, (y, weight, bias), 2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_always_wins_and_infinity_is_a_value(emulated: None, dtype: torch.dtype) -> None:
    for window in WINDOWS if dtype == torch.float32 else WINDOWS[:1]:
        y = maps(dtype, (3, 8, 9, 10), "nan")
        weight, bias = affine(8)
        stats = statistics(y.unsqueeze(0), True, weight, bias, EPS, None)
        expected, index = chosen(y, stats[2], stats[3], window)
        pooled = trained(y, 1, weight.requires_grad_(), bias, EPS, fresh(8), window)
        torch.testing.assert_close(pooled.double(), expected, rtol=0, atol=0, equal_nan=True)
        assert pooled.isnan().any()
        code = pooled.grad_fn.saved_tensors[1]  # type: ignore[union-attr]
        assert torch.equal(indices(code, pooled, window, 10), index)


@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluation_on_the_cpu(emulated: None, dtype: torch.dtype) -> None:
    for shape, window in zip(SHAPES, WINDOWS, strict=False):
        y, (weight, bias) = maps(dtype, shape, "values"), affine(shape[1])
        mean, var = torch.linspace(-1, 2, shape[1]), torch.linspace(0.5, 9, shape[1])
        root = (var + EPS).double().sqrt().float()  # in double precision: rounded correctly, which torch.sqrt is not
        scale = weight * (1 / root.double()).float()
        expected, _ = chosen(y, scale, bias - mean * scale, window)
        pooled = evaluated(y, weight, bias, mean, var, EPS, window)
        assert torch.equal(pooled.double(), expected)
        assert not pooled.requires_grad


def test_a_frozen_map_and_frozen_parameters(emulated: None) -> None:
    y, (weight, bias) = maps(torch.float32, SHAPES[0], "values"), affine(16)
    window = WINDOWS[0]
    leaves = [t.requires_grad_() for t in (y.clone(memory_format=torch.preserve_format), weight, bias)]
    whole = torch.autograd.grad(trained(leaves[0], 3, weight, bias, EPS, fresh(16), window).square().sum(), leaves)
    of_weight = torch.autograd.grad(trained(y, 3, weight, bias, EPS, fresh(16), window).square().sum(), weight)
    frozen = weight.detach(), bias.detach()
    of_map = torch.autograd.grad(trained(leaves[0], 3, *frozen, EPS, fresh(16), window).square().sum(), leaves[0])
    assert torch.equal(of_weight[0], whole[1])
    assert torch.equal(of_map[0], whole[0])


def test_a_second_derivative_is_refused(emulated: None) -> None:
    y, (weight, bias) = maps(torch.float32, SHAPES[0], "values").requires_grad_(), affine(16)
    pooled = trained(y, 3, weight, bias, EPS, fresh(16), (3, 2, 1))
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(pooled.sum(), y, create_graph=True)


def test_what_the_kernels_take() -> None:
    class Gpu(torch.Tensor):
        is_cuda = True

    def asked(y: Tensor, window: tuple[int, int, int] = (3, 2, 1), training: bool = True, **of: Any) -> bool:
        values = tuple(torch.ones(y.shape[1], dtype=of.get("dtype", torch.float32)) for _ in range(4))
        return takes(y.as_subclass(Gpu), window, values, training=training)

    y = maps(torch.float32, SHAPES[0], "values")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "is_plain", lambda t: True)
        patch.setattr(backends, "choose", lambda backend, device: "cuda")
        assert asked(y)
        assert asked(y, training=False)
        assert asked(y.bfloat16(), dtype=torch.bfloat16)
        assert not asked(y.double())
        assert not asked(y.contiguous())
        assert not asked(y, (2, 2, 2))  # more padding than half of the window
        assert not asked(y, (12, 1, 0))  # a window larger than the map
        assert not asked(y, (17, 1, 8))  # more places than a byte counts
        assert not asked(y[:1, :, :1, :1].contiguous(memory_format=torch.channels_last), (1, 1, 0))  # one value
        assert not asked(y, dtype=torch.float64)
        assert not asked(y.clone(memory_format=torch.preserve_format).requires_grad_(), training=False)
        patch.setattr(backends, "choose", lambda backend, device: "reference")  # a GPU without CuPy
        assert not asked(y)
    assert not asked(y)  # a subclass
    assert not takes(y, (3, 2, 1), tuple(torch.ones(4, 16)), training=True)  # on a CPU


Result = dict[str, Tensor]


def results(net: nn.Module, x: Tensor) -> Result:
    """Output, buffers and gradients of a weighted sum of the output."""
    net.zero_grad()
    leaf = x.detach().requires_grad_(net.training)
    y = net(leaf)
    found = {"y": y.detach()} | {n: b.clone() for n, b in net.named_buffers() if n.startswith(("norm", "fire"))}
    if net.training:
        (y * torch.linspace(-1, 1, y.shape[2], device=y.device).view(-1, 1, 1)).sum().backward()
        assert leaf.grad is not None
        found |= {"x": leaf.grad} | {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    return found


def both(make: Callable[[], nn.Module], x: Tensor, device: str) -> tuple[Result, Result]:
    """The same net with and without a hook, for which the layers are called one by one."""
    found = []
    for hooked in (False, True):
        torch.manual_seed(0)
        net = make().to(device)
        norm = next(m for m in net.modules() if isinstance(m, BatchNorm2d))
        with torch.no_grad():
            norm.weight.copy_(affine(norm.num_features)[0])
            norm.bias.copy_(affine(norm.num_features)[1])
        if hooked:
            norm.register_forward_hook(lambda *given: None)
        found.append(results(net, x))
        net.eval()
        with torch.no_grad():
            found[-1] |= {"eval": results(net, x)["y"]}
    return found[0], found[1]


def momentum_none(net: nn.Module) -> nn.Module:
    next(m for m in net.modules() if isinstance(m, BatchNorm2d)).momentum = None
    return net


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.pool = ConvNorm(3, 8), MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x, self.pool)


NETS: dict[str, Callable[[], nn.Module]] = {
    "pooled conv": lambda: PooledConv(3, 8, 3, "max", fires=False),
    "cumulative": lambda: momentum_none(PooledConv(3, 8, 3, "max", fires=True)),
    "average": lambda: PooledConv(3, 8, 3, "avg", fires=False),
    "conv neuron": lambda: ConvNeuron(3, 8, pool="before"),
    "conv norm": Stem,
}


def frames(order: str) -> Tensor:
    x = torch.randn(2, 3, 9, 11, 3, generator=torch.Generator().manual_seed(0))
    if order == "repeated":
        return x[0].movedim(-1, 1).expand(2, -1, -1, -1, -1)
    return x.movedim(-1, 2) if order == "time first" else x.transpose(0, 1).contiguous().transpose(0, 1).movedim(-1, 2)


@pytest.mark.parametrize("order", ["time first", "batch first"])
@pytest.mark.parametrize("name", NETS)
def test_modules_on_the_cpu(emulated: None, monkeypatch: pytest.MonkeyPatch, name: str, order: str) -> None:
    calls: list[bool] = []
    monkeypatch.setattr(norm_pool, "takes", lambda *given, training: calls.append(training) or True)
    ours, theirs = both(NETS[name], frames(order), "cpu")
    assert calls == ([] if name == "average" else [True, False])  # and not with a hook
    assert ours.keys() == theirs.keys()
    for key, wanted in theirs.items():
        largest = max(1.0, wanted.abs().max().item())  # sums of many terms, some of which cancel
        torch.testing.assert_close(
            ours[key], wanted, rtol=1e-4, atol=1e-5 * largest, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_other_layers_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not a plain pair of layers with all values never comes to the kernels."""
    monkeypatch.setattr(norm_pool, "takes", lambda *given, **options: pytest.fail("asked the kernels"))
    x = frames("time first").repeat(1, 1, 2, 1, 1).movedim(2, -1).contiguous().movedim(-1, 2)
    norm, pool = BatchNorm2d(6), MaxPool2d(3, 2, 1)
    for other in (BatchNorm2d(6, affine=False), BatchNorm2d(6, track_running_stats=False)):
        assert torch.equal(norm_then_pool(other, pool, x), pool(other(x)))
    windows = (MaxPool2d((3, 2), 2, 1), MaxPool2d(3, 2, 1, ceil_mode=True), MaxPool2d(3, 2, 1, dilation=2))
    for module in (*windows, nn.Identity()):
        assert torch.equal(norm_then_pool(norm, module, x), module(norm(x)))
    channels_first = x.contiguous()
    assert torch.equal(norm_then_pool(norm, pool, channels_first), pool(norm(channels_first)))
    with BaseTorchFunctionMode():
        assert torch.equal(norm_then_pool(norm, pool, x), pool(norm(x)))
    with pytest.raises(ValueError, match=r"T, B, C, H, W"):
        norm_then_pool(norm, pool, x[0])


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sources_compile_without_spilling(tmp_path: Path, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    for given in ((16 // dtype.itemsize, (3, 2, 1)), (2, (2, 2, 0)), (1, (3, 1, 1), True)):
        code = tmp_path / "code.cu"
        code.write_text(fused.source(name, *given))
        command = [str(NVCC), *NVCC_FLAGS, "-o", "/dev/null", str(code)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr, done.stderr
        assert done.stderr.count("0 bytes spill stores") == 4, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["values", "ties"])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_training_on_a_gpu(dtype: torch.dtype, window: tuple[int, int, int], kind: str) -> None:
    """Values and choices exactly, from the statistics that were kept; gradients in double precision."""
    for shape in (*SHAPES, (16, 64, 33, 31)):
        y = maps(dtype, shape, kind).cuda().requires_grad_()
        weight, bias = (v.cuda().requires_grad_() for v in affine(shape[1]))
        running = Running(*(t.cuda() for t in fresh(shape[1])[:3]), 0.1)
        assert takes(y, window, (weight, bias, running.mean, running.var), training=True)
        pooled = trained(y, 1, weight, bias, EPS, running, window)
        _, code, stats = pooled.grad_fn.saved_tensors  # type: ignore[union-attr]
        var, mean = torch.var_mean(y.detach().double(), (0, 2, 3))
        torch.testing.assert_close(running.mean.double(), 0.1 * mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(running.var.double(), 0.9 + 0.1 * var, rtol=1e-5, atol=1e-6)
        assert running.batches.item() == 1
        expected, index = chosen(y.detach().cpu(), stats[2].cpu(), stats[3].cpu(), window)
        assert torch.equal(pooled.cpu().double(), expected)
        assert torch.equal(indices(code.cpu(), pooled.cpu(), window, shape[3]), index)
        gradients_agree(pooled, index, (y, weight, bias), 2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("order", ["time first", "batch first", "repeated"])
@pytest.mark.parametrize("name", NETS)
def test_modules_on_a_gpu(name: str, order: str) -> None:
    """With and without a hook, that is by one kernel and by torch's layers."""
    ours, theirs = both(NETS[name], frames(order).cuda(), "cuda")
    for key, wanted in theirs.items():
        error = (ours[key].double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-6)
        assert error < 2e-3, key  # convolutions in TF32 are the same on both roads


@pytest.mark.gpu
def test_bf16_autocast_trains_on_a_gpu() -> None:
    """Less memory than the layers one by one, and gradients as close as two roundings of bfloat16 allow."""
    x = frames("time first").repeat(2, 8, 1, 12, 12).movedim(2, -1).contiguous().movedim(-1, 2).cuda()
    peaks, found = [], []
    torch.manual_seed(0)
    net = PooledConv(3, 64, 3, "max", fires=False).cuda()
    for hooked in (False, True):
        if hooked:
            net.norm.register_forward_hook(lambda *given: None)
        net.norm.reset_running_stats()
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.autocast("cuda", torch.bfloat16):
                found.append(results(net, x))
        assert found[-1]["y"].dtype == torch.bfloat16
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < peaks[1]
    for key, wanted in found[-1].items():
        error = (found[1][key].double() - wanted.double()).norm() / wanted.double().norm()
        assert error < (0.1 if key == "x" else 0.03), key
