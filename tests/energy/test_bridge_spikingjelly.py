"""Networks written with SpikingJelly are counted exactly, in both step modes, and compute what they computed before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.energy.bridge_oracle import check, check_neurons, counted, record, same_counts
from torch import Tensor, nn

from spikeloom import neurons as loom
from spikeloom import synapses
from spikeloom.energy import count
from spikeloom.energy.counts import Counts, NeuronCount, NormCount, PairCount, PoolCount

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron, rnn  # noqa: E402

T, B = 4, 3
NEURONS = (neuron.BaseNode, neuron.SimpleBaseNode)


def spikes(*shape: int, rate: float = 0.3, seed: int = 0) -> Tensor:
    """Random spikes [T, B, *shape]."""
    return (torch.rand(T, B, *shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


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
    net = nn.Sequential(layer.Conv2d(2, 5, 3, bias=False), neuron.LIFNode(v_threshold=0.2), *blocks, layer.Conv2d(5, 3, 1))
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

    def call(run: Any = None) -> Tensor:
        functional.reset_net(net)
        if mode == "m":
            return net(x)
        if run is None:
            return torch.stack([net(step) for step in x])
        with run.batch(T=T, B=B):
            return torch.stack([net(step) for step in x])

    return call


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("name", NETS)
def test_counts_are_those_recorded(name: str, mode: str) -> None:
    build, shape = NETS[name]
    net, x = build(), spikes(*shape)
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
    x = spikes(*shape)
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
    net, x = sew_net("ADD"), spikes(2, 8, 8)
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
        conv1, bn, _, _, conv2, _, _, _, fc, plif = net
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
    net, x = conv_net(), spikes(2, 16, 16)
    counts, result = counted(net, run(net, x, "m"))
    ours = Encoded(net).net
    wanted, same = counted(ours, lambda run: ours(x))
    assert torch.equal(result, same)
    same_counts(counts, wanted)
    assert [p.incidences.tolist() for p in counts.of(PoolCount)] == [p.incidences.tolist() for p in wanted.of(PoolCount)]


# --- neurons -----------------------------------------------------------------------------------------------------------

SOFT = {"v_reset": None}
KINDS: list[tuple[str, Callable[[], nn.Module], str, int, bool]] = [
    ("simple_if", lambda: neuron.SimpleIFNode(), "if", 1, False),
    ("simple_lif", lambda: neuron.SimpleLIFNode(2.0, True), "lif", 1, False),
    ("if", lambda: neuron.IFNode(), "if", 1, False),
    ("if_soft", lambda: neuron.IFNode(**SOFT), "if", 1, True),
    ("half_threshold", lambda: neuron.HalfThresholdIFNode(), "if", 1, True),
    ("activation_aware", lambda: neuron.ActivationAwareIFNode(), "if", 1, True),
    ("lif", lambda: neuron.LIFNode(), "lif", 1, False),
    ("lif_soft", lambda: neuron.LIFNode(decay_input=False, **SOFT), "lif", 1, True),
    ("plif", lambda: neuron.ParametricLIFNode(), "plif", 1, False),
    ("ilif", lambda: neuron.ILIFNode(), "ilif", 1, True),
    ("qif", lambda: neuron.QIFNode(), "qif", 1, False),
    ("eif", lambda: neuron.EIFNode(), "eif", 1, False),
    ("izhikevich", lambda: neuron.IzhikevichNode(), "izhikevich", 2, False),
    ("klif", lambda: neuron.KLIFNode(), "klif", 1, False),
    ("clif", lambda: neuron.ComplementaryLIFNode(), "complementary_lif", 2, True),
    ("cuba", lambda: neuron.CUBALIFNode(), "cuba_lif", 2, False),
    ("liaf", lambda: neuron.LIAFNode(torch.relu, True), "liaf", 1, False),
    ("mpbn", lambda: neuron.MPBNLIFNode(out_features=5, mpbn=False), "mpbn_lif", 1, False),
    ("ternary_if", lambda: neuron.TernaryIFNode(), "ternary_if", 1, False),
    ("ternary_lif", lambda: neuron.TernaryLIFNode(**SOFT), "ternary_lif", 1, True),
    ("raf", lambda: neuron.RAFNode(), "resonate_and_fire", 2, False),
    ("ottt", lambda: neuron.OTTTLIFNode(), "lif", 1, True),
    ("sltt", lambda: neuron.SLTTLIFNode(), "lif", 1, False),
    ("st_bif", lambda: neuron.STBIFNode(0.5, 8), "st_bif", 2, True),
    ("gated", lambda: neuron.GatedLIFNode(T=T, inplane=5), "gated_lif", 2, True),
    ("dsr_if", lambda: neuron.DSRIFNode(T=T, v_threshold=1.0), "if", 1, True),
    ("dsr_lif", lambda: neuron.DSRLIFNode(T=T), "lif", 1, True),
    ("noisy", lambda: neuron.NoisyCUBALIFNode(5, is_training=False, T=T), "cuba_lif", 2, False),
    ("few_spike", lambda: neuron.FewSpikeNode(neuron.FewSpikeTable([2.0, 1.0, 0.5, 0.2], [2.0, 1.0, 0.5, 0.2], [2.0, 1.0, 0.5, 0.2])), "few_spike", 1, True),
    ("flex", lambda: neuron.FlexSN(flex_core, 1, step_mode="s"), "flex_sn", 1, False),
]


def flex_core(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """An integrate-and-fire step for `FlexSN`."""
    v = v + x
    s = (v >= 1.0).to(x)
    return s, v * (1.0 - s)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize(("build", "model", "states", "soft"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_neurons(build: Callable[[], nn.Module], model: str, states: int, soft: bool, mode: str) -> None:
    torch.manual_seed(0)
    node = build().eval()
    wide = isinstance(node, neuron.GatedLIFNode)
    try:
        functional.set_step_mode(node, mode)
        node.step_mode = mode
    except (ValueError, AssertionError):
        pytest.skip(f"{type(node).__name__} has no step mode {mode!r}")
    sequences = neuron.GatedLIFNode, neuron.DSRIFNode, neuron.DSRLIFNode, neuron.NoisyBaseNode
    if isinstance(node, sequences if mode == "s" else neuron.OTTTLIFNode):
        pytest.skip(f"{type(node).__name__} does not run in step mode {mode!r}")
    net = nn.Sequential(layer.Linear(6, 5), nn.Unflatten(-1, (5, 1, 1)) if wide else nn.Identity(), node).eval()
    net[0].step_mode = mode
    x = 3 * spikes(6, rate=0.6)
    call = run_once(net, x, mode)
    recorded, before = record(net, (type(node),), call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    (entry,) = counts.of(NeuronCount)
    assert (entry.model, entry.states, entry.soft_reset, entry.spiking) == (model, states, soft, True)
    assert entry.updates == 5
    assert entry.touched.sum() > 0
    silent, _ = counted(node, run_once(node, torch.zeros(T, B, 5, *((1, 1) if wide else ())), mode))
    assert not silent.of(NeuronCount)[0].touched.any()
    assert [a for a in silent.aux if not isinstance(a, NeuronCount)] == []


def run_once(net: nn.Module, x: Tensor, mode: str) -> Callable[..., Tensor]:
    """As `run`, for modules that are in their step mode already."""

    def call(run: Any = None) -> Tensor:
        functional.reset_net(net)
        if mode == "m":
            return net(x)
        if run is None:
            return torch.stack([net(step) for step in x])
        with run.batch(T=T, B=B):
            return torch.stack([net(step) for step in x])

    return call


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("kind", ["psn", "masked", "sliding"])
def test_parallel_neurons_multiply_the_steps_they_see(kind: str, k: int, mode: str) -> None:
    """One product per neuron and step that it sees, booked in the step whose neuron it drives; kinds are judged."""
    torch.manual_seed(0)
    node = {
        "psn": lambda: neuron.PSN(T),
        "masked": lambda: neuron.MaskedPSN(k, T, lambda_init=1.0),
        "sliding": lambda: neuron.SlidingPSN(k),
    }[kind]()
    if kind == "psn" and mode == "s":
        pytest.skip("for sequences alone")
    node.step_mode = mode
    x = spikes(5, 2)
    call = run_once(node, x, mode)
    before = call() if kind == "psn" else record(node, (), call)[1]
    counts, result = counted(node, call)
    assert torch.equal(result, before)
    events = (x != 0).sum((2, 3)).numpy()
    seen = [range(T) if kind == "psn" else range(max(0, t + 1 - k), t + 1) for t in range(T)]
    (linear,) = counts.layers
    assert linear.kind == "binary"
    np.testing.assert_array_equal(linear.sop, [sum(events[s] for s in steps) for steps in seen])
    assert linear.dense_exact == sum(len(steps) for steps in seen) * 10 / T
    (entry,) = counts.of(NeuronCount)
    np.testing.assert_array_equal(entry.spikes, (result != 0).sum((2, 3)).numpy())
    np.testing.assert_array_equal(entry.touched, events)
    assert (entry.updates, entry.states) == (10, T if kind == "psn" else k)


@pytest.mark.parametrize("decode", [None, "max-mem", "max-abs-mem", "mean-mem", "last_mem"])
@pytest.mark.parametrize("kind", [neuron.NonSpikingIFNode, neuron.NonSpikingLIFNode])
def test_read_outs(kind: type[nn.Module], decode: str | None) -> None:
    node, x = kind(decode=decode), spikes(5)
    before = node(x)
    counts, result = counted(node, lambda run: node(x))
    assert torch.equal(torch.stack(list(result)), torch.stack(list(before)))
    (entry,) = counts.of(NeuronCount)
    assert (entry.updates, entry.states, entry.spiking, entry.soft_reset) == (5, 1, False, False)
    np.testing.assert_array_equal(entry.touched, x.sum(2).numpy())
    np.testing.assert_array_equal(entry.spikes, (x.cumsum(0) != 0).sum(2).numpy())


@pytest.mark.parametrize("noisy", [False, True])
def test_inter_layer_connections(noisy: bool) -> None:
    """The population reads its own spikes of the last step; the first step reads none."""
    torch.manual_seed(0)
    actions, population = 2, 3
    if noisy:
        node = neuron.NoisyILCCUBALIFNode(actions, population, is_training=False, T=T, v_threshold=0.5)
    else:
        node = neuron.ILCCUBALIFNode(actions, population, v_threshold=0.5)
    net = nn.Sequential(layer.Linear(4, 6), node).eval()
    x = 2 * spikes(4, rate=0.6)
    with torch.no_grad():
        before = net(x)
    counts, result = counted(net, lambda run: net(x))
    assert torch.equal(result, before)
    connection = counts.layer("1.conn")
    last = torch.cat([torch.zeros(1, B, 6), before[:-1]])
    np.testing.assert_array_equal(connection.sop, population * last.sum(2).numpy())
    assert (connection.kind, connection.dense_exact) == ("binary", 6 * population)
    assert before.any()
    (entry,) = counts.of(NeuronCount)
    assert (entry.model, entry.states, entry.updates) == ("cuba_lif", 2, 6)
    np.testing.assert_array_equal(entry.spikes, before.sum(2).numpy())


# --- layers and containers ---------------------------------------------------------------------------------------------


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
    x = spikes(2, 8, 8)
    call = run_containers(net, x)
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
    x = spikes(2, 6, 6)
    last = x.movedim(0, -1)
    wanted = nn.Sequential(layer.SeqToANNContainer(*fold), layer.MultiStepContainer(*net[1])).eval()
    expected, _ = counted(wanted, run_containers(wanted, x))
    with torch.no_grad():
        before = run_containers(net, last)()
    counts, result = counted(net, run_containers(net, last), T=T)
    assert torch.equal(result, before)
    same_counts(counts, expected)
    assert counts.of(NormCount) == expected.of(NormCount)


def run_containers(net: nn.Module, x: Tensor) -> Callable[..., Tensor]:
    """All steps at once; every state starts anew."""

    def call(run: Any = None) -> Tensor:
        functional.reset_net(net)
        return net(x)

    return call


@pytest.mark.parametrize("mode", ["s", "m"])
def test_normalisation_with_weights_per_step_is_one(mode: str) -> None:
    net = nn.Sequential(layer.Conv2d(2, 3, 3), layer.BatchNormThroughTime2d(T, 3), neuron.LIFNode(v_threshold=0.2)).eval()
    x = spikes(2, 6, 6)
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
    call = run(net, spikes(2, 6, 6), mode)
    recorded, before = record(net, NEURONS, call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize(("kind", "model", "states"), [("VanillaRNN", "spiking_rnn", 1), ("LSTM", "spiking_lstm", 2), ("GRU", "spiking_gru", 1)])
def test_recurrent_networks(kind: str, model: str, states: int, both_ways: bool) -> None:
    """Cells of the reverse direction run from the last step to the first."""
    torch.manual_seed(0)
    net = getattr(rnn, f"Spiking{kind}")(5, 6, 2, bidirectional=both_ways).eval()
    x = spikes(5)
    recorded, (before, _) = record(net, (rnn.SpikingRNNCellBase,), lambda: net(x))
    for table in (recorded.inputs, recorded.spikes):
        for name in table:
            if name.startswith("cells_reverse"):
                table[name].reverse()
    counts, (result, _) = counted(net, lambda run: net(x))
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    assert {(n.model, n.states) for n in counts.of(NeuronCount)} == {(model, states)}


# --- attention, and networks of the library ----------------------------------------------------------------------------


def pair(a: Tensor, b: Tensor) -> np.ndarray:
    """Products of a @ b, [T, B, ..., m, k] @ [T, B, ..., k, n], with both factors non-zero, per step and sample."""
    both = (a != 0).double() @ (b != 0).double()
    return both.flatten(2).sum(2).round().long().numpy()


def test_spiking_self_attention() -> None:
    """(V K^T) Q per head, on [T, B, C, N]."""
    dim, heads = 12, 3
    net, x = liven(layer.SpikingSelfAttention(dim, heads, v_threshold=0.3)), spikes(dim, 7)
    call = run_containers(net, x)
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
    call = run_containers(net, spikes(8, 5))
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
        from spikingjelly.activation_based.model.spikformer import Spikformer

        self.net = Spikformer(T, 2, 16, 16, 4, 5, 16, 2, 2.0, 1, v_threshold=0.1)

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
    from spikingjelly.activation_based.model import parametric_lif_net, sew_resnet, spiking_resnet

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
    call = run(net, spikes(*shape, rate=0.5), mode)
    recorded, before = record(net, NEURONS, call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    assert all(n.folds_into for n in counts.of(NormCount))
    assert all(n.spikes.any() for n in counts.of(NeuronCount))


# --- the run -----------------------------------------------------------------------------------------------------------


def test_states_that_stay_between_batches() -> None:
    """Without a reset the second batch starts from the membranes of the first, and is counted from them."""
    net, x, y = recurrent_net(), spikes(8), spikes(8, seed=1)
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
    x = spikes(2, 16, 16)
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
    x = spikes(1, 8, 8)
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
    counts, _ = counted(net, lambda run: net(spikes(5)))
    assert [n.model for n in counts.of(NeuronCount)] == ["lif", "Own"]
    check_neurons(counts, record(net, NEURONS, run_containers(net, spikes(5)))[0], T, B)
