"""DIET neurons by hand and against autograd of the equations; the network, its official names, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.conversion.diet_official import diet_from_official, official_names, relu_from_official, to_official
from spikeloom.conversion.diet_vgg import VGG9, VGG16, DietConfig, DietVGG, ReluVGG
from spikeloom.energy import count
from spikeloom.energy.counts import NeuronCount
from spikeloom.neurons import Stream
from spikeloom.neurons.diet import DIET

SMALL = DietConfig((4, "A", 6), (5,), num_classes=3, in_channels=2, input_size=(8, 8), T=3, dropout=0.0)


def test_four_steps_by_hand() -> None:
    """u: 0.6; 0.3 + 0.7 = 1.0, at the threshold, silent; 0.5 + 0.7 = 1.2 fires, 0.2 left; 0.1 + 2.5 = 2.6 fires."""
    neuron = DIET(leak=0.5, v_threshold=1.0).double()
    x = torch.tensor([0.6, 0.7, 0.7, 2.5], dtype=torch.float64).reshape(4, 1)
    spikes, (u,) = neuron(x, return_state=True)
    assert spikes.flatten().tolist() == [0, 0, 1, 1]
    assert u.item() == pytest.approx(1.6)


class _Strict(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (z,) = ctx.saved_tensors
        return grads[0] * 0.3 * (1 - z.abs()).clamp(min=0)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("T", [1, 6])
def test_spikes_and_gradients_are_those_of_the_equations(T: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (2 * torch.rand(T, 3, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    cotangent = torch.randn(T, 3, 7, generator=generator, dtype=torch.float64)
    neuron = DIET(leak=0.8, v_threshold=0.9, backend=backend).double()
    spikes = neuron(x)
    found = torch.autograd.grad((spikes * cotangent).sum(), (x, neuron.leak, neuron.v_threshold))

    leak = torch.tensor(0.8, dtype=torch.float32).double().requires_grad_()
    V = torch.tensor(0.9, dtype=torch.float32).double().requires_grad_()
    u, outputs = torch.zeros(3, 7, dtype=torch.float64), []
    for step in x:
        u = leak * u + step
        s = _Strict.apply(u / V - 1)
        u = u - V * s.detach()
        outputs.append(s)
    expected = torch.autograd.grad((torch.stack(outputs) * cotangent).sum(), (x, leak, V))
    assert torch.equal(spikes, torch.stack(outputs))
    assert 0 < spikes.mean() < 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert bool(found[1] == 0) == (T == 1)


def test_limits() -> None:
    with pytest.raises(ValueError, match="leak must be <= 1"):
        DIET(leak=1.1)
    with pytest.raises(ValueError, match="v_threshold must be > 0"):
        DIET(v_threshold=0.0)
    neuron = DIET()
    with torch.no_grad():
        neuron.leak.fill_(1.5)
        neuron.v_threshold.fill_(-2.0)
    neuron.clamp_()
    assert (neuron.leak.item(), neuron.v_threshold.item()) == (1.0, pytest.approx(1e-3))


def test_network_streams_and_counts() -> None:
    torch.manual_seed(0)
    net = DietVGG(SMALL).eval()
    for neuron in net.neurons():
        neuron.v_threshold.data.fill_(0.2)
        neuron.leak.data.fill_(0.9)
    x = torch.rand(4, 2, 8, 8)
    with torch.no_grad(), count(net, T=3, strict=True) as run:
        logits = net(x)
    assert list(logits.shape) == [3, 4, 3]
    counts = run.counts()
    assert [(layer.kind, layer.static_input) for layer in counts.layers] == [
        ("float", True),
        ("scaled_integer", False),
        ("binary", False),
        ("binary", False),
    ]
    neurons = counts.of(NeuronCount)
    assert len(neurons) == 3
    assert all(n.soft_reset and n.spiking and n.spikes.sum() > 0 for n in neurons)
    net.set_steps(None)
    stream = Stream(net)
    with torch.no_grad():
        parts = [stream(x.expand(t, *x.shape)) for t in (1, 2)]
    torch.testing.assert_close(torch.cat(parts), logits)


def test_published_widths() -> None:
    with torch.device("meta"):
        nets = {layers: DietVGG(DietConfig(layers)) for layers in (VGG9, VGG16)}
    assert len(nets[VGG16].neurons()) == 15
    assert len(nets[VGG9].neurons()) == 9
    assert list(nets[VGG16].linears[0].synapse.weight.shape) == [4096, 512 * 2 * 2]
    names = official_names(nets[VGG16])
    assert {"features.36.weight", "threshold.t36", "leak.l39", "threshold.t42", "classifier.6.weight"} <= names.keys()
    assert not any("bias" in name for name, _ in nets[VGG16].named_parameters())


def test_official_names_go_both_ways() -> None:
    torch.manual_seed(0)
    net = DietVGG(SMALL).double()
    state = to_official(net)
    assert "features.3.weight" in state
    assert "threshold.t6" in state
    again = diet_from_official(
        [4, "A", 6], {f"module.{k}": v for k, v in state.items()}, T=3, input_size=(8, 8), dropout=0.0
    )
    assert again.config == SMALL
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    assert torch.equal(again(x), net.eval()(x))
    weights = {k: v for k, v in state.items() if k.endswith("weight")}
    relu = relu_from_official([4, "A", 6], weights, input_size=(8, 8))
    assert relu(x).shape == (2, 3)
    assert torch.equal(relu.head.weight, net.head.weight)


def test_the_relu_network_is_the_plain_one() -> None:
    torch.manual_seed(0)
    net = ReluVGG(SMALL).eval()
    x = torch.rand(3, 2, 8, 8)
    h = torch.nn.functional.conv2d(x, net.convs[0].synapse.weight, padding=1).relu()
    h = torch.nn.functional.conv2d(torch.nn.functional.avg_pool2d(h, 2), net.convs[1].synapse.weight, padding=1).relu()
    h = (h.flatten(1) @ net.linears[0].synapse.weight.t()).relu() @ net.head.weight.t()
    torch.testing.assert_close(net(x), h)


def test_dropout_is_one_mask_for_all_steps_and_none_in_front_of_a_pool() -> None:
    net = DietVGG(DietConfig((4, "A", 6), (5,), 3, 2, (8, 8), T=4, dropout=0.5))
    assert [type(block.after).__name__ for block in net.blocks()] == ["AvgPool2d", "Dropout", "Dropout"]
    mask = net.blocks()[1].after(torch.ones(4, 2, 6, 4, 4))
    assert torch.equal(mask, mask[:1].expand_as(mask))
    assert set(mask.unique().tolist()) == {0.0, 2.0}


def state_without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in to_official(DietVGG(SMALL)).items() if key != name}


def load(state: dict[str, Tensor], layers: Any = (4, "A", 6)) -> DietVGG:
    return diet_from_official(layers, state, input_size=(8, 8))


BAD: list[tuple[str, Callable[[], Any], str]] = [
    ("pool first", lambda: DietConfig(("A", 4)), "directly behind a convolution"),
    ("two pools", lambda: DietConfig((4, "A", "A")), "directly behind a convolution"),
    ("no layer", lambda: DietConfig(()), "expected widths"),
    ("width", lambda: DietConfig((0,)), "expected widths"),
    ("size", lambda: DietConfig((4, "A"), input_size=(9, 8)), "multiples of 2"),
    ("T", lambda: DietConfig((4,), T=0), "T 0"),
    ("dropout", lambda: DietConfig((4,), dropout=1.0), "dropout is 1.0"),
    ("other pixels", lambda: DietVGG(SMALL)(torch.rand(1, 2, 16, 16)), "input_size="),
    ("frames for the ReLU net", lambda: ReluVGG(SMALL)(torch.rand(3, 1, 2, 8, 8)), r"images \[B, C, H, W\]"),
    ("leak is missing", lambda: load(state_without("leak.l0")), "leak.l0 is missing"),
    ("too many", lambda: load({**state_without(""), "features.1.bias": torch.ones(4)}), "features.1.bias is not in"),
    ("pool elsewhere", lambda: load(state_without(""), (4, 6)), r"classifier\.0\.weight is \[5, 96\]"),
    ("name", lambda: load(state_without(""), "VGG99"), "VGG9, VGG16"),
    ("no VGG", lambda: load({"fc.weight": torch.ones(1)}), "its entries are fc.weight"),
    ("leak", lambda: load({**state_without(""), "leak.l0": torch.tensor(1.2)}), "a leak <= 1"),
    ("threshold", lambda: load({**state_without(""), "threshold.t0": torch.tensor(0.0)}), "a threshold > 0"),
]


@pytest.mark.parametrize(("call", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
