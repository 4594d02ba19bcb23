"""Convolutions that keep the spikes they read as bits: results and gradients of the plain operator, who uses them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.kernels.bits import check_spikes, pack
from spikeloom.models import create_model
from spikeloom.models.maxformer import IMAGENET, MaxFormer
from spikeloom.models.maxformer_embed import EMBEDS, Embed
from spikeloom.neurons import LIF
from spikeloom.synapses import Conv2d, NormNeuron, SpikeConv2d, SpikeLinear
from spikeloom.synapses.spike_conv import Window, spike_conv

CASES: dict[str, tuple[int, int, int, bool, Window]] = {  # C, C', kernel, bias, window
    "3x3": (6, 4, 3, False, ((1, 1), (1, 1), (1, 1), 1)),
    "strided-bias": (6, 4, 3, True, ((2, 2), (1, 1), (1, 1), 1)),
    "1x1": (6, 4, 1, False, ((1, 1), (0, 0), (1, 1), 1)),
    "1x1-strided-bias": (6, 4, 1, True, ((2, 2), (0, 0), (1, 1), 1)),
    "depthwise-bias": (6, 6, 5, True, ((1, 1), (2, 2), (1, 1), 6)),
    "grouped-dilated": (6, 4, 3, False, ((2, 1), (2, 1), (1, 2), 2)),
    "one-channel": (1, 3, 3, True, ((1, 1), (1, 1), (1, 1), 1)),
}


def spikes(*shape: int, seed: int = 0) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3).double()


def bytes_kept(call: Callable[[], Any]) -> tuple[int, set[torch.dtype]]:
    """Bytes and dtypes of the storages that backward keeps, each counted once."""
    kept: dict[int, tuple[int, torch.dtype]] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes(), t.dtype
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        call()
    return sum(size for size, _ in kept.values()), {dtype for _, dtype in kept.values()}


@pytest.fixture
def bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep bits wherever the tensors are."""
    monkeypatch.setattr(sys.modules["spikeloom.synapses.spike_conv"], "keeps_bits", lambda *tensors: True)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "batch-outside", "every-second"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_plain_operator(case: str, dtype: torch.dtype, layout: str, device: str) -> None:
    before, after, side, has_bias, window = CASES[case]
    maps = spikes(5, before, 7, 9).to(device, dtype)
    if layout == "channels-last":
        maps = maps.contiguous(memory_format=torch.channels_last)
    elif layout == "batch-outside":
        maps = maps.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "every-second":
        maps = maps.repeat_interleave(2, 3)[..., ::2]
    maps.requires_grad_()
    torch.manual_seed(0)
    weight = torch.randn(after, before // window[3], side, side, dtype=dtype).to(device).requires_grad_()
    bias = torch.randn(after, dtype=dtype).to(device).requires_grad_() if has_bias else None
    wanted = F.conv2d(maps, weight, bias, *window)
    y = spike_conv(maps, weight, bias, window)
    tolerance = {"rtol": 1e-10, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(y, wanted, **tolerance)
    leaves = [maps, weight, *([] if bias is None else [bias])]
    grad = torch.randn(wanted.shape, dtype=dtype).to(device)
    ours = torch.autograd.grad(y, leaves, grad)
    assert wanted.abs().max() > 0.5
    for got, expected in zip(ours, torch.autograd.grad(wanted, leaves, grad), strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, **tolerance)


def test_the_gradient_is_the_derivative() -> None:
    maps, weight = spikes(2, 3, 4, 5), torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)
    window: Window = ((2, 1), (1, 1), (1, 1), 1)
    assert torch.autograd.gradcheck(lambda w, b: spike_conv(maps, w, b, window), (weight, bias))


@pytest.mark.usefixtures("bits")
@pytest.mark.parametrize("order", ["time-first", "batch-first", "expanded"])
def test_the_layer_over_time(order: str) -> None:
    torch.manual_seed(0)
    ours, plain = SpikeConv2d(4, 6, 3, stride=2, padding=1), Conv2d(4, 6, 3, stride=2, padding=1)
    assert list(ours.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(ours.state_dict())
    x = spikes(3, 2, 4, 6, 6).float()
    if order == "batch-first":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif order == "expanded":
        x = x[:1].expand(3, -1, -1, -1, -1)
    for layer in (ours, plain):
        layer(x).square().sum().backward()
    assert torch.equal(ours(x), plain(x))
    for got, expected in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)
    with pytest.raises(ValueError, match=r"Conv2d got an input of shape \[4, 6, 6\]"):
        ours(x[0, 0])


@pytest.mark.usefixtures("bits")
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels-last"])
def test_what_is_kept(channels_last: bool) -> None:
    """A bit per spike and the weight; nothing of the spikes for a frozen weight."""
    layer = SpikeConv2d(16, 8, 3, padding=1, bias=False)
    x = spikes(4, 2, 16, 8, 8).float()
    if channels_last:
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    x.requires_grad_()
    size, dtypes = bytes_kept(lambda: layer(x))
    assert (size, dtypes) == (x.numel() // 8 + layer.weight.nbytes, {torch.uint8, torch.float32})
    layer.weight.requires_grad_(False)
    assert bytes_kept(lambda: layer(x))[0] == layer.weight.nbytes
    y = layer(x)
    y.add_(1)  # as the plain operator's result may be
    expected = torch.autograd.grad(F.conv2d(x.flatten(0, 1), layer.weight, padding=1).sum(), x)[0]
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], expected)


@pytest.mark.usefixtures("bits")
@pytest.mark.parametrize(
    "words", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}], ids=["same", "circular"]
)
def test_other_paddings_take_the_plain_operator(words: dict[str, Any]) -> None:
    layer, x = SpikeConv2d(4, 4, 3, **words), spikes(2, 2, 4, 5, 5).float()
    plain = Conv2d(4, 4, 3, **words)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))
    assert torch.uint8 not in bytes_kept(lambda: layer(x))[1]


def test_autocast_casts_the_operands_and_the_gradients_come_back() -> None:
    window: Window = ((1, 1), (1, 1), (1, 1), 1)
    x = spikes(3, 8, 6, 6).float()
    weight, bias = torch.randn(4, 8, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = spike_conv(x, weight, bias, window), F.conv2d(x, weight, bias, *window)
        double = spike_conv(x.double(), weight.double(), None, window)
    assert y.dtype == wanted.dtype == torch.bfloat16
    assert double.dtype == torch.float64
    torch.testing.assert_close(y, wanted)
    for got, expected in zip(
        torch.autograd.grad(y.float().square().sum(), (weight, bias)),
        torch.autograd.grad(wanted.float().square().sum(), (weight, bias)),
        strict=True,
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=1e-1)


def test_a_second_derivative_is_refused() -> None:
    weight = torch.ones(2, 3, 1, 1, requires_grad=True)
    y = spike_conv(spikes(1, 3, 2, 2).float(), weight, None, ((1, 1), (0, 0), (1, 1), 1))
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(y.square().sum(), weight, create_graph=True)


def test_values_that_are_no_spikes_are_found() -> None:
    x = spikes(2, 1, 3, 4, 4).float()
    x[0, 0, 0, 0, 0], x[1, 0, 1, 2, 2] = 0.25, 2.0
    says = r"got an input of shape \[2, 1, 3, 4, 4\] in which 2 of 96 elements are no spikes, such as 0.25"
    with pytest.raises(ValueError, match=f"SpikeConv2d {says}"):
        SpikeConv2d(3, 2, 1, check=True)(x)
    with pytest.raises(ValueError, match="SpikeLinear got"):
        SpikeLinear(4, 2, check=True)(x)
    with pytest.raises(ValueError, match=f"pack {says}"):
        pack(x, check=True)
    with pytest.raises(ValueError, match="1 of 1 elements are no spikes, such as nan"):
        check_spikes(torch.tensor([torch.nan]), "here")
    SpikeConv2d(3, 2, 1)(x)
    good = x.clamp(0, 1).round()
    assert torch.equal(pack(good, check=True), pack(good))
    assert torch.equal(SpikeConv2d(3, 2, 1, check=True)(good).isfinite(), torch.ones(2, 1, 2, 4, 4, dtype=torch.bool))


def checked(net: nn.Module) -> nn.Module:
    """Every layer that takes its input for spikes looks, and every neuron fires now and then."""
    for module in net.modules():
        if isinstance(module, SpikeConv2d | SpikeLinear):
            module.check = True
        if isinstance(module, NormNeuron | nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)
            nn.init.constant_(module.bias, 0.5)
    return net


def plain_convolutions(net: nn.Module) -> list[str]:
    return [name for name, m in net.named_modules() if isinstance(m, Conv2d) and not isinstance(m, SpikeConv2d)]


@pytest.mark.parametrize("name", [name for name in EMBEDS if name != "avg"])
def test_embeddings_know_what_is_spikes(name: Any) -> None:
    """Only a convolution that reads the image or the membranes is plain."""
    torch.manual_seed(0)
    embed = checked(Embed(name, 16, 16))
    u = torch.randn(2, 2, 16, 16, 16)
    embed(LIF()(u), u)
    plan = EMBEDS[name]
    assert [key.split(".")[1] for key in plain_convolutions(embed)] == ([plan.main[0].name] if plan.real else [])


PLAIN = {
    "maxformer_10_384": r"embeds\.0\.convs\.embed1\.synapse",
    "max_resnet18": r"stem\.synapse|stages\.\d\.0\.shortcut\.synapse",
    "spikformer_small": r"stem\.stages\.0\.synapse",
    "qkformer_cifar": r"embeds\.0\.main\.0\.synapse|embeds\.[12]\.(main\.0|shortcut)\.synapse",  # sums of spikes
    "sdt_cifar_2_256": r"stem\.stages\.0\.synapse",
}
SMALL: dict[str, dict[str, Any]] = {
    "max_resnet18": {"stem_width": 8, "widths": (8, 16), "depths": (1, 1)},
    "spikformer_small": {"embed_dim": 32},
    "qkformer_cifar": {"embed_dim": 64, "depths": (1, 1, 1)},
    "sdt_cifar_2_256": {"embed_dim": 32, "depth": 1},
}


@pytest.mark.parametrize("name", PLAIN)
def test_models_know_what_is_spikes(name: str) -> None:
    torch.manual_seed(0)
    if name == "maxformer_10_384":
        small = replace(IMAGENET, embed_dim=64, num_heads=2, depths=(1, 1, 1), num_classes=3)
        net = checked(MaxFormer(replace(small, input_size=(32, 32))))
    else:
        net = checked(create_model(name, num_classes=3, **SMALL[name]))
    found = plain_convolutions(net)
    assert found
    assert all(re.fullmatch(PLAIN[name], key) for key in found)
    channels = 2 if name == "spikformer_small" else 3
    assert net(torch.rand(net.config.T, 2, channels, 32, 32)).isfinite().all()  # type: ignore[union-attr, arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [1, 64], ids=["dense", "depthwise"])
def test_bf16_autocast_on_a_gpu(groups: int) -> None:
    """The gradients of the plain layer; of the input, a sixteenth of its bytes is kept."""
    torch.manual_seed(0)
    ours, plain = (kind(64, 64, 3, padding=1, groups=groups, bias=False).cuda() for kind in (SpikeConv2d, Conv2d))
    plain.load_state_dict(ours.state_dict())
    x = spikes(4, 2, 14, 14, 64).cuda().bfloat16().movedim(-1, 2).requires_grad_()
    kept = {}
    grads = []
    for layer in (ours, plain):
        with torch.autocast("cuda", torch.bfloat16):
            kept[layer] = bytes_kept(lambda layer=layer: layer(x))[0] - 2 * layer.weight.numel()
            y = layer(x)
        assert y.dtype == torch.bfloat16
        grads.append([y, *torch.autograd.grad(y.float().square().mean(), (x, layer.weight))])
    assert kept[ours] * 16 == kept[plain] == x.nbytes
    for got, expected in zip(*grads, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2 * expected.abs().max().item())
