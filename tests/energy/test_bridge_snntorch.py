"""Networks written with snnTorch are counted exactly, with the loop over time inside or outside of the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.energy.bridge_oracle import check, counted, random_spikes, record, same_counts
from torch import Tensor, nn

from spikeloom import neurons as loom
from spikeloom import synapses
from spikeloom.energy import count
from spikeloom.energy.counts import NeuronCount, PoolCount

snn = pytest.importorskip("snntorch")

from snntorch import utils  # noqa: E402

T, B = 5, 3
SPIKING = (snn.SpikingNeuron,)


class ConvNet(nn.Module):
    """The tutorial's network: states are returned and passed on; the loop over time is inside.

    Args:
        static: the input is one image [B, ...], shown at every step.
    """

    def __init__(self, static: bool = False, reset: str = "subtract") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.static = static
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 5), nn.Conv2d(4, 6, 3, stride=2)
        self.fc = nn.Linear(6 * 2 * 2, 5)
        self.lif1, self.lif2, self.lif3 = (snn.Leaky(beta=0.8, threshold=0.3, reset_mechanism=reset) for _ in range(3))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        out = []
        for t in range(T):
            spk1, mem1 = self.lif1(self.pool(self.conv1(x if self.static else x[t])), mem1)
            spk2, mem2 = self.lif2(self.conv2(spk1), mem2)
            spk3, mem3 = self.lif3(self.fc(spk2.flatten(1)), mem3)
            out.append(spk3)
        return torch.stack(out)


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_loop_inside(reset: str) -> None:
    net, x = ConvNet(reset=reset), random_spikes(T, B, 2, 16, 16)
    recorded, before = record(net, SPIKING, lambda: net(x))
    counts, result = counted(net, lambda run: net(x))
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    assert [(n.model, n.states, n.soft_reset) for n in counts.of(NeuronCount)] == [("lif", 1, reset == "subtract")] * 3
    assert all(n.spikes.any() for n in counts.of(NeuronCount))


def test_image_at_every_step() -> None:
    net, x = ConvNet(static=True), torch.rand(B, 2, 16, 16)
    recorded, before = record(net, SPIKING, lambda: net(x))
    counts, result = counted(net, lambda run: net(x), T=T)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    first = counts.layer("conv1")
    assert (first.kind, first.static_input, first.sop[0].tolist()) == ("float", True, first.sop[1].tolist())


def hidden_net() -> nn.Sequential:
    """Neurons that keep their state themselves; the loop over time is outside."""
    torch.manual_seed(1)
    options: dict[str, Any] = {"beta": 0.7, "threshold": 0.2, "init_hidden": True}
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        snn.Leaky(**options, reset_delay=False),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 8),
        snn.Synaptic(alpha=0.9, **options),
        nn.Linear(8, 4),
        snn.Leaky(**options, output=True),
    )


def test_loop_outside() -> None:
    net, x = hidden_net(), random_spikes(T, B, 2, 8, 8)

    def call(run: Any = None) -> Tensor:
        utils.reset(net)
        if run is None:
            return torch.stack([net(step)[0] for step in x])
        with run.batch(T=T, B=B):
            return torch.stack([net(step)[0] for step in x])

    call()  # states of a run before are buffers when counting begins
    recorded, before = record(net, SPIKING, call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    assert [(n.model, n.states) for n in counts.of(NeuronCount)] == [("lif", 1), ("synaptic", 2), ("lif", 1)]
    assert counts.layer("4").kind == "scaled_integer"


class Loom(nn.Module):
    """snnTorch's integrate-and-fire with the loom's neurons: no leak, and no reset."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 3)
        self.lif1, self.lif2 = (snn.Leaky(beta=1.0, threshold=1.0, reset_delay=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in x:
            spk1, mem1 = self.lif1(self.fc1(step), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(spk2)
        return torch.stack(out)


def test_same_as_the_same_network_in_the_loom() -> None:
    """beta = 1 is a soft-reset IF, if spikes are subtracted at once (and no membrane is on the threshold)."""
    net, x = Loom(), random_spikes(T, B, 6)
    ours = nn.Sequential(synapses.Linear(6, 8), loom.IF(v_reset=None), synapses.Linear(8, 3), loom.IF(v_reset=None))
    ours[0].load_state_dict(net.fc1.state_dict())
    ours[2].load_state_dict(net.fc2.state_dict())
    counts, result = counted(net, lambda run: net(x))
    wanted, same = counted(ours, lambda run: ours(x))
    assert torch.equal(result, same)
    same_counts(counts, wanted, {"fc1": "0", "fc2": "2"})


# --- neurons ----------------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[..., nn.Module], str, int]] = {
    "leaky": (lambda **o: snn.Leaky(beta=0.9, **o), "lif", 1),
    "lapicque": (lambda **o: snn.Lapicque(beta=0.9, **o), "lif", 1),
    "synaptic": (lambda **o: snn.Synaptic(alpha=0.9, beta=0.8, **o), "synaptic", 2),
    "alpha": (lambda **o: snn.Alpha(alpha=0.9, beta=0.8, **o), "alpha", 3),
}


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("name", KINDS)
def test_neurons(name: str, reset: str) -> None:
    build, model, states = KINDS[name]
    node = build(threshold=0.1, init_hidden=True, reset_mechanism=reset)
    x = random_spikes(T, B, 4, 2)

    def call(run: Any = None) -> Tensor:
        node.reset_mem()
        return torch.stack([node(step) for step in x])

    before = call()
    with count(strict=True) as run, run.batch(T=T, B=B):
        result = call()
    assert torch.equal(result, before)
    counts = run.counts()
    (entry,) = counts.aux
    assert isinstance(entry, NeuronCount)
    assert (entry.model, entry.states, entry.updates) == (model, states, 8)
    assert entry.soft_reset == (reset == "subtract")
    np.testing.assert_array_equal(entry.spikes, (before != 0).sum((2, 3)).numpy())
    np.testing.assert_array_equal(entry.touched, x.sum((2, 3)).numpy())
    assert before.any()


def test_delta_neurons() -> None:
    node = snn.DeltaLeaky(0.5, beta=0.9, init_hidden=True)
    x = random_spikes(T, B, 4)
    with count(strict=True) as run, run.batch(T=T, B=B):
        result = torch.stack([node(step)[0] for step in x])
    (entry,) = run.counts().aux
    assert (entry.model, entry.states, entry.soft_reset) == ("delta_lif", 2, False)
    np.testing.assert_array_equal(entry.spikes, (result != 0).sum(2).numpy())


class Recurrent(nn.Module):
    """A recurrent neuron between two linear layers, on [T, B, ...]."""

    def __init__(self, node: nn.Module, front: nn.Module, hidden: bool) -> None:
        super().__init__()
        self.front, self.node, self.hidden = front, node, hidden

    def forward(self, x: Tensor) -> Tensor:
        state, out = list(self.node.reset_mem()), []
        for step in x:
            if self.hidden:
                out.append(self.node(self.front(step)))
                continue
            spk, *state = self.node(self.front(step), *state)
            state = [spk, *state]
            out.append(spk)
        return torch.stack(out)


def recurrent(kind: str, form: str, **options: Any) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """A recurrent neuron, the layer before it, and the shape of that one's input."""
    torch.manual_seed(0)
    forms: dict[str, dict[str, Any]] = {
        "linear": {"linear_features": 6},
        "conv": {"conv2d_channels": 3, "kernel_size": 3},
        "own": {"all_to_all": False, "V": 0.5},
    }
    build = {
        "RLeaky": lambda **o: snn.RLeaky(beta=0.8, **o),
        "RSynaptic": lambda **o: snn.RSynaptic(alpha=0.7, beta=0.8, **o),
    }
    front = nn.Conv2d(2, 3, 3) if form == "conv" else nn.Linear(4, 6)
    return build[kind](threshold=0.3, **forms[form], **options), front, (2, 7, 7) if form == "conv" else (4,)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("form", ["linear", "conv", "own"])
@pytest.mark.parametrize("kind", ["RLeaky", "RSynaptic"])
def test_recurrent_neurons(kind: str, form: str, reset: str, hidden: bool) -> None:
    """The recurrent weight is a layer on the last spikes, once per step, however often the library computes it."""
    node, front, shape = recurrent(kind, form, reset_mechanism=reset, init_hidden=hidden)
    net, x = Recurrent(node, front, hidden), random_spikes(T, B, *shape)
    recorded, before = record(net, SPIKING, lambda: net(x))
    calls = recorded.inputs.get("node.recurrent", [])
    if reset == "zero":
        recorded.inputs["node.recurrent"] = calls[::2]
    currents: list[Tensor] = []
    last = torch.zeros_like(before[0])
    with torch.no_grad():
        for t, step in enumerate(x):
            currents.append(front(step) + node.recurrent(last))
            last = before[t]
    counts, result = counted(net, lambda run: net(x))
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    assert [layer.name for layer in counts.layers] == ["front", "node.recurrent"][: 1 if form == "own" else 2]
    (entry,) = counts.of(NeuronCount)
    assert entry.model == {"RLeaky": "recurrent_lif", "RSynaptic": "synaptic"}[kind]
    np.testing.assert_array_equal(entry.touched, (torch.stack(currents) != 0).flatten(2).sum(2).numpy())
    assert before.any()


def test_touched_needs_the_recurrent_current() -> None:
    """Without input and bias only the feedback of one neuron drives the others."""
    node = snn.RLeaky(beta=0.5, linear_features=3, threshold=0.5, init_hidden=True)
    with torch.no_grad():
        node.recurrent.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        node.recurrent.bias.zero_()
    x = torch.zeros(3, 1, 3)
    x[0, 0, 0] = 1.0
    with torch.no_grad(), count(strict=True) as run, run.batch(T=3, B=1):
        for step in x:
            node(step)
    counts = run.counts()
    assert counts.of(NeuronCount)[0].touched[:, 0].tolist() == [1, 2, 0]
    assert counts.layers[0].sop[:, 0].tolist() == [0, 3, 6]


@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
def test_spiking_lstm(reset: str) -> None:
    """The cell's hidden state is the membrane, an analogue operand; every update is a touched one."""
    torch.manual_seed(0)
    node = snn.SLSTM(6, 6, threshold=0.05, reset_mechanism=reset)
    x, kept = random_spikes(T, B, 6), []

    def call(run: Any = None) -> Tensor:
        syn, mem = node.reset_mem()
        out = []
        for step in x:
            spk, syn, mem = node(step, syn, mem)
            kept.append(mem)
            out.append(spk)
        return torch.stack(out)

    with torch.no_grad():
        before = call()
    last = torch.stack([torch.zeros(B, 6), *kept[: T - 1]])
    with torch.no_grad(), count(node, strict=True) as run, run.batch(T=T, B=B):
        result = call()
    assert torch.equal(result, before)
    counts = run.counts()
    first, second = (counts.layer(f"lstm_cell.weight_{part}") for part in ("ih", "hh"))
    np.testing.assert_array_equal(first.sop, 24 * x.sum(2).numpy())
    np.testing.assert_array_equal(second.sop, 24 * (last != 0).sum(2).numpy())
    assert (first.kind, second.kind, second.dense_exact, second.bias_adds) == ("binary", "float", 6 * 24, 24)
    (entry,) = counts.aux
    assert isinstance(entry, NeuronCount)
    assert (entry.model, entry.states, entry.updates, set(entry.touched.flat)) == ("spiking_lstm", 2, 6, {6})
    np.testing.assert_array_equal(entry.spikes, before.sum(2).numpy())
    assert before.any()


@pytest.mark.parametrize("pool", [{}, {"max_pool": 2}, {"avg_pool": 2}], ids=["plain", "max", "avg"])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_spiking_convolutional_lstm(pool: dict[str, int], reset: str) -> None:
    """Membranes are pooled before they fire: there are more neurons than outputs."""
    torch.manual_seed(0)
    node = snn.SConv2dLSTM(2, 3, 3, threshold=0.02, reset_mechanism=reset, **pool)
    x = random_spikes(T, B, 2, 6, 6)

    def call(run: Any = None) -> Tensor:
        syn, mem = node.reset_mem()
        out = []
        for step in x:
            spk, syn, mem = node(step, syn, mem)
            out.append(spk)
        return torch.stack(out)

    recorded, before = record(node, (), call)
    if reset == "zero":
        recorded.inputs["conv"] = recorded.inputs["conv"][::2]
    with torch.no_grad(), count(node, strict=True) as run, run.batch(T=T, B=B):
        result = call()
    assert torch.equal(result, before)
    counts = run.counts()
    (entry,) = counts.of(NeuronCount)
    assert (entry.model, entry.states, entry.updates) == ("spiking_lstm", 2, 3 * 36)
    np.testing.assert_array_equal(entry.spikes, before.flatten(2).sum(2).numpy())
    counts.aux = [a for a in counts.aux if not isinstance(a, NeuronCount)]
    check(counts, recorded, T, B)
    assert len(counts.of(PoolCount)) == len(pool)
    assert before.any()


def test_a_step_that_looks_like_a_batch() -> None:
    """A step of [T, features] while T is the number of samples: the error says what to do."""
    net = nn.Sequential(nn.Linear(6, 4), snn.Leaky(beta=0.5, init_hidden=True))
    with torch.no_grad(), count(net), pytest.raises(ValueError, match=r"run\.batch"):
        net(random_spikes(T, B, 6)[0])
