"""Recomputation in backward: gradients and buffers of the plain call, memory of the inputs alone."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.models import create_model
from spikeloom.models.classifier import Classifier
from spikeloom.neurons import LIF
from spikeloom.synapses import BatchNorm2d, Conv2d, ConvNeuron, Dropout, NormNeuron
from spikeloom.synapses.recompute import recompute
from spikeloom.training.network import build
from spikeloom.training.recipe import Data, Recipe


class Chain(nn.Module):
    """Blocks one after the other, recomputed or not."""

    def __init__(self, *blocks: nn.Module, again: bool) -> None:
        super().__init__()
        self.blocks, self.again = nn.ModuleList(blocks), again

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = recompute(block, x) if self.again else block(x)
        return x


class Counted(nn.Module):
    """A module whose result depends on a buffer that it changes, in a buffer of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("calls", torch.tensor(1.0))
        self.register_buffer("same", self.calls)
        self.register_buffer("nothing", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)  # type: ignore[operator]
        return (self.weight * x * self.same).sin()  # type: ignore[operator]


def block(channels: int = 4, momentum: float | None = 0.1) -> nn.Module:
    norm = NormNeuron(channels, LIF(), momentum=momentum)
    nn.init.constant_(norm.bias, 0.5)
    return nn.Sequential(Conv2d(channels, channels, 3, padding=1), norm, BatchNorm2d(channels), nn.Sigmoid())


def frames(channels: int = 4) -> Tensor:
    return torch.randn(3, 2, channels, 6, 6, generator=torch.Generator().manual_seed(1))


def trained(net: nn.Module, x: Tensor, steps: int = 2) -> dict[str, Tensor]:
    """Gradients of the last of some steps, of input and parameters, and the buffers behind it."""
    torch.manual_seed(3)
    for _ in range(steps):
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        y = net(leaf)
        (y * torch.linspace(-1, 1, y.shape[-1], device=y.device)).square().sum().backward()
    assert leaf.grad is not None
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": leaf.grad} | grads | dict(net.named_buffers())


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def kept(call: Callable[[], Any], without: nn.Module) -> int:
    """Bytes that backward keeps, each storage once, other than those of the parameters.

    torch's recomputation replaces the hooks in the way of its own; what it keeps are its inputs, which hooks see.
    """
    found: dict[int, int] = {}
    known = {p.untyped_storage().data_ptr() for p in without.parameters()}

    def keep(t: Tensor) -> Tensor:
        found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        alive = call()
    del alive
    return sum(size for address, size in found.items() if address not in known)


@contextmanager
def unchanged_buffers(net: nn.Module) -> Iterator[None]:
    """The buffers are the same tensors with the same values before and after."""
    before = {name: (b, b.clone()) for name, b in net.named_buffers()}
    yield
    for name, b in net.named_buffers():
        assert b is before[name][0], name
        assert torch.equal(b, before[name][1]), name


@pytest.mark.parametrize("momentum", [0.1, None], ids=["rate", "cumulative"])
def test_gradients_and_buffers_are_those_of_the_plain_call(momentum: float | None, device: str) -> None:
    torch.manual_seed(0)
    plain = Chain(block(momentum=momentum), Dropout(0.5), block(), again=False).to(device)
    again = copy.deepcopy(plain)
    again.again = True
    x = frames().to(device)
    found, wanted = trained(again, x), trained(plain, x)
    assert wanted["blocks.0.1.num_batches_tracked"] == 2
    assert wanted["blocks.0.0.weight"].abs().max() > 0
    if device == "cpu":
        same(found, wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_a_module_that_depends_on_its_buffers() -> None:
    """The second run begins where the first did, also for a second backward over a retained graph."""
    plain, again = Counted(), Counted()
    x = torch.randn(3, requires_grad=True)
    for _ in range(2):
        y, z = plain(x), recompute(again, x)
        assert torch.equal(y, z)
    wanted = torch.autograd.grad(y.sum(), (x, plain.weight))
    with unchanged_buffers(again):
        for retain in (True, False):
            found = torch.autograd.grad(z.sum(), (x, again.weight), retain_graph=retain)
            assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))
    assert again.calls is again.same
    assert again.calls == plain.calls == 3


def test_one_recomputation_in_another() -> None:
    torch.manual_seed(0)
    plain = Chain(Chain(block(), block(), again=False), block(), again=False)
    again = copy.deepcopy(plain)
    for chain in (again, again.blocks[0]):
        chain.again = True  # type: ignore[assignment]
    same(trained(again, frames()), trained(plain, frames()))


def test_a_failing_second_run_leaves_the_buffers() -> None:
    class Once(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.runs = nn.BatchNorm1d(3), 0

        def forward(self, x: Tensor) -> Tensor:
            self.runs += 1
            if self.runs > 1:
                raise RuntimeError("once only")
            y: Tensor = self.norm(x)
            return y.sin()

    net = Once()
    y = recompute(net, torch.randn(4, 3))
    with unchanged_buffers(net), pytest.raises(RuntimeError, match="once only"):
        y.sum().backward()


def test_only_the_inputs_are_kept() -> None:
    """Four blocks keep four maps; in evaluation and without gradients all is as without."""
    torch.manual_seed(0)
    blocks = [block(8) for _ in range(4)]
    plain, again = Chain(*blocks, again=False), Chain(*blocks, again=True)
    x = frames(8)
    map_bytes = x.nbytes
    assert kept(lambda: again(x), again) == 4 * map_bytes
    maps = 1 + 4 * 3  # x, and of every block the results of convolution, neuron and sigmoid; then some statistics
    assert maps * map_bytes < kept(lambda: plain(x), plain) < (maps + 0.5) * map_bytes
    for net in (plain, again):
        net.eval()
    assert kept(lambda: again(x), again) == kept(lambda: plain(x), plain) > 4 * map_bytes
    with torch.no_grad():
        assert not again.train()(x).requires_grad


def test_dropout_is_refused_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = frames()
    with pytest.raises(ValueError, match=r"layer '1' is a Dropout with p=0\.5, while a CUDA graph is captured"):
        recompute(nn.Sequential(block(), Dropout(0.5)), x)
    assert recompute(nn.Sequential(block(), Dropout(0.0)), x).shape == x.shape


def test_what_drew_in_its_last_run_is_refused_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, capturing = [0], [False]

    class Noise(nn.Module):
        draws = True

        def forward(self, x: Tensor) -> Tensor:
            drawn[0] += 4 * self.draws
            return x.sin()

    generators = (SimpleNamespace(get_offset=lambda: 0), SimpleNamespace(get_offset=lambda: drawn[0]))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    noise, x = Noise(), torch.ones(3, requires_grad=True)
    outer, other = nn.Sequential(noise), nn.Sigmoid()
    recompute(outer, x)
    recompute(other, x)
    capturing[0] = True
    with pytest.raises(ValueError, match=r"a Sequential that drew random numbers when it last ran, while a CUDA graph"):
        recompute(outer, x)
    assert recompute(other, x).shape == x.shape
    noise.draws, capturing[0] = False, False
    recompute(outer, x)
    capturing[0] = True
    assert recompute(outer, x).shape == x.shape


MODELS: dict[str, dict[str, Any]] = {
    "maxformer_cifar_4_384": {"embed_dim": 32, "num_heads": 2, "depths": (1, 1, 1)},
    "max_resnet18": {"stem_width": 4, "widths": (4, 8), "depths": (1, 1)},
    "spikformer_small": {"embed_dim": 32, "depth": 2},
    "qkformer_cifar": {"embed_dim": 32, "num_heads": 2, "depths": (1, 1, 1)},
}


def small(name: str) -> Classifier:
    torch.manual_seed(0)
    net = create_model(name, num_classes=3, T=2, in_channels=3, **MODELS[name])
    assert isinstance(net, Classifier)
    for module in net.modules():
        if isinstance(module, NormNeuron):
            nn.init.constant_(module.bias, 0.3)
    return net


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    plain, again = small(name), small(name)
    again.set_recompute(True)
    assert list(plain.state_dict()) == list(again.state_dict())
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found, wanted = trained(again, x, 1), trained(plain, x, 1)
    assert found["y"].abs().max() > 0
    same(found, wanted)
    assert 3 * kept(lambda: again(x), again) < kept(lambda: plain(x), plain)
    again.set_recompute(False)
    assert kept(lambda: again(x), again) == kept(lambda: plain(x), plain)


def test_spikes_as_bits_and_recomputation_together(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, again = small("maxformer_cifar_4_384"), small("maxformer_cifar_4_384")
    again.set_recompute(True)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    wanted = trained(plain, x, 1)
    for name in ("synapses.spike_conv", "synapses.spike_linear", "spiking_attention.products"):
        monkeypatch.setattr(sys.modules[f"spikeloom.{name}"], "keeps_bits", lambda *tensors: True)
    found = trained(again, x, 1)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_model_without_blocks_to_recompute() -> None:
    net = create_model("sdt_cifar_2_256", embed_dim=32, depth=1)
    assert isinstance(net, Classifier)
    with pytest.raises(ValueError, match="SpikeDrivenTransformer cannot recompute"):
        net.set_recompute(True)
    net.set_recompute(False)


def test_the_recipe_says_so() -> None:
    recipe = Recipe(model="spikformer_small", data=Data(T=2), recompute=True)
    assert Recipe.from_json(recipe.to_json()).recompute
    net = build(recipe, 3)
    assert isinstance(net, Classifier)
    assert net.recompute
    with pytest.raises(ValueError, match="recompute=True, but conv_snn_small is a"):
        build(Recipe(recompute=True), 3)


@pytest.mark.gpu
def test_a_captured_training_step_on_a_gpu() -> None:
    """Gradients and running statistics of replays are those of steps that ran one by one, without recomputation."""
    torch.manual_seed(0)
    eager = nn.Sequential(ConvNeuron(8, 8, spikes=True), ConvNeuron(8, 8, spikes=True)).cuda()
    for module in eager.modules():
        if isinstance(module, NormNeuron):
            nn.init.constant_(module.bias, 0.5)
    captured = copy.deepcopy(eager)
    x = (torch.rand(4, 2, 8, 8, 8, device="cuda") < 0.3).float().movedim(2, -1).contiguous().movedim(-1, 2)

    def step(net: nn.Module, again: bool) -> None:
        y = x
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            for layer in net.children():
                y = recompute(layer, y) if again else layer(y)
        (y.float() * torch.linspace(-1, 1, y.shape[-1], device="cuda")).sum().backward()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # for x and the copies
    with torch.cuda.stream(side):
        for _ in range(3):
            captured.zero_grad()
            step(captured, True)
    torch.cuda.current_stream().wait_stream(side)
    captured.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured, True)
    for _ in range(2):
        for p in captured.parameters():
            assert p.grad is not None
            p.grad.zero_()
        graph.replay()
    for _ in range(5):
        eager.zero_grad()
        step(eager, False)
    for (name, p), q in zip(eager.named_parameters(), captured.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(q.grad, p.grad, rtol=2e-2, atol=2e-2 * p.grad.abs().max().item(), msg=name)
    for (name, b), c in zip(eager.named_buffers(), captured.buffers(), strict=True):
        torch.testing.assert_close(c, b, rtol=1e-4, atol=1e-4, msg=name)
