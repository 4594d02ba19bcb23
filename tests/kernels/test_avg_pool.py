"""Average pooling: the CUDA kernels on the CPU, on a GPU, and through nvcc; which of them a layer takes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from spikeloom_tests.kernels import test_norm_pool as one_pass
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from spikeloom.kernels import backends
from spikeloom.kernels.pool import average_pool, takes_average
from spikeloom.kernels.pool.avg_pool import Window, source
from spikeloom.synapses import AvgPool2d, layers

avg_pool = import_module("spikeloom.kernels.pool.avg_pool")
max_pool = import_module("spikeloom.kernels.pool.max_pool")  # the package exports a function of this name
NVCC = shutil.which("nvcc")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILED = [(3, 2, 1), (3, 1, 1), (2, 2, 0), (2, 1, 1), (5, 2, 2), (1, 2, 0)]
WINDOWS = [*TILED, (3, 3, 0), (2, 3, 1), (7, 1, 3), (4, 3, 2)]
SIZES = ((9, 10), (8, 7), (1, 1), (1, 2), (2, 1), (3, 4), (7, 7))
CHANNELS = {4: (12, 6, 5), 2: (16, 12, 5)}
"""By bytes per element: whole vectors, half vectors, one by one."""


class OnCpu(one_pass.OnCpu):
    """Stands in for `launch.Kernel`."""

    kernels = ("average", "spread")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(avg_pool, "Kernel", OnCpu)
    avg_pool._kernel.cache_clear()
    yield
    avg_pool._kernel.cache_clear()


def maps(dtype: torch.dtype, *shape: int) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 3
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def means(x: Tensor, pool: Any) -> tuple[Tensor, Tensor]:
    """The result of `pool` and the gradient of x, for an arriving gradient in x's type, on the CPU."""
    leaf = x.detach().requires_grad_()
    y = pool(leaf)
    arriving = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    (grad,) = torch.autograd.grad(y, leaf, arriving.to(y))
    assert grad.dtype == y.dtype == x.dtype
    return y.detach().cpu(), grad.cpu()


def fits(window: tuple[int, int, int], size: tuple[int, int]) -> bool:
    return window[0] <= min(size) + 2 * window[2]


def agree(x: Tensor, window: tuple[int, int, int], counts_padding: bool) -> None:
    """Values and gradients are torch's in float32, rounded once: bit by bit."""
    y, grad = means(x, lambda leaf: average_pool(leaf, *window, counts_padding))
    expected = means(
        x.cpu().float().contiguous(), lambda leaf: F.avg_pool2d(leaf, *window, count_include_pad=counts_padding)
    )
    assert torch.equal(y, expected[0].to(x.dtype)), (tuple(x.shape), window, counts_padding)
    assert torch.equal(grad, expected[1].to(x.dtype)), (tuple(x.shape), window, counts_padding)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("counts_padding", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
def test_every_window_on_the_cpu(emulated: None, window: tuple[int, int, int], counts_padding: bool) -> None:
    sizes = [size for size in SIZES if fits(window, size)]
    assert len(sizes) > 2
    for size in sizes:
        agree(maps(torch.float32, 2, 8, *size), window, counts_padding)


@pytest.mark.parametrize("window", [(3, 2, 1), (3, 1, 1), (3, 3, 0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_and_number_of_channels_on_the_cpu(
    emulated: None, dtype: torch.dtype, window: tuple[int, int, int]
) -> None:
    for channels in CHANNELS[dtype.itemsize]:
        for size in ((9, 10), (8, 7)):
            agree(maps(dtype, 3, channels, *size), window, False)


def test_maps_that_begin_within_a_vector(emulated: None) -> None:
    shape = (2, 5, 6, 8)  # M H W C
    memory = torch.randn(2 * 5 * 6 * 8 + 2, generator=torch.Generator().manual_seed(0))
    x = memory[2:].view(shape).permute(0, 3, 1, 2)
    assert x.data_ptr() % 16 == 8
    agree(x, (3, 2, 1), False)


def test_infinity_and_nan_stay_in_their_windows(emulated: None) -> None:
    x = maps(torch.float32, 2, 8, 9, 10)
    x[0, 0, 3, 3], x[0, 1, 8, 9], x[1, :, 0, 0] = torch.nan, torch.inf, -torch.inf
    for window in TILED:
        y, _ = means(x, lambda leaf, window=window: average_pool(leaf, *window, False))
        expected = F.avg_pool2d(x, *window, count_include_pad=False)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        (grad,) = torch.autograd.grad(average_pool(leaf, *window, False), leaf, y)
        leaf = leaf.detach().requires_grad_()
        (wanted,) = torch.autograd.grad(F.avg_pool2d(leaf, *window, count_include_pad=False), leaf, y)
        torch.testing.assert_close(grad, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("towards", ["0", "9"])
def test_a_rough_reciprocal_serves(emulated: None, monkeypatch: pytest.MonkeyPatch, towards: str) -> None:
    """A GPU's quick quotient is off by up to 2 units in the last place, and the mean is still correctly rounded."""

    def rough(*given: Any) -> str:
        quick = "__fdividef(1.0f, (float)n)"
        text = source(*given)
        assert quick in text
        return text.replace(quick, f"nextafterf(nextafterf(1.0f / (float)n, {towards}), {towards})")

    monkeypatch.setattr(avg_pool, "source", rough)
    agree(maps(torch.float32, 2, 4, 17, 16), (16, 1, 8), False)  # 8 x 8 to 16 x 16 pixels


@pytest.mark.parametrize("window", [(3, 2, 1), (3, 3, 0)], ids=str)
def test_lanes_counted_in_64_bits(
    emulated: None, monkeypatch: pytest.MonkeyPatch, window: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(avg_pool, "source", lambda *given: source(*given[:3], True))
    agree(maps(torch.float32, 2, 8, 9, 10), window, False)


def test_nothing_is_kept_for_backward(emulated: None) -> None:
    y = average_pool(maps(torch.float32, 2, 4, 6, 6).requires_grad_(), 3, 2, 1, False)
    assert y.grad_fn is not None
    assert y.grad_fn.saved_tensors == ()  # type: ignore[attr-defined]
    (grad,) = torch.autograd.grad(
        average_pool(leaf := maps(torch.float32, 2, 4, 6, 6).requires_grad_(), 2, 2, 0).sum(), leaf
    )
    assert torch.equal(grad, torch.full_like(grad, 0.25))  # a gradient that arrives expanded, one number for all


def test_a_second_derivative_is_refused(emulated: None) -> None:
    x = maps(torch.float32, 2, 4, 6, 6).requires_grad_()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(average_pool(x, 3, 2, 1).sum(), x, create_graph=True)


class Watched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Gpu(torch.Tensor):
    is_cuda = True


def test_where_the_kernel_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    x = maps(torch.float32, 2, 4, 6, 6).requires_grad_()
    assert not takes_average(x, 3, 2, 1)  # on a CPU
    x = x.detach().as_subclass(Gpu).requires_grad_()
    monkeypatch.setattr(backends, "choose", lambda backend, device: "cuda")
    assert not takes_average(x, 3, 2, 1)  # a subclass
    monkeypatch.setattr(max_pool, "is_plain", lambda t: True)
    assert takes_average(x, 3, 2, 1)
    assert takes_average(x.detach().bfloat16().requires_grad_(), 3, 2, 1)
    assert not takes_average(x.detach().double().requires_grad_(), 3, 2, 1)
    assert not takes_average(x.detach(), 3, 2, 1)  # not recorded
    assert not takes_average(x.detach().contiguous().requires_grad_(), 3, 2, 1)
    assert not takes_average(x, 3, 0, 1)
    assert not takes_average(x, 0, 1, 0)
    assert not takes_average(x, 3, 2, -1)
    assert not takes_average(x, 3, 2, 2)  # more padding than half of the window
    assert not takes_average(x, 7, 1, 0)  # a window larger than the map
    with Watched():
        assert not takes_average(x, 3, 2, 1)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "reference")  # a GPU without CuPy
    assert not takes_average(x, 3, 2, 1)


LAYERS: dict[str, tuple[dict[str, Any], bool]] = {
    "window": ({"kernel_size": 3, "stride": 2, "padding": 1}, True),
    "apart": ({"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}, True),
    "pairs": ({"kernel_size": (2, 2), "stride": (1, 1), "padding": (1, 1)}, True),
    "own stride": ({"kernel_size": 2}, True),
    "oblong": ({"kernel_size": (3, 2), "stride": 2}, False),
    "strides": ({"kernel_size": 3, "stride": (2, 1)}, False),
    "ceil": ({"kernel_size": 3, "stride": 2, "ceil_mode": True}, False),
    "divisor": ({"kernel_size": 2, "divisor_override": 3}, False),
}


@pytest.mark.parametrize("case", LAYERS)
def test_the_layer_hands_its_window_to_the_kernel(emulated: None, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    options, served = LAYERS[case]
    calls: list[Any] = []

    def seen(*given: Any) -> Tensor:
        calls.append(given[1:])
        return average_pool(*given)

    monkeypatch.setattr(layers, "takes_average", lambda x, kernel, stride, padding: True)
    monkeypatch.setattr(layers, "average_pool", seen)
    x = maps(torch.float32, 6, 4, 7, 6)
    y, grad = means(x, lambda leaf: AvgPool2d(**options)(leaf.unflatten(0, (2, 3))).flatten(0, 1))
    expected, wanted = means(x.contiguous(), nn.AvgPool2d(**options))
    assert torch.equal(y, expected)
    assert torch.equal(grad, wanted)
    assert len(calls) == served


@pytest.mark.gpu
@pytest.mark.parametrize("counts_padding", [False, True])
@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_window_on_a_gpu(dtype: torch.dtype, window: tuple[int, int, int], counts_padding: bool) -> None:
    for channels in (64, *CHANNELS[dtype.itemsize]):
        for size in ((33, 31), *SIZES):
            if fits(window, size):
                x = maps(dtype, 3, channels, *size).cuda()
                assert takes_average(x.requires_grad_(), *window)
                agree(x.detach(), window, counts_padding)


@pytest.mark.gpu
@pytest.mark.parametrize("stride", [1, 2])
def test_the_layer_on_a_gpu(monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    calls: list[Any] = []

    def seen(*given: Any) -> Tensor:
        calls.append(given[1:])
        return average_pool(*given)

    monkeypatch.setattr(layers, "average_pool", seen)
    layer = AvgPool2d(3, stride, 1, count_include_pad=False)
    x = maps(torch.bfloat16, 8, 96, 29, 28).cuda().unflatten(0, (2, 4)).requires_grad_()
    y = layer(x)
    assert calls == [(3, stride, 1, False)]
    with Watched():
        torch.testing.assert_close(y, layer(x), rtol=2**-7, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(y, layer(x), rtol=2**-7, atol=1e-6)
    assert len(calls) == 1


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("window", [(3, 2, 1), (3, 1, 1), (7, 1, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sources_compile_into_few_registers(
    tmp_path: Path, dtype: torch.dtype, window: tuple[int, int, int]
) -> None:
    """Two blocks of 256 threads fit, and of the window of an embedding five."""
    most = 48 if window == (3, 2, 1) else 104
    name = str(dtype).removeprefix("torch.")
    texts = source(name, 16 // dtype.itemsize, Window(*window, False)), source(name, 1, Window(*window, True), True)
    for text in texts:
        code = tmp_path / "code.cu"
        code.write_text(text)
        command = [str(NVCC), *one_pass.NVCC_FLAGS, "-o", "/dev/null", str(code)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr, done.stderr
        assert done.stderr.count("0 bytes spill stores") == 2, done.stderr
        assert max(map(int, re.findall(r"Used (\d+) registers", done.stderr))) <= most, done.stderr
