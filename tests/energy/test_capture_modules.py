"""Recurrent layers, normalisations, residual sums and maps, and policies on what was counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.energy.small import B, Call, Folded, T, counted, golden, in_batches, same_counts, sparse
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.energy import Counts, Policy, Totals, count
from spikeloom.energy.counts import MapCount, NeuronCount, NormCount, PairCount, SumCount
from spikeloom.neurons import IF, LIF, Recurrent
from spikeloom.synapses import NormNeuron

GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}
CELLS = {nn.RNNCell: 1, nn.GRUCell: 3, nn.LSTMCell: 4}
MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])


def nonzero(x: Tensor) -> np.ndarray:
    """Non-zero elements of every step and sample, [T, B]."""
    return (x != 0).flatten(2).sum(-1).numpy()


def run_of(net: nn.Module, x: Tensor, mode: Any = torch.no_grad, **options: Any) -> Counts:
    """One batch."""
    with mode(), count(net, strict=True, **options) as run:
        net(x)
    return run.counts()


def expect_recurrent(counts: Counts, x: Tensor, hidden: Tensor, gates: int) -> None:
    """x [T, B, in] and hidden [T, B, H] of one layer: both go through weights to all gates."""
    H = hidden.shape[2]
    before = torch.cat([torch.zeros_like(hidden[:1]), hidden[:-1]])
    wanted = (nonzero(x) + nonzero(before)) * gates * H
    assert all(layer.operands == "param" for layer in counts.layers)
    assert Totals(counts).sop.tolist() == wanted.tolist()
    assert sum(layer.dense_exact for layer in counts.layers) == (x.shape[2] + H) * gates * H
    assert {layer.kind for layer in counts.layers} == {"binary", "float"}


@MODES
@pytest.mark.parametrize("kind", GATES)
def test_recurrent_layer_over_time(kind: type[nn.Module], mode: Any) -> None:
    """The sequence is time: [T, B, in] in torch's default layout."""
    torch.manual_seed(0)
    layer = kind(5, 3).double()
    x = sparse((5,))
    with torch.no_grad():
        hidden = layer(x)[0]
    expect_recurrent(run_of(Call(lambda x: layer(x)[0]), x, mode), x, hidden, GATES[kind])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", GATES)
def test_recurrent_layer_within_a_step(kind: type[nn.Module], batch_first: bool) -> None:
    """The sequence is inside of every step and sample, [T, B, L, in]."""
    torch.manual_seed(0)
    layer = kind(5, 3, batch_first=batch_first).double()
    x = sparse((4, 5))

    def forward(frames: Tensor) -> Tensor:
        return layer(frames)[0] if batch_first else layer(frames.transpose(0, 1))[0].transpose(0, 1)

    net = Folded(forward)
    with torch.no_grad():
        hidden = net(x)
    before = torch.cat([torch.zeros_like(hidden[:, :, :1]), hidden[:, :, :-1]], 2)
    wanted = (nonzero(x) + nonzero(before)) * GATES[kind] * 3
    found = run_of(net, x)
    assert Totals(found).sop.tolist() == wanted.tolist()
    assert sum(layer.dense_exact for layer in found.layers) == 4 * (5 + 3) * GATES[kind] * 3


def test_deep_recurrent_layer_in_both_directions() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(5, 3, num_layers=2, bidirectional=True).double()
    x = sparse((5,))
    found = run_of(Call(lambda x: layer(x)[0]), x)
    first, second = (5 + 3) * 12 * 2, (6 + 3) * 12 * 2
    assert sum(y.dense_exact for y in found.layers) == first + second
    with torch.no_grad():
        inner = nn.LSTM(5, 3, bidirectional=True).double()
        inner.load_state_dict({k: v for k, v in layer.state_dict().items() if "_l0" in k})
        hidden = inner(x)[0]
    # every input reaches the gates of both directions; states are zero at the first step of a direction alone
    inputs = (nonzero(x) + nonzero(hidden)) * 2 * 12
    states = np.full((T, B), 2 * 2 * 12 * 3)
    assert int(Totals(found).sop.sum()) == int(inputs.sum() + states[1:].sum())


@MODES
@pytest.mark.parametrize("kind", CELLS)
def test_recurrent_cell_in_a_loop(kind: type[nn.Module], mode: Any) -> None:
    torch.manual_seed(0)
    cell = kind(5, 3).double()

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell

        def forward(self, x: Tensor) -> Tensor:
            state, outputs = None, []
            for step in x:
                state = self.cell(step, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
            return torch.stack(outputs)

    net, x = Loop(), sparse((5,))
    with torch.no_grad():
        hidden = net(x)
    expect_recurrent(run_of(net, x, mode), x, hidden, CELLS[kind])


@pytest.mark.parametrize("start", [torch.zeros, torch.ones])
def test_recurrence_written_by_hand(start: Any) -> None:
    """A state that starts from a constant is an activation, at its first step too."""
    torch.manual_seed(0)
    ff, rec = nn.Parameter(torch.randn(3, 5).double()), nn.Parameter(torch.randn(3, 3).double())
    states = []

    def forward(x: Tensor) -> Tensor:
        state = start(B, 3, dtype=x.dtype)
        states.clear()
        for step in x:
            states.append(state)
            state = torch.tanh(F.linear(step, ff) + F.linear(state, rec))
        return state

    net, x = Call(forward), sparse((5,))
    net.ff, net.rec = ff, rec
    found = run_of(net, x)
    assert [(layer.name, layer.dense_exact) for layer in found.layers] == [("ff", 15), ("rec", 9)]
    assert found.layers[0].sop.tolist() == (nonzero(x) * 3).tolist()
    assert found.layers[1].sop.tolist() == (nonzero(torch.stack(states)) * 3).tolist()


def test_recurrent_spikes_through_a_convolution() -> None:
    torch.manual_seed(0)
    layer = Recurrent(LIF(), nn.Conv2d(2, 2, 3, padding=1, bias=False)).double()
    x = sparse((2, 4, 4), "float", 0.5) * 2
    found = run_of(layer, x)
    with torch.no_grad():
        spikes = layer(x)
    before = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])
    (conv,) = counted(Folded(layer.weight), before).layers
    (recurrent,) = found.layers
    assert (recurrent.name, recurrent.kind) == ("weight", "binary")
    assert recurrent.sop.tolist() == conv.sop.tolist()
    (neuron,) = found.of(NeuronCount)
    assert neuron.spikes.tolist() == nonzero(spikes).tolist()
    assert not found.of(PairCount)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_soft_reset(backend: str) -> None:
    """if_soft: H = V + X, S = H >= theta, V = H - theta S."""
    x = sparse((6,), "float", 0.6).abs() * 2
    v, spikes = torch.zeros(B, 6, dtype=torch.float64), []
    for step in x:
        h = v + step
        spikes.append((h >= 1.0).double())
        v = h - spikes[-1]
    (neuron,) = run_of(IF(1.0, None, backend=backend), x).aux
    assert (neuron.model.rstrip("_"), neuron.soft_reset, neuron.states, neuron.updates) == ("if", True, 1, 6)
    assert neuron.spikes.tolist() == neuron.spike_units.tolist() == nonzero(torch.stack(spikes)).tolist()
    assert neuron.touched.tolist() == nonzero(x).tolist()


def test_current_is_what_comes_out_of_the_normalisation() -> None:
    """A silent input is touched everywhere by the shift of a normalisation, fused or not."""
    x = torch.zeros(T, B, 3, 2, 2, dtype=torch.float64)
    fused = NormNeuron(3, LIF()).double().eval()
    with torch.no_grad():
        fused.bias[:2] = 0.1
        fused.running_mean[2] = 0.0
    plain = nn.BatchNorm2d(3).double().eval()
    plain.load_state_dict({k: v for k, v in fused.state_dict().items() if "neuron" not in k})
    for net in (fused, nn.Sequential(Folded(plain), LIF())):
        (neuron,) = run_of(net, x).of(NeuronCount)
        assert neuron.touched.tolist() == [[8] * B] * T


class Norms(nn.Module):
    """Three normalisations: one folds, one comes after spikes, one's convolution is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.lif = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), LIF()
        self.late = nn.BatchNorm2d(2)
        self.twice, self.shared = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.flatten(0, 1)
        spikes = self.lif(self.norm(self.conv(frames)).unflatten(0, x.shape[:2]))
        late = self.late(spikes.flatten(0, 1))
        current = self.twice(late)
        return self.shared(current) + current


@MODES
def test_which_normalisations_fold(mode: Any) -> None:
    torch.manual_seed(0)
    net, x = Norms().double().eval(), sparse((2, 3, 3))
    found = run_of(net, x, mode)
    norms = {norm.name: norm for norm in found.of(NormCount)}
    assert {name: norm.folds_into for name, norm in norms.items()} == {"norm": "conv", "late": None, "shared": None}
    assert {norm.elements for norm in norms.values()} == {18}
    fold, charge = Totals(found), Totals(found, Policy(bn="count"))
    assert (fold.bn_mac, charge.bn_mac) == (36, 54)
    assert (fold.bias_adds, charge.bias_adds) == (18, 18)


def test_folded_normalisation_brings_a_bias() -> None:
    net = Folded(nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3))).double().eval()
    found = run_of(net, sparse((2, 3, 3)))
    assert (Totals(found).bias_adds, Totals(found).bias_adds_own) == (27, 0)
    assert Totals(found, Policy(bn="count")).bias_adds == 0


def test_normalisation_after_a_residual_sum_does_not_fold() -> None:
    layers = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
    first, second, norm = (layer.double().eval() for layer in layers)
    net = Folded(lambda y: norm(first(y) + second(y)))
    net.parts = nn.ModuleList(layers)
    (found,) = run_of(net, sparse((2, 3, 3))).of(NormCount)
    assert (found.folds_into, found.bias_after_fold) == (None, 0)


def test_two_functional_normalisations_in_one_module() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(3, 2, 1, 1)), nn.Parameter(torch.randn(2, 3, 1, 1))
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("var", torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            y = F.batch_norm(F.conv2d(x, self.a), self.mean, self.var)
            return F.batch_norm(F.conv2d(y, self.b), self.mean[:2], self.var[:2])

    for net in (Folded(Pair()), Folded(nn.Sequential(Pair(), Pair()))):
        counts = run_of(net.double(), sparse((2, 3, 3)))
        norms = counts.of(NormCount)
        assert [norm.elements for norm in norms] == [27, 18] * (len(counts.layers) // 2)
        assert [norm.folds_into for norm in norms] == [layer.name for layer in counts.layers]


@MODES
def test_sums_products_and_maps(mode: Any) -> None:
    x = sparse((3, 4))
    a, b = x[..., :2, :], x[..., 1:, :]
    both, either = (a != 0) & (b != 0), (a != 0) | (b != 0)
    for operation, op in ((torch.add, "add"), (torch.mul, "mul")):
        (pair,) = run_of(Call(lambda x, f=operation: f(x[..., :2, :], x[..., 1:, :])), x, mode).aux
        assert isinstance(pair, PairCount)
        assert (pair.op, pair.numel, pair.out_kind) == (op, 8, "integer" if op == "add" else "binary")
        assert pair.both_nonzero.tolist() == nonzero(both).tolist()
        assert pair.any_nonzero.tolist() == nonzero(either).tolist()
    (total,) = run_of(Call(lambda x: x.sum(2)), x, mode).aux
    assert isinstance(total, SumCount)
    assert (total.numel, total.out_kind, total.events.tolist()) == (12, "integer", nonzero(x).tolist())
    (scaled,) = run_of(Call(lambda x: x * 0.25), x, mode).aux
    assert isinstance(scaled, MapCount)
    assert (scaled.op, scaled.numel, scaled.out_kind) == ("scale", 12, "scaled_binary")
    (softmax,) = run_of(Call(lambda x: x.softmax(-1)), x, mode).aux
    assert (softmax.op, softmax.numel, softmax.out_kind) == ("softmax", 12, "float")


def test_in_place_addition_is_an_addition() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x.clone()
        y += x.roll(1, -1)
        return y

    x = sparse((6,))
    (pair,) = run_of(Call(forward), x).of(PairCount)
    assert pair.both_nonzero.tolist() == nonzero((x != 0) & (x.roll(1, -1) != 0)).tolist()
    assert pair.out_kind == "integer"


def test_static_input() -> None:
    """The same image at every step, for all samples, and no other."""
    image = sparse((6,), "float")[:1].expand(T, B, 6)
    net = Call(nn.Linear(6, 2).double())
    found = run_of(net, image.clone())
    assert found.layers[0].static_input
    once = Totals(found, Policy(static_once=True))
    assert once.mac_effective.sum() * T == Totals(found).mac_effective.sum()
    changed = image.clone()
    changed[T - 1, B - 1, 5] += 1e-12
    assert not run_of(net, changed).layers[0].static_input
    mixed = torch.cat([image, changed], 1)
    assert not in_batches(net, mixed, [B, B]).layers[0].static_input


@pytest.mark.parametrize(("name", "ac", "mac"), [("residual_integer", 14024, 22492), ("pooling", 3180, 18864)])
def test_policy_mac(name: str, ac: int, mac: int) -> None:
    """Anchor: NeuroBench 2.3 books integer and pooled inputs as MACs and measured these sums on the same networks."""
    totals = Totals(in_batches(*golden(name), [2]), Policy(integers="mac"))
    assert (totals.ac.sum(), totals.mac_effective.sum()) == (ac, mac)


def test_policy_graded() -> None:
    """An AC per synaptic event and a payload multiplication beside it, whatever the value."""
    x = sparse((6,), "integer", 0.5)
    found = run_of(Call(nn.Linear(6, 4).double()), x)
    unit, graded = Totals(found), Totals(found, Policy(integers="graded"))
    assert unit.ac.tolist() == (x.abs().sum(-1) * 4).long().tolist()
    assert graded.ac.tolist() == graded.graded_mul.tolist() == (nonzero(x) * 4).tolist()
    assert unit.graded_mul.sum() == graded.mac_effective.sum() == 0


def test_products_never_use_units() -> None:
    """Integers on spikes cost one AC per pair that is non-zero; integers on integers a MAC."""
    a = sparse((3, 4), "integer", 0.5)
    binary, integer = (a > 0).double(), a.clone()
    for other, is_ac in ((binary, True), (integer, False)):
        found = counted(Call(lambda a, b: a @ b.transpose(-1, -2)), a, other)
        totals = Totals(found)
        assert (totals.ac.sum() > 0) == is_ac
        assert (totals.ac + totals.mac_effective).tolist() == found.layers[0].sop.tolist()


def test_batch_first_inputs() -> None:
    """[B, T, ...] with axes="BT" counts as [T, B, ...]."""
    net = Folded(nn.Conv2d(2, 3, 3)).double()
    x = sparse((2, 5, 4))
    with torch.no_grad(), count(net, axes="BT", strict=True) as run:
        net(x.transpose(0, 1).contiguous())
    same_counts(run.counts(), counted(net, x))


class SomeSteps(nn.Module):
    """A layer of neurons that sees four of the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.fire = LIF()

    def forward(self, x: Tensor) -> Tensor:
        return self.fire(x[:4].unflatten(-1, (7, 1)))


def test_batches_of_other_sizes_agree_on_a_layer_of_some_steps() -> None:
    with torch.no_grad(), count(SomeSteps()) as run:
        for size in range(5, 30):
            run.model(torch.rand(6, size, 7))  # type: ignore[misc]
    (neurons,) = run.counts().of(NeuronCount)
    assert neurons.updates == round(7 * 4 / 6)
