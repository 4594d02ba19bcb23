"""Spike-driven attention and MLP against the same written plainly with torch's convolutions and pools."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention import SDSA, MembraneMLP
from spikeloom.spiking_attention.membrane import MembraneProjection

T, B, C, H, W, HEADS = 4, 2, 16, 3, 5, 4


def stream(seed: int = 0, *shape: int) -> Tensor:
    """A membrane stream, float64."""
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(*(shape or (T, B, C, H, W)), generator=generator, dtype=torch.float64)


def lively(module: nn.Module, seed: int = 0) -> Any:
    """Weights and normalisations at which all neurons fire now and then, float64."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        width = parameter.shape[1] if parameter.ndim > 1 else 1
        noise = torch.randn(parameter.shape, generator=generator)
        shift = 1.0 if name.endswith(("fire.weight", "norm.weight")) else 0.5 if name.endswith("fire.bias") else 0.0
        parameter.data.copy_(shift + noise / width**0.5 * (2.0 if parameter.ndim > 1 else 0.3))
    return module.double()


def spikes_of(u: Tensor, v_threshold: float = 1.0) -> Tensor:
    spikes: Tensor = LIF(v_threshold=v_threshold, backend="reference")(u)
    return spikes


def conv_norm(part: Any, x: Tensor) -> Tensor:
    """1 x 1 convolution and batch normalisation of the batch, on maps `[T, B, C, H, W]`."""
    norm = part.norm if hasattr(part, "norm") else part.fire
    y = nn.functional.conv2d(x.flatten(0, 1), part.synapse.weight[..., None, None], part.synapse.bias)
    y = nn.functional.batch_norm(y, None, None, norm.weight, norm.bias, training=True)
    return y.unflatten(0, x.shape[:2])


def plain_sdsa(layer: SDSA, s: Tensor, u: Tensor) -> Tensor:
    """u' of SDSA as the authors' code orders it."""
    pool = nn.MaxPool3d((1, 3, 3), 1, (0, 1, 1)) if layer.dvs else nn.Identity()
    q, k, v = (spikes_of(conv_norm(part, s)) for part in (layer.q, layer.k, layer.v))
    k, v = pool(k), pool(v)

    def heads(x: Tensor) -> Tensor:  # [T, B, C, H, W] -> [T, B, h, N, d]
        return x.flatten(3).transpose(2, 3).reshape(T, B, H * W, HEADS, C // HEADS).transpose(2, 3).contiguous()

    kv = pool(heads(k) * heads(v))
    gate = spikes_of(kv.sum(3, keepdim=True), 0.5)
    y = pool(heads(q) * gate)
    y = y.transpose(3, 4).reshape(T, B, C, H, W)
    return conv_norm(layer.proj, y) + u


def plain_mlp(layer: MembraneMLP, s: Tensor, u: Tensor) -> Tensor:
    """u' of the MLP."""
    a = conv_norm(layer.fc1, s)
    if layer.shortcut:
        u = a = a + u
    return conv_norm(layer.fc2, spikes_of(a)) + u


LAYERS = {
    "sdsa": (lambda last: SDSA(C, HEADS, last=last), plain_sdsa),
    "sdsa-dvs": (lambda last: SDSA(C, HEADS, dvs=True, last=last), plain_sdsa),
    "mlp": (lambda last: MembraneMLP(C, 24, last=last), plain_mlp),
    "mlp-ratio-1": (lambda last: MembraneMLP(C, C, last=last), plain_mlp),
}


@pytest.mark.parametrize("last", [False, True], ids=["fires", "last"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_equations(name: str, last: bool) -> None:
    build, plain = LAYERS[name]
    layer = lively(build(last))
    x = stream().requires_grad_()
    spikes, u = layer(LIF()(x), x)
    expected = plain(layer, spikes_of(x), x)
    torch.testing.assert_close(u, expected, rtol=0, atol=1e-12)
    weights = stream(5)
    loss, plain_loss = (u * weights).sum(), (expected * weights).sum()
    if last:
        assert spikes is None
    else:
        assert torch.equal(spikes, spikes_of(expected))
        assert 0.05 < spikes.mean() < 0.95
        loss, plain_loss = loss + (spikes * stream(6)).sum(), plain_loss + (spikes_of(expected) * stream(6)).sum()
    leaves = [x, *layer.parameters()]
    for ours, theirs in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(plain_loss, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10 * (1 + float(theirs.abs().max())))


def test_a_neuron_behind_the_addition_is_one_in_front_of_the_next_layer() -> None:
    """(s, u) of a layer that fires is (LIF(u), u) of one that does not."""
    layer, last = lively(SDSA(C, HEADS)), lively(SDSA(C, HEADS, last=True))
    names = dict(zip(last.state_dict(), layer.state_dict(), strict=True))
    last.load_state_dict({name: layer.state_dict()[own] for name, own in names.items()})
    u = stream()
    spikes, after = layer.eval()(LIF()(u), u)
    none, alone = last.eval()(LIF()(u), u)
    assert none is None
    torch.testing.assert_close(after, alone, rtol=0, atol=1e-12)
    assert torch.equal(spikes, LIF()(after))


def test_the_last_normalisation_takes_its_statistics_over_time_batch_and_tokens() -> None:
    part = lively(MembraneProjection(C, C, last=True))
    x, u = stream(1, T, B, 6, C), stream(2, T, B, 6, C)
    rows = part.synapse(x).detach().flatten(0, 2)
    part(x, u)
    torch.testing.assert_close(part.norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(part.norm.running_var, 0.9 + 0.1 * rows.var(0, correction=1))


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.2, 1.0])
def test_the_gate_is_the_or_of_k_and_v_over_tokens(rate: float) -> None:
    generator = torch.Generator().manual_seed(7)
    k, v = (torch.rand(12, 3, 20, 8, generator=generator) < rate**0.5 for _ in range(2))
    gate = SDSA(8, 2)._gate(k.float() * v.float())
    assert torch.equal(gate, (k & v).any(2, keepdim=True).float())


def test_event_camera_mode_pools_over_tokens_and_channels_of_a_head() -> None:
    """One K * V spike opens the gates of its neighbouring channels in its head, and of them alone."""
    layer = SDSA(C, HEADS, dvs=True)
    q = torch.zeros(1, 1, H * W, C)
    q[0, 0, 7, 5] = 1.0
    k = torch.zeros(1, 1, H * W, C)
    k[0, 0, 0, 6] = 1.0  # head 1, channel 2 of 4: its gates 1, 2 and 3 open
    out = layer._pooled(q, k, k, (H, W))[0, 0]
    reached = {(token, channel) for token, channel in out.nonzero().tolist()}
    assert reached == {(token, channel) for token in (6, 7, 8) for channel in (4, 5, 6)}
    k[0, 0, 0, 6], k[0, 0, 0, 3] = 0.0, 1.0  # the last channel of head 0: no window reaches head 1
    assert not layer._pooled(q, k, k, (H, W)).any()


def test_heads_matter_in_event_camera_mode_alone() -> None:
    u = stream()
    for dvs in (False, True):
        one, four = (lively(SDSA(C, heads, dvs=dvs, last=True)).eval() for heads in (1, 4))
        assert torch.equal(one(LIF()(u), u)[1], four(LIF()(u), u)[1]) is not dvs


@pytest.mark.parametrize(
    "build", [lambda **o: SDSA(C, HEADS, **o), lambda **o: MembraneMLP(C, 24, **o)], ids=["sdsa", "mlp"]
)
def test_layouts_are_views_of_the_same_numbers(build: Any) -> None:
    maps = stream()
    layers = {name: lively(build(layout=name)).eval() for name in ("TBCHW", "TBCN", "TBNC")}
    first = layers["TBCHW"](LIF()(maps), maps)
    flat = maps.flatten(3)
    tokens = flat.transpose(2, 3)
    for ours, theirs in zip(layers["TBCN"](LIF()(flat), flat), first, strict=True):
        torch.testing.assert_close(ours, theirs.flatten(3), rtol=0, atol=1e-12)
    for ours, theirs in zip(layers["TBNC"](LIF()(tokens), tokens), first, strict=True):
        torch.testing.assert_close(ours, theirs.flatten(3).transpose(2, 3), rtol=0, atol=1e-12)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SDSA got dim=16 and num_heads=3; expected a number of heads that divides"):
        SDSA(16, 3)
    with pytest.raises(ValueError, match=r"SDSA got dvs=True with layout='TBNC'; pooling over space needs maps"):
        SDSA(16, 4, dvs=True, layout="TBNC")
    with pytest.raises(ValueError, match="MembraneMLP got layout='BCHW'; expected 'TBNC', 'TBCN', 'TBCHW'"):
        MembraneMLP(16, 32, layout="BCHW")  # type: ignore[arg-type]
    u = torch.zeros(T, B, C, H, W)
    with pytest.raises(ValueError, match=r"SDSA got spikes of shape \[2, 16, 3, 5\] and a stream u of shape \[4, 2,"):
        SDSA(C, HEADS)(u[0], u)
    with pytest.raises(
        ValueError, match=r"MembraneMLP got an input of shape \[4, 2, 16, 15\]; expected \[T, B, C=16, H"
    ):
        MembraneMLP(C, 32)(u.flatten(3), u.flatten(3))
    with pytest.raises(
        ValueError, match=r"SDSA got an input of shape \[4, 2, 16, 3, 5\]; expected \[T, B, C=8, H, W\]"
    ):
        SDSA(8, 2)(u, u)
