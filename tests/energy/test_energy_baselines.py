"""Exact, literature's rule, ANN and quantised ANN side by side: the numbers, and reasons that add up."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from spikeloom.energy.baselines import activation_bits, compare, context, quantised_mac_pj
from spikeloom.energy.models import get_model
from spikeloom.energy.pricing import price
from spikeloom.energy.totals import Policy

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_counts.py"))))
everywhere = pytest.mark.parametrize("case", golden.CASES)
POLICIES = [
    Policy(),
    Policy(integers="mac", static_once=True),
    Policy(integers="graded", include_bias=True, include_aux=True, include_neurons=True, bn="count"),
]


@everywhere
def test_rows_reproduce_the_golden_numbers(case: str) -> None:
    counts, want = golden.counts_of(case), golden.load(case)["totals"]
    rows = {row.name: row for row in compare(counts)}
    assert list(rows) == ["exact", "paper", "ann_nominal", "ann_exact", "qann"]
    assert golden.close(rows["exact"].energy_pj, want["dataset_stats_horowitz45"]["mean"])
    rule = want["literature_rule_per_sample_mean"]
    assert golden.close([rows["paper"].ac, rows["paper"].mac, rows["paper"].energy_pj], list(rule.values()))
    assert golden.close(rows["ann_nominal"].energy_pj, want["energy_pj_per_sample"]["ann_horowitz45_fp32_nominal"])
    assert golden.close(rows["ann_exact"].mac, want["ann_baseline"]["mac_dense_exact"])
    assert rows["paper"].ratio == pytest.approx(rule["energy_pj"] / rows["exact"].energy_pj)


@everywhere
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", ["horowitz45_fp32", "horowitz45_int8"])
def test_reasons_add_up_to_the_gap(case: str, policy: Policy, model: str) -> None:
    rows = compare(golden.counts_of(case), policy, model)
    exact = rows[0].energy_pj
    assert exact == pytest.approx(price(golden.counts_of(case), model, policy).mean)
    for row in rows:
        found = sum(reason.pj for reason in row.reasons)
        assert found == pytest.approx(row.energy_pj - exact, abs=1e-6 * exact), row.name


def reasons(case: str, row: str, policy: Policy = POLICIES[0]) -> dict[str, object]:
    """Reasons of a row by key."""
    rows = {row.name: row for row in compare(golden.counts_of(case), policy)}
    return {reason.key: reason for reason in rows[row].reasons}


def test_borders_and_the_repeated_first_layer() -> None:
    found = reasons("conv_bn_lif", "paper")
    assert set(found) == {"borders", "zeros", "position"}
    assert found["borders"].layers == ("conv1", "conv2")
    assert "10,368 terms per step against 8,712" in found["borders"].text  # 6912 + 3456, 5808 + 2904
    ann = reasons("conv_bn_lif", "ann_exact")
    assert ann["repeat_static"].pj == pytest.approx(-4.6 * 23_008 * 3 / 4)
    assert ann["repeat_static"].layers == ("conv1",)
    cached = reasons("conv_bn_lif", "paper", Policy(static_once=True))
    assert cached["cached"].pj == pytest.approx(4.6 * 23_008 * 3 / 4)
    assert "repeat_static" not in reasons("conv_bn_lif", "ann_exact", Policy(static_once=True))


def test_attention_is_charged_for_one_operand() -> None:
    found = reasons("ssa", "paper")
    assert found["one_sided"].layers == ("attn", "out")
    assert found["units"].layers == ("fc1",)
    assert found["units"].pj < 0


def test_delays_analogue_products_and_integers() -> None:
    assert set(reasons("delays", "paper")) == {"delays", "position"}
    assert reasons("softmax_attention", "paper")["float_product"].pj == pytest.approx((0.9 - 4.6) * 300)
    assert reasons("graded", "paper")["zeros"].pj == pytest.approx(4.6 * 190)
    assert reasons("graded", "paper", Policy(integers="mac"))["integer_mac"].pj < 0


def test_terms_beside_the_linear_operations_are_a_reason() -> None:
    found = reasons("conv_bn_lif", "paper", Policy(include_bias=True))
    assert found["other"].pj == pytest.approx(-0.9 * 1428)
    assert "bias (1,285.2 pJ)" in found["other"].text


def test_rows_that_could_not_be_told_apart_are_compared_too() -> None:
    known = golden.counts_of("pruned")
    names = ("sop", "events", "sop_unit", "sop_nonzero_weight")
    sums = {name: getattr(known.layers[1], name).sum().reshape(1, 1) for name in names}
    lost = replace(known, layers=[known.layers[0], replace(known.layers[1], assigned=False, **sums), known.layers[2]])
    for one, other in zip(compare(known), compare(lost), strict=True):
        assert (one.energy_pj, one.ac) == pytest.approx((other.energy_pj, other.ac))
        assert [r.pj for r in one.reasons] == pytest.approx([r.pj for r in other.reasons])


@pytest.mark.parametrize(("T", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (100, 7)])
def test_a_quantised_network_tells_as_many_values_apart(T: int, bits: int) -> None:
    assert activation_bits(T) == bits


def test_the_quantised_mac_is_that_of_int8_at_eight_bits() -> None:
    assert quantised_mac_pj(8) == pytest.approx(get_model("horowitz45_int8").constants["mac"])
    counts = golden.counts_of("pruned")
    row = compare(counts)[-1]
    assert row.energy_pj == pytest.approx((0.03 + 0.05) * 6652)  # T = 3: 2 bits
    assert row.ratio_equal == pytest.approx(row.energy_pj / price(counts, "horowitz45_int8").mean)
    assert row.evidence == "estimated"
    assert "estimated" in row.reasons[1].text


@pytest.mark.parametrize("model", ["loihi2018", "memory45", "paper", "lemaire2022", "cpu_i7"])
def test_only_prices_of_ac_and_mac_compare(model: str) -> None:
    with pytest.raises(ValueError, match="prices AC and MAC, without memory"):
        compare(golden.counts_of("pruned"), model=model)


def test_context_sentences() -> None:
    above = context(golden.counts_of("graded"))  # T = 5
    assert "34.4%, above the 5.7%" in above[0]
    assert "version 4" in above[0]
    assert "1.72 spikes per inference, above" in above[1]
    eight = context(golden.counts_of("recurrent"))  # T = 8
    assert "above the 6.4%" in eight[0]
    assert "between these limits" in eight[1]
    assert len(context(golden.counts_of("conv_bn_lif"))) == 1  # T = 4: nothing is said of rates
    counts = golden.counts_of("recurrent")
    silent = [
        replace(layer, events=np.zeros_like(layer.events), sop=np.zeros_like(layer.sop)) for layer in counts.layers
    ]
    quiet = context(replace(counts, layers=silent))
    assert "0.0%, below the 6.4%" in quiet[0]
    assert "below these limits" in quiet[1]
    assert context(replace(counts, layers=[], aux=[])) == []
