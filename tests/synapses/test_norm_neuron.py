"""NormNeuron against torch's BatchNorm followed by the neuron."""

import copy
import pickle
import sys
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spikeloom.neurons import LI, LIF, PLIF, Stream
from spikeloom.synapses import Conv2d, DepthwiseConv2d, Linear, NormNeuron, Projection, SpikeConv2d, SpikeLinear


def plain(layer: NormNeuron) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(layer.num_features, eps=layer.eps, momentum=layer.momentum).to(layer.weight)
    norm.load_state_dict({k: v for k, v in layer.state_dict().items() if not k.startswith("neuron.")})
    return norm


def data(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1).double()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("residual", [False, True])
def test_equals_batch_norm_add_neuron(train: bool, residual: bool) -> None:
    layer = NormNeuron(5, LIF()).double().train(train)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5)
        layer.bias.uniform_(-0.5, 0.5)
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(1, 4)
    norm = plain(layer).train(train)
    x1, r1 = data((4, 3, 5, 6, 6)).requires_grad_(), data((4, 3, 5, 6, 6), 1).requires_grad_()
    x2, r2 = x1.detach().clone().requires_grad_(), r1.detach().clone().requires_grad_()
    spikes = layer(x1, r1) if residual else layer(x1)
    u = norm(x2.flatten(0, 1)).unflatten(0, (4, 3))
    expected = LIF(backend="reference")(u + r2 if residual else u)
    assert torch.equal(spikes, expected)
    cotangent = data(spikes.shape, 2)
    spikes.backward(cotangent)
    expected.backward(cotangent)
    pairs = [(x1.grad, x2.grad), (layer.weight.grad, norm.weight.grad), (layer.bias.grad, norm.bias.grad)]
    pairs += [(r1.grad, r2.grad)] if residual else []
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.running_mean, norm.running_mean)
    torch.testing.assert_close(layer.running_var, norm.running_var)
    assert layer.num_batches_tracked == norm.num_batches_tracked


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_offset_stands_for_the_bias_in_front(train: bool, dtype: torch.dtype, device: str) -> None:
    ours, plain = (NormNeuron(5, LIF()).to(device, dtype).train(train) for _ in range(2))
    x = data((4, 3, 5, 6, 6)).to(device, dtype)
    offset = data((5,), 1).to(device, dtype).requires_grad_()
    spikes, expected = ours(x, offset=offset), plain(x + offset.detach().view(5, 1, 1))
    assert (spikes != expected).float().mean() < (1e-3 if dtype == torch.float32 else 1e-9)
    torch.testing.assert_close(ours.running_mean, plain.running_mean)
    torch.testing.assert_close(ours.running_var, plain.running_var)
    spikes.sum().backward()
    assert offset.grad is not None
    assert offset.grad.any() == (not train)  # in training every constant cancels


@pytest.mark.parametrize("how", ["kernel", "reference", "dispatch mode", "compiled"])
def test_the_gradient_of_an_offset_alone_is_zero(how: str) -> None:
    layer = NormNeuron(5, LIF(backend="reference" if how == "reference" else "auto")).requires_grad_(False)
    x, offset = data((20, 3, 5)), data((5,), 1).requires_grad_()  # more steps than backward recomputes in one piece
    call = torch.compile(layer, fullgraph=True, backend="aot_eager") if how == "compiled" else layer
    with FlopCounterMode(display=False) if how == "dispatch mode" else nullcontext():
        spikes = call(x, offset=offset)
    assert torch.equal(spikes, NormNeuron(5, LIF())(x))
    spikes.sum().backward()
    assert offset.grad is not None
    assert not offset.grad.any()


def test_an_offset_is_checked_before_anything_changes() -> None:
    layer, x = NormNeuron(5, LIF()), data((4, 3, 5, 6)).float()
    for offset in (torch.zeros(1), torch.zeros(4), torch.zeros(5, 1), torch.zeros(5, device="meta")):
        with pytest.raises(ValueError, match=r"offset of shape \[.*\] on .*; expected \[5\], .* on cpu"):
            layer(x, offset=offset)
    assert layer.num_batches_tracked == 0


class Gpu(Tensor):
    is_cuda = True


class Own(Linear):
    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Gpu` counts as a tensor of a GPU with working kernels."""
    monkeypatch.setattr(sys.modules["spikeloom.synapses.norm_neuron"], "is_plain", lambda t: True)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: Linear(6, 4), (3, 2, 5, 6)),
    "SpikeLinear": (lambda: SpikeLinear(6, 4), (3, 2, 5, 6)),
    "Conv2d": (lambda: Conv2d(6, 4, 1), (3, 2, 6, 3, 3)),
    "SpikeConv2d": (lambda: SpikeConv2d(6, 4, 1), (3, 2, 6, 3, 3)),
    "DepthwiseConv2d": (lambda: DepthwiseConv2d(4, 3), (3, 2, 4, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_known_layers_leave_their_bias(name: str, on_gpu: None) -> None:
    build, shape = LAYERS[name]
    layer, fire, x = build(), NormNeuron(4, LIF()), torch.ones(shape)
    y, offset = fire.current(layer, x.as_subclass(Gpu))
    assert offset is layer.bias
    torch.testing.assert_close(y.as_subclass(Tensor), layer(x, bias=False))
    assert fire.current(layer, x)[1] is None  # on a CPU


@pytest.mark.parametrize(
    "why", ["hook", "pre-hook", "global hook", "patched", "subclass", "torch", "reference", "mode"]
)
def test_other_layers_keep_their_bias(why: str, on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = {"subclass": Own, "torch": nn.Linear}.get(why, Linear)(6, 4)
    fire = NormNeuron(4, LIF(backend="reference" if why == "reference" else "auto"))
    x = torch.ones(3, 2, 5, 6).as_subclass(Gpu)
    seen: list[Tensor] = []
    if why == "hook":
        layer.register_forward_hook(lambda module, given, y: seen.append(y))
    if why == "pre-hook":
        layer.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    if why == "patched":
        monkeypatch.setattr(layer, "forward", layer.forward)
    handle = nn.modules.module.register_module_forward_hook(lambda *given: None) if why == "global hook" else None
    with FlopCounterMode(display=False) if why == "mode" else nullcontext():
        y, offset = fire.current(layer, x)
    if handle is not None:
        handle.remove()
    assert offset is None
    torch.testing.assert_close(y, nn.functional.linear(x, layer.weight, layer.bias))
    assert [tuple(s.shape) for s in seen] == {"hook": [(3, 2, 5, 4)], "pre-hook": [(3, 2, 5, 6)]}.get(why, [])


def test_without_kernels_or_in_a_subclass_the_bias_is_added(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["spikeloom.synapses.norm_neuron"]
    layer, fire, x = Linear(6, 4), NormNeuron(4, LIF()), torch.ones(3, 2, 5, 6).as_subclass(Gpu)
    assert fire.current(layer, x)[1] is layer.bias
    monkeypatch.setattr(module, "choose", lambda backend, device: "reference")
    assert fire.current(layer, x)[1] is None
    monkeypatch.undo()
    assert fire.current(layer, x)[1] is None


@pytest.mark.gpu
@pytest.mark.parametrize("layer", [Projection(8, 6, bias=True, spikes=True), Projection(8, 6, bias=True)], ids=str)
def test_a_projection_leaves_its_bias_to_the_neuron(layer: Projection) -> None:
    fast, slow = copy.deepcopy(layer).cuda(), copy.deepcopy(layer).cuda()
    slow.fire.current = lambda synapse, x: (synapse(x), None)  # type: ignore[method-assign]
    x = (data((4, 3, 7, 8)) > 1).float().cuda()
    a, b = fast(x), slow(x)
    assert (a != b).float().mean() < 1e-2
    a.sum().backward()
    assert fast.synapse.bias.grad is not None
    assert not fast.synapse.bias.grad.any()
    torch.testing.assert_close(fast.fire.running_mean, slow.fire.running_mean)


def test_emits_the_membrane_input() -> None:
    layer = NormNeuron(4, LIF(), emit=True).double()
    x, r = data((3, 2, 4, 5)), data((3, 2, 4, 5), 1)
    spikes, u = layer(x, r)
    expected = nn.functional.batch_norm(x.flatten(0, 1), None, None, training=True).unflatten(0, (3, 2)) + r
    torch.testing.assert_close(u, expected)
    assert torch.equal(spikes, LIF()(u))


def test_learnable_neuron_parameters_get_gradients() -> None:
    layer = NormNeuron(4, PLIF()).double()
    layer(data((6, 2, 4))).sum().backward()
    assert layer.neuron.w.grad is not None
    assert layer.neuron.w.grad.abs() > 0


def test_cumulative_average() -> None:
    layer = NormNeuron(3, LIF(), momentum=None).double()
    norm = plain(layer)
    for seed in range(3):
        x = data((2, 4, 3, 5), seed)
        layer(x)
        norm(x.flatten(0, 1).unsqueeze(-1))
    torch.testing.assert_close(layer.running_mean, norm.running_mean)
    torch.testing.assert_close(layer.running_var, norm.running_var)


def test_bfloat16_keeps_statistics_and_membrane_in_float32() -> None:
    layer = NormNeuron(4, LIF())
    x = (data((4, 3, 4, 8)) + 50).bfloat16()
    spikes, (v,) = layer(x, return_state=True)
    assert spikes.dtype == torch.bfloat16
    assert v.dtype == torch.float32
    mean = x.float().mean((0, 1, 3))
    torch.testing.assert_close(layer.running_mean, 0.1 * mean)


def test_streams_copies_and_pickles_in_evaluation() -> None:
    layer = NormNeuron(4, LI()).eval()
    x = data((7, 2, 4, 3)).float()
    whole = layer(x)
    stream = Stream(layer)
    assert torch.equal(torch.cat([stream(x[:3]), stream(x[3:])]), whole)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), whole)


def test_compiles_without_graph_break() -> None:
    layer = NormNeuron(4, LIF())
    x = data((4, 2, 4, 3)).float()
    expected = copy.deepcopy(layer)(x)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)


def test_bad_input() -> None:
    layer = NormNeuron(4, LIF())
    with pytest.raises(ValueError, match=r"C = 4, got shape \[3, 2, 5\]"):
        layer(torch.zeros(3, 2, 5))
    with pytest.raises(ValueError, match="all inputs must have one shape"):
        layer(torch.zeros(3, 2, 4, 5), torch.zeros(3, 2, 4, 4))
    with pytest.raises(ValueError, match="more than one value per channel"):
        layer(torch.zeros(1, 1, 4))
    with pytest.raises(TypeError, match="must be a spikeloom Neuron"):
        NormNeuron(4, nn.ReLU())  # type: ignore[arg-type]
