"""Attention and whole networks of SpikingJelly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.energy.bridge_oracle import check, counted, over_time, random_spikes, record
from torch import Tensor, nn

from spikeloom.energy.counts import NeuronCount, NormCount, PairCount

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import parametric_lif_net, sew_resnet, spikformer, spiking_resnet

T, B = 4, 3
NEURONS = (neuron.BaseNode,)


def at_once(net: nn.Module, x: Tensor) -> Callable[..., Tensor]:
    """The call of a network on all steps, from rest."""
    return over_time(net, x, True, lambda: functional.reset_net(net))


def pair(a: Tensor, b: Tensor) -> np.ndarray:
    """Products of a @ b, [T, B, ..., m, k] @ [T, B, ..., k, n], with both factors non-zero, per step and sample."""
    both = (a != 0).double() @ (b != 0).double()
    return both.flatten(2).sum(2).round().long().numpy()


def test_spiking_self_attention() -> None:
    """(V K^T) Q per head, on [T, B, C, N]."""
    dim, heads = 12, 3
    net, x = liven(layer.SpikingSelfAttention(dim, heads, v_threshold=0.3)), random_spikes(T, B, dim, 7)
    call = at_once(net, x)
    recorded, before = record(net, NEURONS, call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    (qkv,) = recorded.spikes["qkv_lif"]
    q, k, v = qkv.reshape(T, B, 3, heads, dim // heads, 7).unbind(2)
    first, second = [x for x in counts.layers if not x.is_param]
    np.testing.assert_array_equal(first.sop, pair(v, k.transpose(-2, -1)))
    np.testing.assert_array_equal(second.sop, pair(v @ k.transpose(-2, -1), q))
    assert (first.kind, first.kind_b, second.kind, second.kind_b) == ("binary", "binary", "integer", "binary")
    assert first.sop.any()
    assert second.sop.any()


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_query_key_attention(kind: str) -> None:
    net = liven(layer.QKAttention(8, 2, kind, v_threshold=0.3))
    call = at_once(net, random_spikes(T, B, 8, 5))
    recorded, before = record(net, NEURONS, call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    (mask,) = counts.of(PairCount)
    (qk,) = recorded.spikes["qk_lif"]
    (attention,) = recorded.spikes["attn_lif"]
    key = qk.reshape(T, B, 2, 2, 4, 5)[:, :, 1]
    np.testing.assert_array_equal(mask.both_nonzero, ((attention * key) != 0).flatten(2).sum(2).numpy())


class Tokens(nn.Module):
    """A stem, Spikformer blocks on tokens, and a head; time is made by repeating the image."""

    def __init__(self) -> None:
        super().__init__()
        self.net = spikformer.Spikformer(T, 2, 16, 16, 4, 5, 16, 2, 2.0, 1, v_threshold=0.1)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self.net)
        return self.net(x)


def liven(net: nn.Module) -> nn.Module:
    """Random weights and statistics with which every layer of neurons fires."""
    torch.manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, 0.05, 0.3)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.uniform_(module.bias, 0.0, 0.5)
    return net.eval()


def test_spikformer_repeats_an_image_itself() -> None:
    net, x = liven(Tokens()), torch.rand(B, 2, 16, 16)
    recorded, before = record(net, NEURONS, lambda: net(x))
    counts, result = counted(net, lambda run: net(x), T=T)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    first = counts.layers[0]
    assert (first.kind, first.static_input) == ("float", True)
    assert all(n.spikes.any() for n in counts.of(NeuronCount))


def zoo() -> list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    """Small networks of `spikingjelly.activation_based.model`."""
    fires: dict[str, Any] = {"spiking_neuron": neuron.IFNode, "v_threshold": 0.5}
    return [
        ("spiking_resnet", lambda: spiking_resnet.spiking_resnet18(num_classes=4, **fires), (3, 32, 32)),
        ("sew_resnet", lambda: sew_resnet.sew_resnet18(num_classes=4, cnf="ADD", **fires), (3, 32, 32)),
        ("mnist_net", lambda: parametric_lif_net.MNISTNet(channels=4, **fires), (1, 28, 28)),
    ]


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize(("build", "shape"), [z[1:] for z in zoo()], ids=[z[0] for z in zoo()])
def test_networks_of_the_library(build: Callable[[], nn.Module], shape: tuple[int, ...], mode: str) -> None:
    net = liven(build())
    functional.set_step_mode(net, mode)
    x = random_spikes(T, B, *shape, rate=0.5)
    call = over_time(net, x, mode == "m", lambda: functional.reset_net(net))
    recorded, before = record(net, NEURONS, call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    assert all(n.folds_into for n in counts.of(NormCount))
    assert all(n.spikes.any() for n in counts.of(NeuronCount))
