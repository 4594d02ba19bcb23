"""The layer that runs on whole-number delays: values, states, streams, whole networks, counts, errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom import Stream
from spikeloom.energy import count
from spikeloom.models import DelaySNN, DelaySNNConfig, create_model
from spikeloom.synapses import DelayConv1d, IntegerDelayConv1d, IntegerDelays, NormNeuron, integer_


def rounded(**options: Any) -> DelayConv1d:
    torch.manual_seed(0)
    made = DelayConv1d(4, 6, **{"kernel_count": 2, "max_delay": 7, "groups": 2, "bias": True, **options}).double()
    with torch.no_grad():
        made.P.uniform_(-4, 4)
    made.round_positions_()
    return made.requires_grad_(False)


def counts(T: int = 13, B: int = 3, N: int = 4) -> Tensor:
    return torch.poisson(torch.full((T, B, N), 0.4, dtype=torch.float64), torch.Generator().manual_seed(1))


@pytest.mark.parametrize("version", ["v0", "v1", "max", "gauss"])
@pytest.mark.parametrize("tail", ["official", "none", "lossless"])
def test_the_layer_is_the_convolution(version: str, tail: Any) -> None:
    layer, x = rounded(version=version, tail=tail), counts()
    made = IntegerDelayConv1d.of(layer)
    torch.testing.assert_close(made(x), layer(x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(made(x, tail=False), layer(x, tail=False), rtol=1e-12, atol=1e-13)
    for sizes in ([13], [1] * 13, [2, 9, 2]):
        stream, chunks = Stream(made), x.split(sizes)
        parts = [*(stream(chunk) for chunk in chunks[:-1]), stream(chunks[-1], tail=True)]
        assert torch.equal(torch.cat(parts), made(x))


def test_an_even_kernel_loses_what_lies_outside() -> None:
    layer = rounded(max_delay=6)
    assert bool((layer.delays() == -1).any())
    made = IntegerDelayConv1d.of(layer)
    torch.testing.assert_close(made(counts()), layer(counts()), rtol=1e-12, atol=1e-13)


def test_states_are_cloned_saved_and_refused() -> None:
    made, x = IntegerDelayConv1d.of(rounded(tail="none")), counts()
    stream = Stream(made)
    stream(x[:5])
    twin, stored = stream.clone(), stream.state_dict()
    rest = stream(x[5:])
    assert torch.equal(twin(x[5:]), rest)
    assert torch.equal(Stream(made).load_state_dict(stored)(x[5:]), rest)
    assert [list(value.shape) for value in stored.values()] == [[6, 3, 6]]
    first, state = made(x[:5], return_state=True)
    again = [made(x[5:], state=state) for _ in range(2)]  # a state is not written to
    assert torch.equal(again[0], again[1])
    assert torch.equal(torch.cat([first, again[0]]), made(x))
    with pytest.raises(ValueError, match=r"a state \[6, 3, 6\].*expected \[K - 1, B, O\] = \[6, 2, 6\]"):
        made(x[:, :2], state=state)
    other = IntegerDelayConv1d.of(rounded(max_delay=9))
    with pytest.raises(ValueError, match=r"= \[8, 3, 6\]"):
        other(x, state=state)
    _, ring = rounded()(x, return_state=True)
    with pytest.raises(ValueError, match="state of tuple"):
        made(x, state=ring)


def test_parameters_may_change_type_and_values() -> None:
    layer, x = rounded(), counts()
    made = IntegerDelayConv1d.of(layer)
    assert made.state_dict().keys() == layer.state_dict().keys()
    assert not any(p.requires_grad for p in made.parameters())
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(twin(x), made(x))
    other = rounded()
    with torch.no_grad():
        other.P.neg_()
        other.weight.mul_(2)
    made.load_state_dict(other.state_dict())
    torch.testing.assert_close(made(x), other(x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(made.float()(x.float()), other.float()(x.float()))
    with torch.no_grad():
        made.P.add_(0.5)
    with pytest.raises(ValueError, match=r"no whole numbers.*round_positions_"):
        made(x.float())


def test_parameters_may_be_replaced() -> None:
    x, other = counts(), rounded()
    with torch.no_grad():
        other.P.neg_()
        other.weight.mul_(2)
    wanted = other(x)
    made = IntegerDelayConv1d.of(rounded())
    before = made(x)
    for _ in range(2):  # tensors of one call may lie where those of the last one did
        for scale in (2.0, 3.0):
            swapped = torch.func.functional_call(made, {"bias": made.bias * scale}, (x,))
            torch.testing.assert_close(swapped - before, (made.bias * (scale - 1)).expand_as(before))
            swapped = torch.func.functional_call(made, {"weight": made.weight * scale, "bias": made.bias * scale}, (x,))
            torch.testing.assert_close(swapped, before * scale, rtol=1e-12, atol=1e-13)
        assert torch.equal(made(x), before)
    made.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(made(x), wanted, rtol=1e-12, atol=1e-13)
    made = IntegerDelayConv1d.of(rounded())
    made(x)
    made.P, made.weight = (nn.Parameter(p.clone(), requires_grad=False) for p in (other.P, other.weight))
    torch.testing.assert_close(made(x), wanted, rtol=1e-12, atol=1e-13)
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        twin.weight.zero_()
        assert not torch.equal(twin(x), wanted)
        assert torch.equal(made(x), twin(x)) is False


def test_the_layer_refuses_what_it_cannot_do() -> None:
    layer = rounded()
    made = IntegerDelayConv1d.of(layer)
    with pytest.raises(ValueError, match=r"torch.no_grad\(\)"):
        made(counts().requires_grad_())
    with pytest.raises(ValueError, match=r"layer\.float\(\)"):
        made(counts().float())
    with torch.no_grad():
        layer.P.add_(0.25)
    with pytest.raises(ValueError, match="round_positions_"):
        IntegerDelayConv1d.of(layer)
    with pytest.raises(ValueError, match=r"IntegerDelayConv1d.of\(layer\)"):
        integer_(layer)
    with pytest.raises(ValueError, match="contains DelayConv1d"):
        integer_(nn.Linear(2, 2))
    exact = IntegerDelays.of(rounded())
    with pytest.raises(ValueError, match=r"begin\(B, 'scatter'\)"):
        exact.scatter(counts(), IntegerDelays.of(rounded(max_delay=9)).begin(3, "scatter"))


NETS: dict[str, dict[str, Any]] = {
    "learned": {},
    "3L2KC": {"depth": 3, "kernel_count": 2},
    "plif_filter": {"neuron": "plif", "filter_tau": 1.6, "learn_filter": True},
    "heaviside": {"neuron": "heaviside"},
    "sparse": {"sparsity": 0.5},
    "lossless": {"tail": "lossless"},
}


def network(kind: str) -> DelaySNN:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"in_features": 12, "hidden": 10, "num_classes": 5, "max_delay": 7, "tau": 1.5}
    model = DelaySNN(DelaySNNConfig(**{**sizes, **NETS[kind]})).double().eval()
    for module in model.modules():
        if isinstance(module, NormNeuron):
            nn.init.constant_(module.bias, 0.5)
    model.round_()
    return model.requires_grad_(False)


@pytest.mark.parametrize("kind", NETS)
def test_networks_whole_as_streams_and_counted(kind: str) -> None:
    dense, x = network(kind), counts(9, 3, 12)
    model = integer_(copy.deepcopy(dense))
    assert [type(layer) for layer in model.delayed()] == [IntegerDelayConv1d] * len(dense.delayed())
    expected = dense(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-12)
    for sizes in ([1] * 9, [2, 6, 1]):
        stream, chunks = Stream(model), x.split(sizes)
        parts = [stream(chunk) for chunk in chunks[:-1]]
        torch.testing.assert_close(torch.cat([*parts, stream(chunks[-1], tail=True)]), expected, rtol=1e-11, atol=1e-12)
    found = []
    for net in (dense, model):
        with count(net, strict=True) as run:
            net(x, tail=False)
        found.append([(a.name, a.op, a.sop.tolist(), a.dense_nominal, a.geometry) for a in run.counts().layers])
    assert found[0] == found[1]
    model.settle_()  # no buffer of the layers is missing, those that are None too
    with model.rounded():
        assert torch.equal(model(x), integer_(copy.deepcopy(dense))(x))
    assert model.state_dict().keys() == dense.state_dict().keys()


def test_integer_leaves_a_network_alone_that_is_not_rounded() -> None:
    model = network("learned")
    with torch.no_grad():
        model.head.synapse.P.add_(0.25)
    with pytest.raises(ValueError, match="round_positions_"):
        integer_(model)
    assert not any(isinstance(layer, IntegerDelayConv1d) for layer in model.delayed())


def test_operations_are_counted_as_the_reference_counts_them() -> None:
    """Deliveries within the chunks (gather), or until an end (scatter), element by element."""
    exact, x = IntegerDelays.of(rounded(tail="none")), counts()
    gather, scatter = exact.begin(3, "gather"), exact.begin(3, "scatter")
    channel = (torch.arange(6) // 3 * 2)[:, None, None] + torch.arange(2)[:, None]
    events = 0
    for t in range(13):
        for d in range(min(t + 1, 7)):
            fan = torch.bincount(channel.expand_as(exact.delay)[exact.delay == d], minlength=4)
            events += int(((x[t - d] != 0) * fan).sum())
    for chunk in x.split([1, 9, 3]):
        exact.gather(chunk, gather)
        exact.scatter(chunk, scatter, until=13)
    assert gather.events == scatter.events == events


def test_the_layer_compiles_without_a_break() -> None:
    made, x = IntegerDelayConv1d.of(rounded()), counts()
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), made(x))


@pytest.mark.gpu
def test_a_stream_on_a_gpu() -> None:
    made, x = IntegerDelayConv1d.of(rounded(tail="official")).cuda(), counts().cuda()
    stream, chunks = Stream(made), x.split([1, 7, 5])
    parts = [*(stream(chunk) for chunk in chunks[:-1]), stream(chunks[-1], tail=True)]
    assert torch.equal(torch.cat(parts), made(x))
    assert torch.equal(made(x).cpu(), made.cpu()(x.cpu()))


def test_a_layer_with_hooks_stays() -> None:
    model = create_model("delays_shd_2l_1kc", in_features=6, hidden=8, num_classes=3, max_delay=5).eval()
    model.round_()
    handle = model.delayed()[0].register_forward_hook(lambda *given: None)
    with pytest.raises(ValueError, match=r"blocks\.0\.synapse has hooks"):
        integer_(model)
    handle.remove()
    assert integer_(model) is model
