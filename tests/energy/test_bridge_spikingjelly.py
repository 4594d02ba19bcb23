"""Networks written with SpikingJelly are counted exactly, in both step modes, and compute what they computed before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.energy.bridge_oracle import (
    check,
    check_neurons,
    counted,
    over_time,
    random_spikes,
    record,
    same_counts,
)
from torch import Tensor, nn

from spikeloom import neurons as loom
from spikeloom import synapses
from spikeloom.energy import count
from spikeloom.energy.counts import Counts, NeuronCount, NormCount, PairCount, PoolCount

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron

T, B = 4, 3
NEURONS = (neuron.BaseNode, neuron.SimpleBaseNode)


def conv_net() -> nn.Sequential:
    """Convolutions, pools, a linear layer; a normalisation that folds."""
    torch.manual_seed(1)
    net = nn.Sequential(
        layer.Conv2d(2, 6, 3, padding=1, bias=False),
        layer.BatchNorm2d(6),
        neuron.LIFNode(tau=2.0, v_threshold=0.3),
        layer.MaxPool2d(2),
        layer.Conv2d(6, 4, 3, padding=1, stride=2, groups=2),
        neuron.IFNode(v_reset=None, v_threshold=0.2),
        layer.AvgPool2d(2),
        layer.Flatten(),
        layer.Linear(4 * 2 * 2, 7),
        neuron.ParametricLIFNode(v_threshold=0.1),
    )
    return net.eval()


class SEWBlock(nn.Module):
    """Two convolutions whose spikes are added to, or mask, the block's input."""

    def __init__(self, channels: int, join: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = (layer.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = (layer.BatchNorm2d(channels) for _ in range(2))
        self.sn1, self.sn2 = (neuron.IFNode(v_threshold=0.2) for _ in range(2))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        out = self.sn2(self.bn2(self.conv2(self.sn1(self.bn1(self.conv1(x))))))
        return {"ADD": lambda: x + out, "AND": lambda: x * out, "IAND": lambda: x * (1.0 - out)}[self.join]()


def sew_net(join: str) -> nn.Sequential:
    """Two residual blocks between convolutions."""
    torch.manual_seed(2)
    blocks = [SEWBlock(5, join), SEWBlock(5, join)]
    net = nn.Sequential(
        layer.Conv2d(2, 5, 3, bias=False), neuron.LIFNode(v_threshold=0.2), *blocks, layer.Conv2d(5, 3, 1)
    )
    return net.eval()


def recurrent_net() -> nn.Sequential:
    """A layer with all-to-all feedback, one with feedback of every neuron to itself."""
    torch.manual_seed(3)
    every = layer.LinearRecurrentContainer(neuron.LIFNode(v_threshold=0.2), in_features=9, out_features=9)
    itself = layer.ElementWiseRecurrentContainer(neuron.IFNode(v_threshold=0.4), torch.add)
    return nn.Sequential(layer.Linear(8, 9), every, layer.Linear(9, 6), itself, layer.Linear(6, 2)).eval()


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (conv_net, (2, 16, 16)),
    "sew_add": (lambda: sew_net("ADD"), (2, 8, 8)),
    "sew_and": (lambda: sew_net("AND"), (2, 8, 8)),
    "sew_iand": (lambda: sew_net("IAND"), (2, 8, 8)),
    "recurrent": (recurrent_net, (8,)),
}


def run(net: nn.Module, x: Tensor, mode: str) -> Callable[..., Tensor]:
    """The call of a network on x [T, B, ...] in a step mode, under a run or alone."""
    functional.set_step_mode(net, mode)
    for module in net.modules():  # the neurons of recurrent containers see one step per call
        if isinstance(module, layer.LinearRecurrentContainer | layer.ElementWiseRecurrentContainer):
            module.sub_module.step_mode = "s"
    return as_is(net, x, mode)


def as_is(net: nn.Module, x: Tensor, mode: str = "m") -> Callable[..., Tensor]:
    """The same for modules that are in their step mode already."""
    return over_time(net, x, mode == "m", lambda: functional.reset_net(net))


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", NETS)
def test_counts_are_those_recorded(name: str, mode: str) -> None:
    build, shape = NETS[name]
    net, x = build(), random_spikes(T, B, *shape)
    call = run(net, x, mode)
    recorded, before = record(net, NEURONS, call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    assert all(n.spikes.any() for n in counts.of(NeuronCount))
    check(counts, recorded, T, B)
    assert torch.equal(call(), before)


@pytest.mark.parametrize("name", NETS)
def test_step_modes_agree(name: str) -> None:
    build, shape = NETS[name]
    x = random_spikes(T, B, *shape)
    by_mode = []
    for mode in ("s", "m"):
        net = build()
        by_mode.append(counted(net, run(net, x, mode))[0])
    same_counts(*by_mode)
    for kind in (PairCount, NormCount, PoolCount):
        left, right = (counts.of(kind) for counts in by_mode)
        assert [vars(a).keys() for a in left] == [vars(b).keys() for b in right]
        for a, b in zip(left, right, strict=True):
            for field in vars(a):
                np.testing.assert_array_equal(getattr(a, field), getattr(b, field), f"{a.name} {field}")


def test_residual_sums_and_folds() -> None:
    net, x = sew_net("ADD"), random_spikes(T, B, 2, 8, 8)
    counts, _ = counted(net, run(net, x, "m"))
    assert [(n.name, n.folds_into) for n in counts.of(NormCount)] == [
        (f"{block}.bn{i}", f"{block}.conv{i}") for block in (2, 3) for i in (1, 2)
    ]
    adds = counts.of(PairCount)
    assert [(a.op, a.out_kind) for a in adds] == [("add", "integer")] * 2
    assert counts.layer("4").kind == "integer"
    assert counts.layer("2.conv1").kind == "binary"
    assert counts.layer("3.conv1").kind == "integer"


class Encoded(nn.Module):
    """The loom's layers in the order of `conv_net`, with its weights."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        conv1, bn, _, _, conv2, _, _, _, fc, _ = net
        self.net = nn.Sequential(
            synapses.Conv2d(2, 6, 3, padding=1, bias=False),
            synapses.BatchNorm2d(6),
            loom.LIF(tau=2.0, v_threshold=0.3),
            synapses.MaxPool2d(2),
            synapses.Conv2d(6, 4, 3, padding=1, stride=2, groups=2),
            loom.IF(v_reset=None, v_threshold=0.2),
            synapses.AvgPool2d(2),
            synapses.Flatten(),
            synapses.Linear(16, 7),
            loom.LIF(tau=2.0, v_threshold=0.1),
        ).eval()
        for index, source in ((0, conv1), (1, bn), (4, conv2), (8, fc)):
            self.net[index].load_state_dict(source.state_dict())


def test_same_as_the_same_network_in_the_loom() -> None:
    net, x = conv_net(), random_spikes(T, B, 2, 16, 16)
    counts, result = counted(net, run(net, x, "m"))
    ours = Encoded(net).net
    wanted, same = counted(ours, lambda run: ours(x))
    assert torch.equal(result, same)
    same_counts(counts, wanted)
    assert [p.incidences.tolist() for p in counts.of(PoolCount)] == [
        p.incidences.tolist() for p in wanted.of(PoolCount)
    ]


# --- layers and containers --------------------------------------------------------------------------------------------


def test_containers_that_fold_time() -> None:
    """A container's layers are counted like those that fold time themselves."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(2, 3, 3, bias=False), nn.Linear(3 * 36, 4)
    net = nn.Sequential(
        layer.SeqToANNContainer(conv, nn.BatchNorm2d(3)),
        layer.MultiStepContainer(neuron.LIFNode(v_threshold=0.2), nn.Flatten()),
        layer.StepModeContainer(False, "m", linear),
        layer.StepModeContainer(True, "m", neuron.IFNode(v_threshold=0.2)),
        layer.SynapseFilter(tau=2.0, step_mode="m"),
    ).eval()
    x = random_spikes(T, B, 2, 8, 8)
    call = as_is(net, x)
    recorded, before = record(net, NEURONS, call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    filtered = [n for n in counts.of(NeuronCount) if not n.spiking]
    assert [(n.name, n.model, n.states, n.updates) for n in filtered] == [("4", "li", 1, 4)]
    counts.aux = [a for a in counts.aux if a not in filtered]
    check(counts, recorded, T, B)
    assert [n.folds_into for n in counts.of(NormCount)] == ["0.0"]


def test_containers_with_time_last() -> None:
    """Layers that are mapped over the last axis count as those on time in front."""
    torch.manual_seed(0)
    fold = layer.TLastSeqToANNContainer(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3))
    net = nn.Sequential(fold, layer.TLastMultiStepContainer(neuron.IFNode(v_threshold=0.2))).eval()
    x = random_spikes(T, B, 2, 6, 6)
    last = x.movedim(0, -1)
    wanted = nn.Sequential(layer.SeqToANNContainer(*fold), layer.MultiStepContainer(*net[1])).eval()
    expected, _ = counted(wanted, as_is(wanted, x))
    with torch.no_grad():
        before = as_is(net, last)()
    counts, result = counted(net, as_is(net, last), T=T)
    assert torch.equal(result, before)
    same_counts(counts, expected)
    assert counts.of(NormCount) == expected.of(NormCount)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_normalisation_with_weights_per_step_is_one(mode: str) -> None:
    net = nn.Sequential(
        layer.Conv2d(2, 3, 3), layer.BatchNormThroughTime2d(T, 3), neuron.LIFNode(v_threshold=0.2)
    ).eval()
    x = random_spikes(T, B, 2, 6, 6)
    call = run(net, x, mode)
    recorded, before = record(net, NEURONS, call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    (norm,) = counts.of(NormCount)
    assert (norm.name, norm.elements, norm.folds_into) == ("1", 3 * 16, "0")


@pytest.mark.parametrize("mode", ["s", "m"])
def test_standardised_weights_are_weights(mode: str) -> None:
    net = nn.Sequential(layer.WSConv2d(2, 3, 3), neuron.IFNode(v_threshold=0.2), layer.Flatten(), layer.WSLinear(48, 2))
    call = run(net, random_spikes(T, B, 2, 6, 6), mode)
    recorded, before = record(net, NEURONS, call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)


# --- the run ----------------------------------------------------------------------------------------------------------


def test_states_that_stay_between_batches() -> None:
    """Without a reset the second batch starts from the membranes of the first, and is counted from them."""
    net, x, y = recurrent_net(), random_spikes(T, B, 8), random_spikes(T, B, 8, seed=1)
    functional.set_step_mode(net, "m")
    for container in (net[1], net[3]):
        container.sub_module.step_mode = "s"
    both: list[Tensor] = []

    def call(run: Any = None) -> None:
        both[:] = [net(x), net(y)]

    recorded, _ = record(net, NEURONS, call)
    wanted = list(both)
    functional.reset_net(net)
    counts, _ = counted(net, call)
    assert all(torch.equal(a, b) for a, b in zip(both, wanted, strict=True))
    rc = counts.layer("1.rc")
    fed = [(x != 0).sum(1) * 9 for x in recorded.inputs["1.rc"]]
    np.testing.assert_array_equal(rc.sop, torch.cat([torch.stack(fed[:T]), torch.stack(fed[T:])], 1).numpy())


def test_inference_mode_and_training_count_the_same() -> None:
    x = random_spikes(T, B, 2, 16, 16)
    found: list[Counts] = []
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        net = conv_net()
        functional.set_step_mode(net, "m")
        with context(), count(net, strict=True) as run:
            result = net(x)
        if result.requires_grad:
            result.sum().backward()
        found.append(run.counts())
    same_counts(found[0], found[1])
    same_counts(found[0], found[2])


def test_a_loop_over_steps_must_be_marked() -> None:
    """One step of [B, C, H, W] has the shape of B steps of C samples; the error says how to tell them apart."""
    net = nn.Sequential(layer.Conv2d(1, 3, 3), neuron.IFNode()).eval()
    x = random_spikes(T, B, 1, 8, 8)
    with torch.no_grad(), count(net), pytest.raises(ValueError, match=r"run\.batch"):
        net(x[0])


def test_a_subclass_of_the_user_is_known_by_its_base() -> None:
    class Mine(neuron.LIFNode):
        pass

    class Own(neuron.BaseNode):
        def single_step_functional_forward(self, inputs: Any, states: Any, **_: Any) -> Any:
            v = states[0] + inputs[0]
            s = (v >= 1).to(v)
            return (s,), (v - s, *states[1:])

    net = nn.Sequential(Mine(step_mode="m"), Own(step_mode="m"))
    counts, _ = counted(net, lambda run: net(random_spikes(T, B, 5)))
    assert [n.model for n in counts.of(NeuronCount)] == ["lif", "Own"]
    check_neurons(counts, record(net, NEURONS, as_is(net, random_spikes(T, B, 5)))[0], T, B)
