"""Layers that keep spikes as bits for backward: results and gradients of the plain operators."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from spikeloom.kernels import backends
from spikeloom.spiking_attention import SSA, SpikingMLP, products
from spikeloom.synapses import MaxPool2d, NormNeuron, Projection
from spikeloom.synapses.spike_linear import keeps_bits, spike_linear


@pytest.fixture
def bits(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Keep bits, or do not, wherever the tensors are."""

    def choose(on: bool) -> None:
        for module in (products, sys.modules["spikeloom.synapses.spike_linear"]):
            monkeypatch.setattr(module, "keeps_bits", lambda *tensors: on)

    return choose


def numbers(*shape: int) -> Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0))


def lively(net: nn.Module) -> nn.Module:
    """Normalisations that make every layer fire, about one neuron in three."""
    for module in net.modules():
        if isinstance(module, NormNeuron):
            nn.init.constant_(module.weight, 2.0)
            nn.init.constant_(module.bias, 0.5)
    return net


def results(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and all gradients of a weighted sum of it."""
    net.zero_grad()
    leaf = x.clone().requires_grad_()
    y = net(leaf)
    (y * torch.linspace(-1, 1, y.shape[-1], device=y.device)).sum().backward()
    assert leaf.grad is not None
    found = {"y": y.detach(), "x": leaf.grad}
    return found | {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("order", ["qk_v", "q_kv"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_and_mlp_with_bits(bits: Callable[[bool], None], order: str, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    net = lively(nn.Sequential(SSA(32, 4, order=order), SpikingMLP(32, 64))).to(device, dtype)  # type: ignore[arg-type]
    x = numbers(4, 2, 24, 32).to(device, dtype)
    bits(False)
    plain = results(net, x)
    bits(True)
    packed = results(net, x)
    assert plain.keys() == packed.keys()
    assert 0.05 < plain["y"].mean() < 0.9
    for name, value in plain.items():
        scale = value.abs().max().item()
        assert name.endswith("bias") or scale > 0, name
        tolerance = 1e-12 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(packed[name], value, rtol=0, atol=tolerance * max(scale, 1.0))
    assert torch.equal(packed["y"], plain["y"])


def test_the_linear_map_alone(device: str) -> None:
    spikes = (numbers(3, 2, 5, 11) > 0).double().to(device).requires_grad_()
    weight, bias = (torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in ((7, 11), (7,)))
    y = spike_linear(spikes, weight, bias)
    expected = nn.functional.linear(spikes, weight, bias)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, (spikes, weight, bias), grad)
    for got, wanted in zip(ours, torch.autograd.grad(expected, (spikes, weight, bias), grad), strict=True):
        torch.testing.assert_close(got, wanted)


def test_nothing_is_packed_on_a_cpu_or_without_gradients(device: str) -> None:
    x, weight = torch.ones(2, 3, device=device), torch.ones(4, 3, device=device)
    assert not keeps_bits(x, weight)
    assert keeps_bits(x, weight.requires_grad_()) == (device == "cuda")
    with torch.no_grad():
        assert not keeps_bits(x, weight)


class Gpu(torch.Tensor):
    is_cuda = True


def test_where_bits_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.ones(2, 3).as_subclass(Gpu), torch.ones(4, 3).requires_grad_()
    monkeypatch.setattr(backends, "choose", lambda backend, device: "cuda")
    assert not keeps_bits(x, weight)  # a subclass
    monkeypatch.setattr(sys.modules["spikeloom.synapses.spike_linear"], "is_plain", lambda t: True)
    assert keeps_bits(x, weight)
    with forward_ad.dual_level():
        assert not keeps_bits(x, weight)
    monkeypatch.setattr(backends, "choose", lambda backend, device: "reference")  # a GPU without CuPy
    assert not keeps_bits(x, weight)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mix_under_autocast(bits: Callable[[bool], None], packed: bool, dtype: torch.dtype) -> None:
    qkv = (numbers(2, 2, 8, 24) > 0).to(dtype).as_subclass(Gpu).requires_grad_()
    bits(packed)
    with torch.autocast("cpu", torch.bfloat16):
        y = products.mix(qkv, 2, 0.125)
    assert y.dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)  # as of the plain operators
    (gradient,) = torch.autograd.grad(y.sum(), qkv)
    assert gradient.dtype == dtype


def test_a_frozen_map_keeps_no_spikes(device: str) -> None:
    spikes, weight = torch.ones(2, 3, device=device).requires_grad_(), torch.ones(4, 3, device=device)
    y = spike_linear(spikes, weight, None)
    y.add_(1)  # as the plain operator's result may be
    y.sum().backward()
    assert torch.equal(spikes.grad, torch.full((2, 3), 4.0, device=device))  # type: ignore[arg-type]


def test_a_second_derivative_is_refused(bits: Callable[[bool], None]) -> None:
    bits(True)
    x = numbers(2, 1, 5, 32).clamp(max=1).float().requires_grad_()
    weight = torch.ones(7, 32, requires_grad=True)
    for y in (spike_linear(x, weight, None), products.mix(x[..., :30], 2, 0.125)):
        with pytest.raises(RuntimeError, match="create_graph=True"):
            torch.autograd.grad(y.square().sum(), x, create_graph=True)


def test_autocast_leaves_double_precision_as_it_is() -> None:
    x, weight = torch.ones(2, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert spike_linear(x, weight, None).dtype == torch.nn.functional.linear(x, weight).dtype == torch.float64


@pytest.mark.gpu
def test_what_is_kept_on_a_gpu() -> None:
    """Bytes per element that backward keeps, in bfloat16: one bit per spike, one byte per pooled value."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def bytes_of(net: nn.Module, x: Tensor) -> int:
        kept.clear()
        known = {p.untyped_storage().data_ptr() for p in net.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cuda", torch.bfloat16):
            net(x)
        return sum(size for address, size in kept.items() if address not in known)

    x = (numbers(4, 8, 64, 128) > 0).to("cuda", torch.bfloat16).requires_grad_()
    rows = x.numel() // 128
    projection = Projection(128, 128, spikes=True).cuda()
    # the input of the normalisation; the bits; the cast weight and the statistics
    assert bytes_of(projection, x) < 2 * x.numel() + x.numel() / 8 + 2 * 128 * 128 + 100 * 128
    assert bytes_of(Projection(128, 128).cuda(), x) > 4 * x.numel()
    frames = x.view(4, 8, 128, 64).detach().unflatten(3, (8, 8)).movedim(2, -1).contiguous().movedim(-1, 2)
    assert bytes_of(MaxPool2d(3, 2, 1), frames.requires_grad_()) == rows * 128 // 4


@pytest.mark.gpu
def test_bf16_autocast_trains_a_block_on_a_gpu() -> None:
    torch.manual_seed(0)
    net = lively(nn.Sequential(SSA(64, 4), SpikingMLP(64, 128))).cuda()
    x = numbers(4, 8, 49, 64).cuda().bfloat16()
    with torch.autocast("cuda", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    assert set(y.unique().tolist()) == {0.0, 1.0}
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
