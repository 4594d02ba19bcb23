"""Every kind of neuron of SpikingJelly, in both step modes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from spikeloom_tests.energy.bridge_oracle import check, counted, over_time, random_spikes, record
from torch import Tensor, nn

from spikeloom.energy.counts import NeuronCount

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron, rnn

T, B = 4, 3


def as_is(net: nn.Module, x: Tensor, mode: str) -> Callable[..., Tensor]:
    """The call of modules that are in their step mode already."""
    return over_time(net, x, mode == "m", lambda: functional.reset_net(net))


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
    (
        "few_spike",
        lambda: neuron.FewSpikeNode(
            neuron.FewSpikeTable([2.0, 1.0, 0.5, 0.2], [2.0, 1.0, 0.5, 0.2], [2.0, 1.0, 0.5, 0.2])
        ),
        "few_spike",
        1,
        True,
    ),
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
    x = 3 * random_spikes(T, B, 6, rate=0.6)
    call = as_is(net, x, mode)
    recorded, before = record(net, (type(node),), call)
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    (entry,) = counts.of(NeuronCount)
    assert (entry.model, entry.states, entry.soft_reset, entry.spiking) == (model, states, soft, True)
    assert entry.updates == 5
    assert entry.touched.sum() > 0
    silent, _ = counted(node, as_is(node, torch.zeros(T, B, 5, *((1, 1) if wide else ())), mode))
    assert not silent.of(NeuronCount)[0].touched.any()
    assert [a for a in silent.aux if not isinstance(a, NeuronCount)] == []


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
    x = random_spikes(T, B, 5, 2)
    call = as_is(node, x, mode)
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
    node, x = kind(decode=decode), random_spikes(T, B, 5)
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
    x = 2 * random_spikes(T, B, 4, rate=0.6)
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


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize(
    ("kind", "model", "states"),
    [("VanillaRNN", "spiking_rnn", 1), ("LSTM", "spiking_lstm", 2), ("GRU", "spiking_gru", 1)],
)
def test_recurrent_networks(kind: str, model: str, states: int, both_ways: bool) -> None:
    """Cells of the reverse direction run from the last step to the first."""
    torch.manual_seed(0)
    net = getattr(rnn, f"Spiking{kind}")(5, 6, 2, bidirectional=both_ways).eval()
    x = random_spikes(T, B, 5)
    recorded, (before, _) = record(net, (rnn.SpikingRNNCellBase,), lambda: net(x))
    for table in (recorded.inputs, recorded.spikes):
        for name in table:
            if name.startswith("cells_reverse"):
                table[name].reverse()
    counts, (result, _) = counted(net, lambda run: net(x))
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    assert {(n.model, n.states) for n in counts.of(NeuronCount)} == {(model, states)}
