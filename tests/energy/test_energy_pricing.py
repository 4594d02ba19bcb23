"""Prices against the golden energies, and what policies and models change."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from spikeloom.energy.arithmetic import neuron_arithmetic
from spikeloom.energy.counts import Counts, Geometry, Layer, NeuronCount, NormCount, PoolCount, Uncounted
from spikeloom.energy.literature import literature_rule
from spikeloom.energy.models import EnergyModel, get_model, list_models, with_memory
from spikeloom.energy.pricing import price
from spikeloom.energy.totals import Policy, Totals

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_counts.py"))))
everywhere = pytest.mark.parametrize("case", golden.CASES)


def small(kind: str = "binary", **changes: object) -> Counts:
    """One linear layer 4 -> 3 with bias and four LIF neurons that feed it, T = 2, N = 2."""
    events = np.array([[1, 2], [3, 0]])
    layer = Layer(
        "fc",
        "linear",
        "param",
        kind,
        1.0,
        events * 3,
        events,
        12,
        12,
        3,
        4,
        3,
        geometry=Geometry((), (), 1, 4, 3, 12, 3),
    )
    layer = replace(layer, sop_unit=None if kind == "float" else events * 6, **changes)
    neuron = NeuronCount("fire", "lif", 4, 1, events, np.array([[4, 4], [1, 0]]), events)
    return Counts(2, 2, [layer], [neuron])


def test_the_golden_cases_are_there() -> None:
    assert {"conv_bn_lif", "graded", "ssa", "pruned", "delays", "sticky_kind"} <= set(golden.CASES)


@everywhere
def test_totals(case: str) -> None:
    counts, want = golden.counts_of(case), golden.load(case)["totals"]
    totals, sample = Totals(counts), want["per_sample"]
    assert totals.ac.tolist() == want["ac_per_step"]
    assert totals.mac_effective.tolist() == want["mac_per_step"]
    per_sample = {"ac": totals.ac, "mac_effective": totals.mac_effective, "sop": totals.sop}
    aux = {"aux_pool_ac": totals.pool_ac, "aux_residual_ac": totals.residual_ac, "aux_sum_ac": totals.sum_ac}
    for name, array in (per_sample | aux).items():
        assert array.sum(0).tolist() == sample[name], name
    assert [totals.mac_dense_exact * counts.T] * counts.samples == pytest.approx(sample["mac_dense_exact"])
    assert [totals.mac_dense_nominal * counts.T] * counts.samples == pytest.approx(sample["mac_dense_nominal"])
    assert totals.bias_adds_own * counts.T == want["bias_adds_per_sample"]
    assert totals.bias_adds * counts.T == want["bias_adds_per_sample_bn_folded"]
    assert totals.neuron_updates * counts.T == want["neuron_updates_per_sample"]
    assert totals.ann_mac_exact == pytest.approx(want["ann_baseline"]["mac_dense_exact"])
    assert totals.ann_mac_nominal == want["ann_baseline"]["mac_dense_nominal"]


@everywhere
def test_memory_words(case: str) -> None:
    counts, want = golden.counts_of(case), golden.load(case)["totals"]["memory_words_per_sample"]
    words = Totals(counts).memory_words
    assert words.keys() == want.keys()
    for name, per_sample in want.items():
        assert (words[name] == np.array(per_sample)).all(), name


@everywhere
def test_energies(case: str) -> None:
    counts, want = golden.counts_of(case), golden.load(case)["totals"]
    energies, stats, rule = want["energy_pj_per_sample"], want["dataset_stats_horowitz45"], literature_rule(counts)
    assert golden.close(price(counts).per_sample, energies["horowitz45_fp32"])
    assert golden.close(price(counts).mean, stats["mean"])
    loihi = price(counts, get_model("loihi2018", updates="all"))
    assert golden.close(loihi.per_sample, energies["loihi_synop_plus_update"])
    assert golden.close(4.6 * Totals(counts).ann_mac_nominal, energies["ann_horowitz45_fp32_nominal"])
    got = [rule.ac, rule.mac, rule.energy_pj]
    assert golden.close(got, list(want["literature_rule_per_sample_mean"].values()))
    assert golden.close(price(counts, "paper").mean, rule.energy_pj)


@everywhere
@pytest.mark.parametrize(
    "model", ["horowitz45_int8", "memory45", "lemaire2022", "loihi2018", "paper", "gpu_titan", "odin"]
)
def test_layers_terms_and_steps_add_up_to_the_samples(case: str, model: str) -> None:
    made = price(golden.counts_of(case), model)
    assert np.allclose(sum(made.layers.values()), made.per_sample)
    assert np.allclose(sum(made.terms.values()), made.per_sample)
    assert made.mean == pytest.approx(made.per_sample.mean())
    assert (made.steps is None) == (model == "lemaire2022")
    if made.steps is not None:
        assert np.allclose(made.steps.sum(0), made.per_sample)


def test_every_model_prices_a_network() -> None:
    counts = golden.counts_of("conv_bn_lif")
    for name in list_models():
        assert price(counts, name).mean > 0


def test_the_direct_encoded_layer_dominates_a_small_network() -> None:
    counts = golden.counts_of("conv_bn_lif")
    made = price(counts)
    assert made.mean == pytest.approx(108_574.6)
    assert made.layer_mean("conv1") / made.mean > 0.95
    assert price(counts, policy=Policy(static_once=True)).layer_mean("conv1") == pytest.approx(
        made.layer_mean("conv1") / 4
    )


def test_static_once_charges_operations_biases_and_words_in_the_first_step() -> None:
    counts = small("float", static_input=True)
    counts.layers[0] = replace(counts.layers[0], events=np.full((2, 2), 2), sop=np.full((2, 2), 6))
    policy = Policy(static_once=True, include_bias=True)
    totals = Totals(counts, policy)
    assert totals.mac_effective.tolist() == [[6, 6], [0, 0]]
    assert totals.ac.tolist() == [[3, 3], [0, 0]]
    words = totals.memory_words
    assert words["weight_reads"].tolist() == [6, 6]
    assert words["accumulator_reads"].tolist() == [9, 9]  # 6, and the 3 kept currents once more
    assert words["bias_reads"].tolist() == [3, 3]
    made = price(counts, policy=policy)
    assert made.steps is not None
    assert made.steps.tolist() == pytest.approx(np.array([[30.3, 30.3], [0, 0]]))


def test_policies_of_integer_spikes() -> None:
    counts = small("integer")
    sop, units = np.array([12.0, 6.0]), np.array([24.0, 12.0])
    assert price(counts).per_sample == pytest.approx(0.9 * units)
    assert price(counts, policy=Policy(integers="mac")).per_sample == pytest.approx(4.6 * sop)
    graded = price(counts, policy=Policy(integers="graded"))
    assert graded.per_sample == pytest.approx(0.9 * sop)
    assert graded.beside["graded_mul"] == pytest.approx(3.7 * 9)
    included = price(counts, policy=Policy(integers="graded", include_graded_mul=True))
    assert included.per_sample == pytest.approx(4.6 * sop)
    assert "graded_mul" not in included.beside
    with pytest.raises(ValueError, match=r"'fc' has integer spikes.*no sop_unit"):
        price(Counts(2, 2, [replace(counts.layers[0], sop_unit=None)], []))


def test_terms_left_out_stand_beside() -> None:
    counts = small()
    counts.aux.append(PoolCount("pool", "avg_pool2d", np.array([[4, 4], [2, 0]]), 8, 2, "scaled_integer"))
    counts.aux.append(PoolCount("largest", "max_pool2d", np.array([[4, 4], [2, 0]]), 8, 2, "binary"))
    made = price(counts)
    assert list(made.terms) == ["synaptic"]
    assert made.beside == pytest.approx({"bias": 0.9 * 6, "pool": 0.9 * 5, "neurons": 4.6 * 8})
    everything = Policy(include_bias=True, include_aux=True, include_neurons=True)
    whole = price(counts, policy=everything)
    assert whole.beside == {}
    assert whole.mean == pytest.approx(made.mean + sum(made.beside.values()))
    assert set(whole.layers) == {"fc", "pool", "fire"}


def test_normalisations_that_cannot_fold_are_charged_and_those_that_can_give_biases() -> None:
    counts = small()
    layer = replace(counts.layers[0], bias_adds=0)
    counts = Counts(2, 2, [layer], [NormCount("folds", 3, "fc", 3), NormCount("stays", 5, None)])
    assert price(counts).terms["norm"] == pytest.approx([4.6 * 10] * 2)
    assert price(counts).beside["bias"] == pytest.approx(0.9 * 6)
    counted = price(counts, policy=Policy(bn="count"))
    assert counted.terms["norm"] == pytest.approx([4.6 * 16] * 2)
    assert "bias" not in counted.beside
    assert any("normalisations" in text for text in price(counts, "loihi2018").unpriced)


@pytest.mark.parametrize(
    ("model", "soft", "expected"),
    [
        ("if", False, (4, 0, 4, 0, 0)),
        ("if_soft", False, (4, 0, 4, 0, 6)),
        ("lif", True, (0, 4, 4, 0, 6)),
        ("PLIF", False, (0, 4, 4, 0, 0)),
        ("CubaLIF", False, (0, 8, 4, 0, 0)),
        ("ilif", False, (0, 4, 0, 4, 0)),
    ],
)
def test_neuron_arithmetic(model: str, soft: bool, expected: tuple[int, ...]) -> None:
    events = np.array([[1, 2], [3, 0]])
    work = neuron_arithmetic(NeuronCount("n", model, 4, 2, events, events, soft_reset=soft))
    assert work is not None
    assert (work.ac, work.mac, work.compare, work.round, int(work.reset_ac.sum())) == expected


def test_a_neuron_of_unknown_arithmetic_is_named() -> None:
    counts = small()
    counts.aux = [replace(counts.aux[0], model="Izhikevich")]
    counts.uncounted = [Uncounted("aten.fft_rfft", "", 1, 8)]
    made = price(counts, policy=Policy(include_neurons=True))
    assert "neurons" not in made.terms
    assert made.unpriced == ["aten.fft_rfft (no counting rule)", "the arithmetic of fire (Izhikevich)"]


def test_loihi_prices_idle_updates_and_the_way_of_a_spike() -> None:
    counts = small()
    made = price(counts, "loihi2018")
    assert made.terms["synaptic"] == pytest.approx(23.6 * np.array([12, 6]))
    assert made.terms["updates"] == pytest.approx([81 * 5 + 52 * 3, 81 * 4 + 52 * 4])
    travelled = price(counts, get_model("loihi2018", tile_spikes=True, hops_ew=2, hops_ns=0.5))
    assert travelled.terms["spikes"] == pytest.approx((1.7 + 6 + 2) * np.array([4, 2]))


def test_dense_devices_do_not_care_about_spikes() -> None:
    assert price(small(), "gpu_titan").per_sample == pytest.approx([300 * 2 * (12 + 4)] * 2)


def test_memory_by_hand() -> None:
    counts = small()
    made = price(counts, get_model("memory45", word_bytes=8))  # a word is an access; 10 pJ at 1024 words, linear below
    pj = {words: 10 * words / 1024 for words in (3, 4, 15)}
    queue = 9.765625  # 1000 words
    assert made.terms["memory_weights"] == pytest.approx(pj[15] * np.array([12, 6]))
    assert made.terms["memory_accumulators"] == pytest.approx(pj[3] * 2 * np.array([12, 6]))
    assert made.terms["memory_events"] == pytest.approx(queue * 2 * np.array([4, 2]))
    assert made.terms["memory_biases"] == pytest.approx([pj[15] * 6] * 2)
    assert made.terms["memory_states"] == pytest.approx([pj[4] * 2 * 4 * 2] * 2)
    flat = price(counts, with_memory("horowitz45_int8", kind="flat"))
    words = sum(Totals(counts).memory_words.values())
    assert flat.per_sample == pytest.approx(0.03 * np.array([12, 6]) + 4 * 24.96 * words)


def test_a_layer_of_unknown_weights_has_no_memory_to_price() -> None:
    counts = small(geometry=Geometry())
    with pytest.raises(ValueError, match="'fc' has no number of weights"):
        price(counts, "memory45")
    assert price(counts, get_model("memory45", size_bytes=8192)).mean > 0


@pytest.mark.parametrize("name", ["bias", "aux", "neurons", "graded_mul"])
def test_an_all_in_price_refuses_more_terms(name: str) -> None:
    policy = Policy(**{f"include_{name}": True})
    with pytest.raises(ValueError, match=f"'truenorth2014' is all-in.*{name}"):
        price(small(), "truenorth2014", policy)
    if name != "bias":
        with pytest.raises(ValueError, match="no price of its own"):
            price(small(), "lemaire2022", policy)
    with pytest.raises(ValueError, match="no price of its own"):
        price(small(), "loihi2018", policy)


def test_what_cannot_be_priced_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to price"):
        price(Counts(2, 0, [], []))
    with pytest.raises(ValueError, match="no price of its own for bn"):
        price(small(), "paper", Policy(bn="count"))
    mine = EnergyModel("mine", "-", "-", "-", "estimated", "per_term", {"ac": 1.0, "mac": 1.0})
    with pytest.raises(ValueError, match="for graded_mul"):
        price(small(), mine, Policy(integers="graded", include_graded_mul=True))


@pytest.mark.parametrize("model", ["horowitz45_fp32", "memory45", "lemaire2022", "loihi2018", "paper", "cpu_i7"])
def test_rows_that_could_not_be_told_apart_enter_the_mean_alone(model: str) -> None:
    known = small()
    layer = known.layers[0]
    lost = replace(
        layer, assigned=False, **{n: getattr(layer, n).sum().reshape(1, 1) for n in ("sop", "events", "sop_unit")}
    )
    neuron = known.aux[0]
    assert isinstance(neuron, NeuronCount)
    flat = replace(neuron, spikes=np.array([[6]]), touched=np.array([[9]]), spike_units=None)
    counts = Counts(2, 2, [lost], [flat])
    policy = Policy(include_bias=True) if model == "horowitz45_fp32" else Policy()
    made = price(counts, model, policy)
    assert made.mean == pytest.approx(price(known, model, policy).mean)
    assert made.layer_mean("fc") == pytest.approx(price(known, model, policy).layer_mean("fc"))
    assert Totals(counts).sop.sum() == 0
    assert Totals(counts).unassigned["sop"] == 18
    if model == "horowitz45_fp32":
        assert made.unassigned == pytest.approx({"fc": 0.9 * 18})
        assert made.per_sample == pytest.approx([0.9 * 6] * 2)  # biases are known


def test_pricing_leaves_the_counts_as_they_were() -> None:
    counts = golden.counts_of("graded")
    before = [layer.sop.copy() for layer in counts.layers]
    first = price(counts).mean
    price(counts, "memory45", Policy(integers="mac"))
    assert price(counts).mean == first
    assert all((a == layer.sop).all() for a, layer in zip(before, counts.layers, strict=True))
