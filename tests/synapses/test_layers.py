"""Layers over time against the torch layer at each time step."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spikeloom import synapses
from spikeloom.synapses import BatchNorm1d, BatchNorm2d, Conv2d, channels_last, fold, over_time, unfold

T, B = 3, 4
FRAMES = (T, B, 6, 9, 8)

CASES: dict[str, tuple[tuple[object, ...], dict[str, object], tuple[int, ...]]] = {
    "conv1d": (("Conv1d", 6, 4, 3), {"padding": 1, "stride": 2, "groups": 2}, (T, B, 6, 11)),
    "conv2d": (("Conv2d", 6, 5, 3), {"padding": 1, "bias": False}, FRAMES),
    "conv2d grouped": (("Conv2d", 6, 4, (3, 2)), {"groups": 2, "stride": 2, "dilation": 2}, FRAMES),
    "conv2d replicate": (("Conv2d", 6, 4, 3), {"padding": 1, "padding_mode": "replicate"}, FRAMES),
    "conv transpose": (("ConvTranspose2d", 6, 4, 3), {"stride": 2, "output_padding": 1}, FRAMES),
    "linear": (("Linear", 8, 5), {}, (T, B, 8)),
    "linear tokens": (("Linear", 8, 5), {"bias": False}, (T, B, 7, 8)),
    "max pool": (("MaxPool2d", 2), {"ceil_mode": True}, FRAMES),
    "avg pool": (("AvgPool2d", 3), {"padding": 1}, FRAMES),
    "adaptive pool": (("AdaptiveAvgPool2d", (2, 3)), {}, FRAMES),
    "flatten": (("Flatten",), {}, FRAMES),
    "flatten space": (("Flatten", 2, -1), {}, FRAMES),
}


def pair(arguments: tuple[object, ...], options: dict[str, object]) -> tuple[nn.Module, nn.Module]:
    """The layer over time and the torch layer of the same name, with the same weights by way of the state dict."""
    name, *rest = arguments
    torch.manual_seed(0)
    ours, plain = getattr(synapses, str(name))(*rest, **options), getattr(nn, str(name))(*rest, **options)
    ours.load_state_dict(plain.state_dict())
    return ours, plain


@pytest.mark.parametrize("case", CASES)
def test_equals_the_torch_layer_at_each_time_step(case: str) -> None:
    arguments, options, shape = CASES[case]
    ours, plain = pair(arguments, options)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ours, plain = ours.double(), plain.double()
    y = ours(x)
    expected = torch.stack([plain(step) for step in x])
    # float64; a convolution of a larger batch may add in another order
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    (gradient_expected,) = torch.autograd.grad(expected, x, cotangent)
    torch.testing.assert_close(gradient, gradient_expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shape"), [("BatchNorm1d", (T, B, 6)), ("BatchNorm1d", (T, B, 6, 7)), ("BatchNorm2d", FRAMES)]
)
def test_batch_norm_takes_its_statistics_over_time_and_batch(name: str, shape: tuple[int, ...]) -> None:
    ours, plain = pair((name, 6), {})
    x = torch.randn(shape) * 3 + 1
    assert torch.equal(ours(x), plain(x.flatten(0, 1)).unflatten(0, (T, B)))
    for key, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    assert torch.equal(ours.eval()(x), plain.eval()(x.flatten(0, 1)).unflatten(0, (T, B)))


def test_transposed_convolution_takes_an_output_size() -> None:
    ours, plain = pair(("ConvTranspose2d", 6, 4, 3), {"stride": 2})
    x = torch.randn(FRAMES)
    torch.testing.assert_close(ours(x, output_size=[20, 18]), torch.stack([plain(s, output_size=[20, 18]) for s in x]))


@pytest.mark.parametrize("name", [n for n in synapses.__all__ if n[0].isupper() and hasattr(nn, n)])
def test_is_a_subclass_of_the_torch_layer(name: str) -> None:
    assert issubclass(getattr(synapses, name), getattr(nn, name))


@pytest.mark.parametrize("case", ["conv2d", "conv transpose", "max pool", "avg pool", "adaptive pool", "batch norm"])
def test_channels_last_stays(case: str) -> None:
    arguments, options, shape = CASES.get(case, (("BatchNorm2d", 6), {}, FRAMES))
    layer = pair(arguments, options)[0].to(memory_format=torch.channels_last)
    y = layer(channels_last(torch.randn(shape)))
    assert fold(y).is_contiguous(memory_format=torch.channels_last)
    assert not fold(y).is_contiguous()


def test_fold_is_a_view() -> None:
    for x in (torch.randn(FRAMES), channels_last(torch.randn(FRAMES))):
        assert fold(x).data_ptr() == x.data_ptr()
        assert unfold(fold(x), T).data_ptr() == x.data_ptr()
        assert torch.equal(unfold(fold(x), T), x)


def test_batch_first_memory_is_folded_without_a_copy() -> None:
    x = torch.randn(B, T, 6, 9, 8).transpose(0, 1)
    seen: list[Tensor] = []

    def layer(folded: Tensor) -> Tensor:
        seen.append(folded)
        return folded * 2

    y = over_time(layer, x)
    assert seen[0].data_ptr() == x.data_ptr()
    assert torch.equal(y, x * 2)
    assert y.stride() == x.stride()


@pytest.mark.parametrize(
    ("build", "shape", "wanted"),
    [
        (lambda: synapses.Conv2d(2, 4, 3), (8, 2, 34, 34), r"Conv2d got .* \[8, 2, 34, 34\]; expected \[T, B, C, H"),
        (lambda: synapses.Conv1d(2, 4, 3), (8, 2, 34), r"expected \[T, B, C, L\]"),
        (lambda: synapses.Linear(4, 4), (8, 4), r"expected \[T, B, D\]"),
        (lambda: synapses.BatchNorm1d(4), (8, 4), r"expected \[T, B, C\] or \[T, B, C, L\]"),
        (lambda: synapses.MaxPool2d(2), (4, 4), r"expected \[T, B, C, H, W\]"),
        (lambda: synapses.Flatten(), (4, 4), r"expected \[T, B, C\]"),
        (lambda: synapses.Dropout(), (4, 4), r"expected \[T, B, C\]"),
    ],
)
def test_wrong_rank_says_what_is_expected(build: Callable[[], nn.Module], shape: tuple[int, ...], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        build()(torch.zeros(shape))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="start_dim=0"):
        synapses.Flatten(0)
    with pytest.raises(ValueError, match="return_indices"):
        synapses.MaxPool2d(2, return_indices=True)(torch.zeros(FRAMES))


def test_dropout_uses_one_mask_for_all_time_steps() -> None:
    x = torch.ones(T, 50, 40)
    y = synapses.Dropout(0.5)(x)
    assert all(torch.equal(step, y[0]) for step in y)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    # 2,000 draws of probability 0.5: five standard deviations are 0.056
    assert abs((y == 0).float().mean().item() - 0.5) < 0.056
    assert synapses.Dropout(0.25).eval()(x) is x
    inplace = synapses.Dropout(0.5, inplace=True)
    assert inplace(x) is x


def test_a_still_image_is_convolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, image = Conv2d(3, 4, 3, padding=1), torch.rand(2, 3, 5, 6)
    sizes = []
    once = layer._conv_forward
    monkeypatch.setattr(layer, "_conv_forward", lambda x, *rest: (sizes.append(len(x)), once(x, *rest))[1])
    frames = channels_last(image.expand(7, *image.shape))
    assert frames.stride(0) == 0
    assert torch.equal(frames, image.expand(7, *image.shape))
    y = layer(frames)
    assert sizes == [2]
    torch.testing.assert_close(y, torch.stack([once(image, layer.weight, layer.bias)] * 7))
    y.sum().backward()
    assert layer.weight.grad is not None
    expected = torch.autograd.grad(7 * once(image, layer.weight, layer.bias).sum(), layer.weight)[0]
    torch.testing.assert_close(layer.weight.grad, expected)
    with FlopCounterMode(display=False) as watched:  # whoever watches operators sees every step
        layer(channels_last(image.expand(7, *image.shape)))
    assert watched.get_total_flops() == 7 * 2 * 2 * 4 * 3 * 9 * 5 * 6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4, 6, 9, 8), (1, 50, 24), (3, 4, 6, 7)], ids=str)
def test_batch_normalisation_on_a_gpu_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    kind, plain_kind = (BatchNorm2d, nn.BatchNorm2d) if len(shape) == 5 else (BatchNorm1d, nn.BatchNorm1d)
    ours, plain = kind(shape[2]).cuda(), plain_kind(shape[2]).cuda()
    for norm in (ours, plain):
        nn.init.uniform_(norm.weight, -1, 1, generator=torch.Generator("cuda").manual_seed(0))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to("cuda", dtype) * 2 + 1
    x, y = (values.clone().requires_grad_() for _ in range(2))
    rough = {"rtol": 2**-6, "atol": 2**-6} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    out, expected = ours(x), plain(y.float().flatten(0, 1)).unflatten(0, shape[:2])
    torch.testing.assert_close(out.float(), expected, **rough)
    assert out.dtype == dtype
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(2)).cuda()
    out.backward(grad.to(dtype))
    expected.backward(grad.to(dtype).float())
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad.float(), y.grad.float(), **rough)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(ours, name).grad, getattr(plain, name).grad, rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(ours.running_mean, plain.running_mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.running_var, plain.running_var, rtol=1e-4, atol=1e-4)
    assert ours.num_batches_tracked == 1


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_a_strided_kernel_of_one_pixel(stride: int, bias: bool) -> None:
    """The sizes are those for which oneDNN's own gradient of the weight ends the process."""
    ours = Conv2d(4, 8, 1, stride=stride, bias=bias).to(memory_format=torch.channels_last)
    plain = nn.Conv2d(4, 8, 1, stride=stride, bias=bias).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.rand(1, 9, 4, 16, 16).flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (1, 9))
    x.requires_grad_()
    y = x.detach().double().contiguous().requires_grad_()
    for _ in range(20):
        ours.zero_grad()
        x.grad = None
        out = ours(x)
        out.square().sum().backward()
    expected = plain(y[0])
    torch.testing.assert_close(out[0].double(), expected, rtol=1e-5, atol=1e-6)
    expected.square().sum().backward()
    for a, b in [(x, y), *zip(ours.parameters(), plain.parameters(), strict=True)]:
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-5)
