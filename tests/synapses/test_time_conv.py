"""The convolution along time: as lines, as an image, by frequencies; what each is like on a GPU."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom import Stream
from spikeloom.energy import count
from spikeloom.models import create_model, parameter_groups
from spikeloom.models.delay_readout import delay_loss
from spikeloom.synapses import Dcls1d, DelayConv1d, frequency_conv, time_conv
from spikeloom.synapses.frequency_conv import tables
from spikeloom.synapses.time_conv import along_time, choice

EXACT = {torch.float64: 1e-13, torch.float32: 2e-6}
SHAPES = [
    (13, 3, 4, 5, 7, 6, 3),
    (13, 3, 4, 5, 7, 6, 0),
    (13, 3, 4, 5, 7, 6, 6),
    (13, 3, 4, 5, 7, 0, 0),
    (12, 2, 3, 4, 6, 2, 2),
    (12, 2, 3, 4, 6, 0, 3),
    (2, 1, 1, 1, 7, 6, 3),
    (4, 2, 3, 2, 1, 0, 0),
]
"""T, B, I, O, K, before, behind: odd and even numbers of frequencies, one tap, fewer steps than taps."""


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def lines(x: Tensor, kernel: Tensor, bias: Tensor | None, before: int, behind: int, stride: int, groups: int) -> Tensor:
    padded = F.pad(x.permute(1, 2, 0), (before, behind))
    return F.conv1d(padded, kernel.transpose(1, 2), bias, stride, groups=groups).permute(2, 0, 1)


def close(got: Tensor, wanted: Tensor, rounding: float) -> None:
    assert got.shape == wanted.shape
    error = (got.detach().cpu().double() - wanted).norm() / wanted.norm()
    assert error <= rounding, float(error)


def against_lines(form: Any, given: tuple[Tensor, ...], rounding: float, *rest: int, device: str = "cpu") -> Tensor:
    """Compare a form's result and gradients with those of lines in float64; returns the result."""
    leaves = [t.detach().to(device).requires_grad_() for t in given]
    twins = [t.detach().double().requires_grad_() for t in given]
    y, wanted = form(*leaves), lines(*twins, *rest)  # type: ignore[arg-type]
    grad = drawn(*wanted.shape, seed=9).to(y.dtype)
    y.backward(grad.to(device))
    wanted.backward(grad.double())
    close(y, wanted.detach(), rounding)
    for leaf, twin in zip(leaves, twins, strict=True):
        assert leaf.grad is not None
        assert twin.grad is not None
        close(leaf.grad, twin.grad, rounding)
    return y


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("method", ["direct", "frequencies"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forms_are_the_convolution_of_lines(shape: tuple[int, ...], method: Any, dtype: torch.dtype) -> None:
    T, B, I, O, K, before, behind = shape  # noqa: E741
    given = drawn(T, B, I, seed=1, dtype=dtype), drawn(O, K, I, seed=2, dtype=dtype), drawn(O, seed=3, dtype=dtype)

    def form(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return along_time(x, lambda asked: kernel, bias, before=before, behind=behind, method=method)

    y = against_lines(form, given, EXACT[dtype], before, behind, 1, 1)
    assert y.dtype == dtype
    assert y.is_contiguous() or dtype == torch.float64


@pytest.mark.parametrize("image", [True, False])
@pytest.mark.parametrize(("stride", "groups"), [(2, 1), (1, 2), (3, 2)])
def test_strides_and_groups(monkeypatch: pytest.MonkeyPatch, image: bool, stride: int, groups: int) -> None:
    monkeypatch.setattr(time_conv, "_as_image", lambda x: image)
    given = drawn(12, 2, 4, seed=1), drawn(6, 5, 4 // groups, seed=2), drawn(6, seed=3)

    def form(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return along_time(x, lambda asked: kernel, bias, before=3, behind=2, stride=stride, groups=groups)

    against_lines(form, given, 1e-13, 3, 2, stride, groups)


def test_neither_input_nor_kernel_is_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    real = F.conv2d

    def spy(image: Tensor, kernel: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append((image, kernel))
        return real(image, kernel, *rest, **options)

    monkeypatch.setattr(time_conv.F, "conv2d", spy)
    layer = DelayConv1d(4, 6, 2, 7, tail="lossless")
    x = drawn(9, 3, 4, seed=1, dtype=torch.float32)
    y = layer(x)
    ((image, kernel),) = seen
    assert image.data_ptr() == x.data_ptr()
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert image.shape == (1, 4, 9, 3)
    assert kernel.shape == (6, 4, 7, 1)
    assert y.is_contiguous()
    layer(x.transpose(0, 1).contiguous().transpose(0, 1))
    assert seen[1][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tail", ["official", "none", "lossless"])
@pytest.mark.parametrize("sizes", [[13], [1] * 13, [2, 9, 2]], ids=str)
def test_a_stream_by_frequencies(tail: Any, sizes: list[int]) -> None:
    layer = DelayConv1d(4, 6, 2, 7, tail=tail, bias=True, method="frequencies").double()
    x = drawn(13, 3, 4, seed=1)
    whole = layer(x)
    stream = Stream(layer)
    chunks = x.split(sizes)
    parts = [*(stream(chunk) for chunk in chunks[:-1]), stream(chunks[-1], tail=True)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    layer.method = "direct"
    torch.testing.assert_close(layer(x), whole, rtol=1e-12, atol=1e-12)


def test_energy_is_that_of_the_direct_form() -> None:
    layer, x = DelayConv1d(4, 6, 2, 7, tail="none"), (drawn(9, 3, 4, seed=1) > 0.8).float()
    found = []
    for method in ("direct", "frequencies"):
        layer.method = method  # type: ignore[assignment]
        with torch.no_grad(), count(layer, strict=True) as run:
            layer(x)
        (counted,) = run.counts().layers
        found.append(int(counted.sop.sum()))
    assert found[0] == found[1] > 0


def test_rows_by_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequency_conv, "_AT_ONCE", 5 * (4 * 5 + 3 * (4 + 5)))
    given = drawn(13, 3, 4, seed=1), drawn(5, 7, 4, seed=2), drawn(5, seed=3)

    def form(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return frequency_conv.frequency_conv(x, kernel, 6, 16) + bias

    against_lines(form, given, 1e-13, 6, 3, 1, 1)


def test_tables_that_a_graph_reads_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frequency_conv, "_read_by_graphs", {})
    held = []
    for captured, steps in ((True, 9), (False, 8)):
        monkeypatch.setattr(frequency_conv, "_capturing", lambda kernel, answer=captured: answer)
        frequency_conv.frequency_conv(torch.zeros(steps, 1, 2), torch.zeros(2, 5, 2), 4, steps)
        held.append(weakref.ref(frequency_conv.tables(steps, 5, 4, steps, torch.float32, torch.device("cpu"))[0]))
    frequency_conv.tables.cache_clear()
    assert [ref() is not None for ref in held] == [True, False]


def test_gradients_only_where_they_are_asked_for() -> None:
    x, kernel = drawn(9, 2, 3, seed=1), drawn(4, 5, 3, seed=2)
    for needs in ((True, False), (False, True)):
        leaves = [t.clone().requires_grad_(need) for t, need in zip((x, kernel), needs, strict=True)]
        frequency_conv.frequency_conv(leaves[0], leaves[1], 4, 11).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == list(needs)
    leaf = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="method='direct'"):
        torch.autograd.grad(frequency_conv.frequency_conv(leaf, kernel, 4, 11).sum(), leaf, create_graph=True)


def test_as_many_rows_as_the_docstring_says() -> None:
    ahead, of_kernel, back = tables(116, 31, 30, 131, torch.float64, torch.device("cpu"))
    assert ahead.shape == (218, 116)
    assert of_kernel.shape == (218, 31)
    assert back.shape == (131, 218)


def test_float_arithmetic_by_frequencies_is_as_exact_as_tap_by_tap() -> None:
    x = (drawn(60, 4, 64, seed=1) > 0.8).float()
    kernel = drawn(32, 31, 64, seed=2).float()
    wanted = lines(x.double(), kernel.double(), None, 30, 15, 1, 1)
    close(along_time(x, lambda asked: kernel, None, before=30, behind=15, method="frequencies"), wanted, 1e-6)


def test_autocast_decides_the_type_of_the_result_alone() -> None:
    layer, x = DelayConv1d(4, 6, 2, 7, method="frequencies"), drawn(9, 3, 4, seed=1).float()
    whole = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, whole.bfloat16())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Dcls1d(2, 2, 1, 2, 1, 5, method="frequencies")(torch.zeros(9, 1, 2)), "stride 2"),
        (lambda: DelayConv1d(2, 2, 1, 5, groups=2, method="frequencies")(torch.zeros(9, 1, 2)), "2 groups"),
        (lambda: Dcls1d(2, 2, 1, 1, 5, 5, method="frequencies")(torch.zeros(9, 1, 2)), "5 steps of padding"),
        (lambda: Dcls1d(2, 2, 1, method="fft"), "expected one of auto, direct, frequencies"),
        (
            lambda: frequency_conv.frequency_conv(torch.zeros(3, 1, 2), torch.zeros(2, 5, 2), 5, 3),
            "lead from 0 to K - 1",
        ),
    ],
)
def test_what_does_not_go_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_a_method_that_is_set_later_is_looked_at() -> None:
    layer = DelayConv1d(2, 2, 1, 5)
    layer.method = "fourier"  # type: ignore[assignment]
    with pytest.raises(ValueError, match="method is 'fourier'; expected one of auto, direct, frequencies"):
        layer(torch.zeros(9, 1, 2))


def test_no_samples_by_frequencies() -> None:
    x, kernel = torch.zeros(9, 0, 3, requires_grad=True), torch.ones(2, 5, 3, requires_grad=True)
    y = frequency_conv.frequency_conv(x, kernel, 4, 11)
    y.sum().backward()
    assert list(y.shape) == [11, 0, 2]
    assert x.grad is not None
    assert kernel.grad is not None
    assert list(x.grad.shape) == [9, 0, 3]
    assert not kernel.grad.any()


def network(method: str, device: str, **sizes: Any) -> Any:
    torch.manual_seed(0)
    net = create_model("delays_ssc_3l_2kc", **{"hidden": 64, "max_delay": 15, "dropout": 0.0, **sizes}).to(device)
    for layer in net.delayed():
        layer.method = method
        layer.set_sigma_(0.23)
    return net.train()


def counts(device: str, T: int = 30, B: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.full((T, B, 140), 0.1), generator=generator)
    return x.to(device), (torch.arange(B) % 35).to(device)


def test_a_network_learns_the_same_either_way() -> None:
    x, labels = counts("cpu", B=4)
    found = []
    for method in ("direct", "frequencies"):
        net = network(method, "cpu", hidden=16, max_delay=7).double()
        delay_loss(net(x.double()), labels).backward()
        found.append({key: p.grad for key, p in net.named_parameters() if p.grad is not None})
    assert len(found[0]) == 14
    for key, wanted in found[0].items():
        close(found[1][key], wanted, 1e-9)


def test_a_compiler_sees_one_graph() -> None:
    layer, x = DelayConv1d(6, 5, 2, 7), drawn(9, 3, 6, seed=1).float()
    found = []
    for run in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.zero_grad()
        y = run(x)
        y.square().sum().backward()
        assert layer.P.grad is not None
        found.append((y.detach(), layer.P.grad.clone()))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["direct", "frequencies"])
@pytest.mark.parametrize("shape", [*SHAPES, (40, 8, 64, 96, 31, 30, 15)], ids=str)
def test_forms_on_a_gpu(shape: tuple[int, ...], method: Any) -> None:
    T, B, I, O, K, before, behind = shape  # noqa: E741
    given = (drawn(T, B, I, seed=1).float(), drawn(O, K, I, seed=2).float(), drawn(O, seed=3).float())

    def form(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        return along_time(x, lambda asked: kernel, bias, before=before, behind=behind, method=method)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        y = against_lines(form, given, 5e-6, before, behind, 1, 1, device="cuda")
    assert y.is_contiguous()


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["direct", "frequencies"])
def test_a_network_on_a_gpu_is_that_on_a_cpu(method: str) -> None:
    """Forward in evaluation and gradients in training; TF32 off, so that spikes are the same."""
    found = []
    for device, form in (("cpu", "direct"), ("cuda", method)):
        net = network(form, device)
        x, labels = counts(device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            y = net(x)
            delay_loss(y, labels).backward()
        found.append(
            [y.detach().cpu().double(), *(p.grad.cpu().double() for p in net.parameters() if p.grad is not None)]
        )
    close(found[1][0], found[0][0], 1e-4)
    for got, wanted in zip(found[1][1:], found[0][1:], strict=True):
        close(got, wanted, 1e-3)


@pytest.mark.gpu
def test_autocast_on_a_gpu_builds_the_kernel_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    types: list[torch.dtype] = []
    real = F.conv2d

    def spy(image: Tensor, kernel: Tensor, *rest: Any, **options: Any) -> Tensor:
        types.append(kernel.dtype)
        return real(image, kernel, *rest, **options)

    monkeypatch.setattr(time_conv.F, "conv2d", spy)
    layer = DelayConv1d(32, 64, 2, 15).cuda()
    x = (drawn(20, 8, 32, seed=1) > 0.8).float().cuda().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        y = layer(x)
    y.float().square().sum().backward()
    assert types == [torch.bfloat16]
    assert y.dtype == torch.bfloat16
    assert layer.P.grad is not None
    assert layer.P.grad.dtype == torch.float32
    twin = DelayConv1d(32, 64, 2, 15).double()
    twin.load_state_dict(layer.state_dict())
    wanted = twin(x.detach().cpu().double())
    close(y.detach().float(), wanted.detach(), 2**-7)
    wanted.square().sum().backward()
    assert twin.P.grad is not None
    close(layer.P.grad, twin.P.grad, 2**-5)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["direct", "frequencies"])
def test_a_training_step_as_a_cuda_graph(method: str) -> None:
    """Replays train as calls do."""
    losses: list[list[float]] = []
    for captured in (False, True):
        net = network(method, "cuda")
        x, labels = counts("cuda")
        optimizer = torch.optim.Adam(parameter_groups(net), fused=True, capturable=True)

        def step(net: Any = net, optimizer: Any = optimizer, x: Tensor = x, labels: Tensor = labels) -> Tensor:
            loss = delay_loss(net(x), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            net.settle_()
            return loss.detach()

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        if captured:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                place = step()
            found = []
            for _ in range(3):
                graph.replay()
                found.append(float(place))
        else:
            found = [float(step()) for _ in range(3)]
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("wanted", "change"),
    [
        ("frequencies", {}),
        ("direct", {"is_cuda": False}),
        ("direct", {"dtype": torch.float64}),
        ("direct", {"taps": 9}),
        ("direct", {"channels": 35}),
        ("direct", {"training": False}),
    ],
    ids=["wide", "cpu", "double", "short", "narrow", "evaluation"],
)
def test_the_faster_form_is_chosen(wanted: str, change: dict[str, Any]) -> None:
    case = {"is_cuda": True, "dtype": torch.float32, "taps": 31, "channels": 512, "training": True} | change
    x: Any = SimpleNamespace(is_cuda=case["is_cuda"], dtype=case["dtype"], device=torch.device("cuda"))
    assert choice(x, case["taps"], case["channels"], case["training"]) == wanted
    with torch.no_grad():
        assert choice(x, case["taps"], case["channels"], case["training"]) == "direct"
