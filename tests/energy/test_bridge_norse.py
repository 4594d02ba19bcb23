"""Networks written with Norse are counted exactly, stepped or as sequences."""

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
from spikeloom.energy.counts import NeuronCount, NormCount

norse = pytest.importorskip("norse.torch")

from norse.torch.functional.reset import reset_subtract  # noqa: E402
from norse.torch.module import exp_filter, snn  # noqa: E402

T, B = 5, 3
CELLS = (snn.SNNCell, snn.SNN)
LOW = norse.LIFParameters(v_th=torch.as_tensor(0.05))


def layers() -> list[nn.Module]:
    """Convolution, pool, normalisation and a linear layer, without state."""
    torch.manual_seed(0)
    return [nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 6)]


def sequence_net() -> nn.Module:
    """All steps at once: layers without state are lifted."""
    conv, norm, pool, flat, fc = (norse.Lift(module) for module in layers())
    return norse.SequentialState(conv, norm, norse.LIF(LOW), pool, flat, fc, norse.LIF(LOW), norse.LI()).eval()


def cell_net() -> nn.Module:
    """One step per call."""
    conv, norm, pool, flat, fc = layers()
    cells = norse.LIFCell(LOW), norse.LIFCell(LOW), norse.LICell()
    return norse.SequentialState(conv, norm, cells[0], pool, flat, fc, cells[1], cells[2]).eval()


def stepped(net: nn.Module, x: Tensor) -> Callable[..., Tensor]:
    """The loop over time around a network of cells, under a run or alone."""

    def loop() -> Tensor:
        state, out = None, []
        for step in x:
            y, state = net(step, state)
            out.append(y)
        return torch.stack(out)

    def call(run: Any = None) -> Tensor:
        if run is None:
            return loop()
        with run.batch(T=T, B=B):
            return loop()

    return call


def test_sequence_and_steps_agree() -> None:
    x = random_spikes(T, B, 2, 8, 8)
    by_step, whole = cell_net(), sequence_net()
    whole.load_state_dict({name.replace(".", ".lifted_module."): v for name, v in by_step.state_dict().items()})
    recorded, before = record(by_step, CELLS, stepped(by_step, x))
    counts, result = counted(by_step, stepped(by_step, x))
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    read_out = [n for n in counts.of(NeuronCount) if not n.spiking]
    assert [(n.name, n.model, n.states) for n in read_out] == [("7", "cuba_li", 2)]
    assert [(n.folds_into, n.elements) for n in counts.of(NormCount)] == [("0", 4 * 36)]
    recorded, (before, _) = record(whole, CELLS, lambda: whole(x))
    sequence, (result, _) = counted(whole, lambda run: whole(x))
    assert torch.equal(result, before)
    check(sequence, recorded, T, B)
    same_counts(sequence, counts, {"0.lifted_module": "0", "5.lifted_module": "5"})
    assert all(n.spikes.any() for n in counts.of(NeuronCount))


def test_same_as_the_same_network_in_the_loom() -> None:
    """An IAF cell is an IF neuron: it fires above the threshold, and no membrane is on it here."""
    torch.manual_seed(0)
    net = norse.SequentialState(nn.Linear(6, 8), norse.IAFCell(), nn.Linear(8, 3), norse.IAFCell())
    ours = nn.Sequential(synapses.Linear(6, 8), loom.IF(), synapses.Linear(8, 3), loom.IF())
    for index in (0, 2):
        ours[index].load_state_dict(net[index].state_dict())
    x = random_spikes(T, B, 6)
    counts, result = counted(net, stepped(net, x))
    wanted, same = counted(ours, lambda run: ours(x))
    assert torch.equal(result, same)
    same_counts(counts, wanted)


# --- neurons ----------------------------------------------------------------------------------------------------------

BOX = norse.LIFBoxParameters(tau_mem_inv=torch.as_tensor(500.0))
SOFT = norse.LIFBoxParameters(tau_mem_inv=torch.as_tensor(500.0), reset_method=reset_subtract)
LSNN = norse.LSNNParameters(v_th=torch.as_tensor(0.05))
LEARNED = norse.LSNNParameters(
    **{
        name: nn.Parameter(torch.as_tensor(value))
        for name, value in LSNN._asdict().items()
        if name not in ("method", "alpha")
    }
)
REFRACTORY = norse.LIFRefracParameters(lif=LOW, rho_reset=torch.as_tensor(1.0))
KINDS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "LIFCell": (lambda: norse.LIFCell(LOW), "cuba_lif", 2),
    "LIF": (lambda: norse.LIF(LOW), "cuba_lif", 2),
    "LIFBoxCell": (lambda: norse.LIFBoxCell(BOX), "lif", 1),
    "LIFBoxCell soft": (lambda: norse.LIFBoxCell(SOFT), "lif", 1),
    "LIFRefracCell": (lambda: norse.LIFRefracCell(REFRACTORY), "cuba_lif_refractory", 3),
    "LIFAdExCell": (lambda: norse.LIFAdExCell(), "adex", 3),
    "LIFAdEx": (lambda: norse.LIFAdEx(), "adex", 3),
    "LIFAdExRefracCell": (lambda: norse.LIFAdExRefracCell(), "adex_refractory", 4),
    "LIFExCell": (lambda: norse.LIFExCell(), "eif", 2),
    "LIFEx": (lambda: norse.LIFEx(), "eif", 2),
    "LSNNCell": (lambda: norse.LSNNCell(LSNN), "alif", 3),
    "LSNN": (lambda: norse.LSNN(LSNN), "alif", 3),
    "IAFCell": (lambda: norse.IAFCell(), "if", 1),
    "IAF": (lambda: norse.IAF(), "if", 1),
    "IzhikevichCell": (lambda: norse.IzhikevichCell(norse.tonic_spiking), "izhikevich", 2),
    "Izhikevich": (lambda: norse.Izhikevich(norse.tonic_spiking), "izhikevich", 2),
    "LICell": (lambda: norse.LICell(), "cuba_li", 2),
    "LI": (lambda: norse.LI(), "cuba_li", 2),
    "LIBoxCell": (lambda: norse.LIBoxCell(), "li", 1),
}


@pytest.mark.parametrize("name", KINDS)
def test_neurons(name: str) -> None:
    build, model, states = KINDS[name]
    node, x = build(), 2 * random_spikes(T, B, 4, 2)
    cell = "Cell" in name
    call = stepped(node, x) if cell else lambda run=None: node(x)[0]
    with torch.no_grad():
        before = call()
    counts, result = counted(node, call)
    assert torch.equal(result, before)
    (entry,) = counts.aux
    assert isinstance(entry, NeuronCount)
    assert (entry.model, entry.states, entry.updates) == (model, states, 8)
    assert entry.soft_reset == ("soft" in name)
    assert entry.spiking == (not name.startswith("LI") or name.startswith("LIF"))
    np.testing.assert_array_equal(entry.spikes, (before != 0).sum((2, 3)).numpy())
    np.testing.assert_array_equal(entry.touched, (x != 0).sum((2, 3)).numpy())
    if name.startswith(("LIFCell", "LIFBox", "IAF", "LSNN", "LI")) and "AdEx" not in name and "Ex" not in name:
        assert before.any()


RECURRENT: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "LIFRecurrentCell": (lambda: norse.LIFRecurrentCell(4, 6, LOW), "cuba_lif", 2),
    "LIFRecurrent": (lambda: norse.LIFRecurrent(4, 6, LOW), "cuba_lif", 2),
    "LSNNRecurrent learned": (lambda: norse.LSNNRecurrent(4, 6, LEARNED), "alif", 3),
    "LSNNRecurrent adjoint": (lambda: norse.LSNNRecurrent(4, 6, LSNN, adjoint=True), "alif", 3),
    "LSNNRecurrentCell": (lambda: norse.LSNNRecurrentCell(4, 6, LSNN), "alif", 3),
    "LSNNRecurrent": (lambda: norse.LSNNRecurrent(4, 6, LSNN), "alif", 3),
    "LIFRefracRecurrentCell": (lambda: norse.LIFRefracRecurrentCell(4, 6, REFRACTORY), "cuba_lif_refractory", 3),
    "LIFRefracRecurrent": (lambda: norse.LIFRefracRecurrent(4, 6, REFRACTORY), "cuba_lif_refractory", 3),
    "LIFExRecurrentCell": (lambda: norse.LIFExRecurrentCell(4, 6), "eif", 2),
    "LIFAdExRecurrent": (lambda: norse.LIFAdExRecurrent(4, 6), "adex", 3),
    "LIFAdExRefracRecurrent": (lambda: norse.LIFAdExRefracRecurrent(4, 6), "adex_refractory", 4),
    "IzhikevichRecurrent": (lambda: norse.IzhikevichRecurrent(4, 6, norse.tonic_spiking), "izhikevich", 2),
    "LIFMCRecurrentCell": (lambda: norse.LIFMCRecurrentCell(4, 6, LOW), "multi_compartment_lif", 2),
    "LIFMCRefracRecurrentCell": (
        lambda: norse.LIFMCRefracRecurrentCell(4, 6, REFRACTORY),
        "multi_compartment_lif_refractory",
        3,
    ),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_neurons(name: str) -> None:
    """Input weights read the input, recurrent weights the spikes of the last step, none before the first."""
    build, model, states = RECURRENT[name]
    torch.manual_seed(0)
    net, x = norse.SequentialState(build()), random_spikes(T, B, 4)
    call = stepped(net, x) if "Cell" in name else lambda run=None: net(x)[0]
    with torch.no_grad():
        before = call()
    counts, result = counted(net, call)
    assert torch.equal(result, before)
    last = torch.cat([torch.zeros(1, B, 6), before[:-1]])
    forward, back = counts.layer("0.input_weights"), counts.layer("0.recurrent_weights")
    for layer, operand in ((forward, x), (back, last)):
        assert (layer.dense_exact, layer.bias_adds, layer.calls, layer.assigned) == (operand.shape[2] * 6, 0, 1, True)
        np.testing.assert_array_equal(layer.sop, 6 * operand.sum(2).numpy())
        assert layer.kind == ("binary" if operand.any() else "zero")
    off_diagonal = last.sum(2, keepdim=True) - last  # no neuron is connected to itself
    if name.startswith("LIFRecurrent") and "Cell" in name:
        np.testing.assert_array_equal(back.sop_nonzero_weight, off_diagonal.sum(2).numpy())
    (entry,) = counts.of(NeuronCount)
    assert (entry.model, entry.states, entry.updates, entry.soft_reset) == (model, states, 6, False)
    np.testing.assert_array_equal(entry.spikes, before.sum(2).numpy())
    cell = net[0]
    current = nn.functional.linear(x, cell.input_weights) + nn.functional.linear(last, cell.recurrent_weights)
    np.testing.assert_array_equal(entry.touched, (current != 0).sum(2).numpy())
    assert before.any() or "Ex" in name or "Izh" in name
    assert {layer.name for layer in counts.layers} - {forward.name, back.name} == (
        {"0.g_coupling"} if "MC" in name else set()
    )


def test_touched_needs_the_recurrent_current() -> None:
    """Without input only the feedback of one neuron drives the others."""
    weights = torch.tensor([[0.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    net = norse.LIFRecurrent(3, 3, LOW, input_weights=torch.eye(3), recurrent_weights=nn.Parameter(weights))
    x = torch.zeros(3, 1, 3)
    x[0, 0, 0] = 5.0
    counts, (result, _) = counted(net, lambda run: net(x))
    fired = [sorted(result[t, 0].nonzero().flatten().tolist()) for t in range(3)]
    assert fired == [[0], [0, 1], [0, 1]]
    assert counts.of(NeuronCount)[0].touched[:, 0].tolist() == [1, 1, 1]


def test_conductance_synapses_count_once() -> None:
    """Positive and negative weights act on different conductances, in two products; a spike meets one of them."""
    torch.manual_seed(0)
    net = norse.CobaLIFCell(4, 6)
    x = random_spikes(T, B, 4)
    with torch.no_grad():
        net.recurrent_weights[0] = 0.0
        before = stepped(net, x)()
    counts, result = counted(net, stepped(net, x))
    assert torch.equal(result, before)
    last = torch.cat([torch.zeros(1, B, 6), before[:-1]])
    np.testing.assert_array_equal(counts.layer("input_weights").sop, 6 * x.sum(2).numpy())
    np.testing.assert_array_equal(counts.layer("recurrent_weights").sop, 6 * last.sum(2).numpy())
    np.testing.assert_array_equal(counts.layer("recurrent_weights").sop_nonzero_weight, 5 * last.sum(2).numpy())
    assert [n.model for n in counts.of(NeuronCount)] == ["coba_lif"]
    assert len(counts.layers) == 2


def test_linear_read_outs() -> None:
    torch.manual_seed(0)
    x = random_spikes(T, B, 4)
    net = norse.SequentialState(norse.LILinearCell(4, 3))
    counts, _ = counted(net, stepped(net, x))
    (layer,) = counts.layers
    assert layer.name == "0.input_weights"
    np.testing.assert_array_equal(layer.sop, 3 * x.sum(2).numpy())
    (entry,) = counts.aux
    assert (entry.model, entry.states, entry.spiking, entry.updates) == ("cuba_li", 2, False, 3)
    filtered = exp_filter.ExpFilter(4, 3)
    recorded, before = record(filtered, (), lambda: filtered(x))
    counts, result = counted(filtered, lambda run: filtered(x))
    assert torch.equal(result, before)
    (entry,) = counts.aux
    assert (entry.model, entry.states, entry.spiking, entry.updates) == ("li", 1, False, 3)
    counts.aux = []
    check(counts, recorded, T, B)


def test_correlation_cell_takes_its_weights_as_arguments() -> None:
    torch.manual_seed(0)
    cell = norse.LIFCorrelation(4, 6, norse.LIFCorrelationParameters(lif_parameters=LOW))
    first, back = (nn.Parameter(torch.rand(6, n)) for n in (4, 6))
    x = random_spikes(T, B, 4)[:, :1]  # the cell works on one sample

    def call() -> Tensor:
        state, out = None, []
        for step in x:
            z, state = cell(step, first, back, state)
            out.append(z)
        return torch.stack(out)

    with torch.no_grad():
        before = call()
        with count(strict=True) as run, run.batch(T=T, B=1):
            assert torch.equal(call(), before)
    last = torch.cat([torch.zeros(1, 1, 6), before[:-1]])
    forward, recurrent = run.counts().layers
    np.testing.assert_array_equal(forward.sop, 6 * x.sum(2).numpy())
    np.testing.assert_array_equal(recurrent.sop, 6 * last.sum(2).numpy())
    assert before.any()


# --- layers, encoders -------------------------------------------------------------------------------------------------


def test_convolution_with_time_last() -> None:
    """LConv2d is a 3-D convolution over [B, C, H, W, T]; it counts as a convolution per step."""
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm2d(4), nn.Unflatten(0, (T, B)))
    net = nn.Sequential(norse.LConv2d(2, 4, 3, stride=2, padding=1), norm).eval()
    plain = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
    with torch.no_grad():
        plain.weight.copy_(net[0].weight.squeeze(-1))
    wanted = nn.Sequential(norse.Lift(plain), norse.Lift(nn.BatchNorm2d(4))).eval()
    x = random_spikes(T, B, 2, 7, 7)
    with torch.no_grad():
        before = net(x)
    counts, result = counted(net, lambda run: net(x))
    assert torch.equal(result, before)
    expected, _ = counted(wanted, lambda run: wanted(x))
    (layer,), (other,) = counts.layers, expected.layers
    assert (layer.name, layer.kind, layer.dense_exact, layer.dense_nominal) == (
        "0",
        "binary",
        other.dense_exact,
        other.dense_nominal,
    )
    np.testing.assert_array_equal(layer.sop, other.sop)
    assert [n.folds_into for n in counts.of(NormCount)] == ["0"]


@pytest.mark.parametrize("kind", ["ConstantCurrentLIFEncoder", "SpikeLatencyLIFEncoder"])
def test_encoders_of_neurons(kind: str) -> None:
    """LIF neurons under a constant current [B, ...] give [T, B, ...]."""
    torch.manual_seed(0)
    net = nn.Sequential(getattr(norse, kind)(T, LOW), norse.Lift(nn.Linear(4, 3)))
    x = torch.rand(B, 4)
    x[:, 0] = 0
    with torch.no_grad():
        before = net(x)
        encoded = net[0](x)
    counts, result = counted(net, lambda run: net(x), T=T)
    assert torch.equal(result, before)
    np.testing.assert_array_equal(counts.layers[0].sop, 3 * encoded.sum(2).numpy())
    assert counts.layers[0].kind == "binary"
    (entry,) = counts.of(NeuronCount)
    assert (entry.model, entry.updates) == ("lif", 4)
    np.testing.assert_array_equal(entry.spikes, encoded.sum(2).numpy())
    assert (entry.touched == 3).all()
    assert encoded.any()


def test_poisson_encoder_makes_spikes() -> None:
    net = nn.Sequential(norse.PoissonEncoder(T, f_max=500), norse.Lift(nn.Linear(4, 3)))
    counts, _ = counted(net, lambda run: net(torch.rand(B, 4)), T=T)
    assert (counts.layers[0].kind, counts.layers[0].dense_exact) == ("binary", 12)


def test_regularization_is_no_part_of_the_network() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.sum, self.fc = norse.LIFCell(LOW), norse.RegularizationCell(), nn.Linear(4, 2)

        def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
            z, state = self.cell(x, state)
            z, _ = self.sum(z, state)
            return self.fc(z), state

    net, x = Net(), random_spikes(T, B, 4)
    recorded, before = record(net, CELLS, stepped(net, x))
    counts, result = counted(net, stepped(net, x))
    assert torch.equal(result, before)
    check(counts, recorded, T, B)
    assert [type(a) for a in counts.aux] == [NeuronCount]


@pytest.mark.parametrize("channels", [2, 4])
def test_conv_net_of_the_library(channels: int) -> None:
    """`norse.torch.models.conv.ConvNet4` loops over time itself."""
    from norse.torch.models.conv import ConvNet4

    torch.manual_seed(0)
    net = ConvNet4(num_channels=channels, feature_size=28).eval()
    with torch.no_grad():
        for module in (net.conv1, net.conv2, net.fc1):
            module.weight *= 30.0
    x = random_spikes(T, B, channels, 28, 28)
    recorded, before = record(net, CELLS, lambda: net(x))
    counts, result = counted(net, lambda run: net(x))
    assert torch.equal(result, before)
    neurons = counts.of(NeuronCount)
    counts.aux = [n for n in neurons if n.spiking]
    read_out = {n.name for n in neurons if not n.spiking}
    for name in read_out:
        recorded.spikes.pop(name, None)
    for layer in [x for x in counts.layers if x.name.endswith("input_weights")]:
        counts.layers.remove(layer)
        np.testing.assert_array_equal(layer.kind, "binary")
    check(counts, recorded, T, B)


def test_sparse_inputs_are_refused() -> None:
    net = norse.LIFCell()
    with torch.no_grad(), count(net) as run, run.batch(T=1, B=B), pytest.raises(ValueError, match="to_dense"):
        net(random_spikes(T, B, 4)[0].to_sparse())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_autograd(mode: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    net, x = norse.SequentialState(norse.LSNNRecurrent(4, 6, LSNN), norse.Lift(nn.Linear(6, 2))), random_spikes(T, B, 4)
    wanted, _ = counted(net, lambda run: net(x))
    with mode(), count(net, strict=True) as run:
        net(x)
    same_counts(run.counts(), wanted)
