"""Lemaire et al. 2022 against its golden values and, where there are none, by hand."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from spikeloom.energy.counts import Counts, Geometry, Layer, NeuronCount
from spikeloom.energy.lemaire import lemaire2022
from spikeloom.energy.models import get_model
from spikeloom.energy.pricing import price
from spikeloom.energy.totals import Policy

golden = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("golden_counts.py"))))
CASES = [case for case in golden.CASES if "lemaire2022" in golden.load(case)["totals"]]


def linear(kind: str, T: int = 2) -> Layer:
    """4 -> 3 without bias, 2 events in each step of one sample."""
    events = np.full((T, 1), 2)
    return Layer(
        "fc", "linear", "param", kind, 1.0, events * 3, events, 12, 12, 3, 4, 0, geometry=Geometry((), (), 1, 4, 3, 12)
    )


def word(words: float) -> float:
    """pJ of a 4-byte word of a small memory: 10 pJ at 8 KiB, linear."""
    return 10 * 4 * words / 8192


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fanout", ["paper", "exact"])
def test_golden_values(case: str, fanout: str) -> None:
    counts, rows = golden.counts_of(case), golden.load(case)["totals"]["lemaire2022"][fanout]
    found = lemaire2022(counts, fanout)
    for name in rows[0]:
        assert golden.close(getattr(found, name), [row[name] for row in rows]), name
    made = price(counts, get_model("lemaire2022", fanout=fanout))
    assert golden.close(made.per_sample, [row["total_pj"] for row in rows])
    assert golden.close(made.terms["synaptic"], found.ops_pj)
    assert golden.close(made.terms["potential"], found.potential_pj)
    assert made.steps is None


def test_golden_values_are_there() -> None:
    assert {"pruned", "sticky_kind"} <= set(CASES)


def test_64_bit_accesses_halve_the_cost_of_memory() -> None:
    counts = golden.counts_of("pruned")
    narrow, wide = lemaire2022(counts), lemaire2022(counts, access_bits=64)
    for name in ("inout_pj", "params_pj", "potential_pj"):
        assert getattr(wide, name) == pytest.approx(getattr(narrow, name) / 2)
    assert (wide.ops_pj == narrow.ops_pj).all()


def test_analogue_linear_layer_by_hand() -> None:
    found = lemaire2022(Counts(2, 1, [linear("float")], []))
    assert (found.mac[0], found.ac[0], found.acc_addr[0], found.mac_addr[0]) == (24, 0, 2 * (4 + 3), 0)
    assert found.inout_pj[0] == pytest.approx(8 * word(4))
    assert found.params_pj[0] == pytest.approx(24 * word(12))
    assert found.potential_pj[0] == 0


def test_static_once_charges_one_step() -> None:
    counts = Counts(2, 1, [replace(linear("float"), static_input=True)], [])
    once = lemaire2022(counts, policy=Policy(static_once=True))
    assert once.total_pj[0] == pytest.approx(lemaire2022(counts).total_pj[0] / 2)


def test_a_product_of_activations_has_two_inputs_and_no_parameters() -> None:
    ones = np.ones((1, 1), np.int64)
    layer = Layer(
        "qk", "matmul", "activation", "binary", 1.0, 6 * ones, 3 * ones, 12, 12, 4, 6,
        kind_b="binary", events_b=5 * ones, in_numel_b=6, sop_a=6 * ones, sop_b=10 * ones,
    )  # fmt: skip
    for fanout in ("paper", "exact"):
        found = lemaire2022(Counts(1, 1, [layer], []), fanout)
        assert (found.synop[0], found.acc_addr[0], found.mac_addr[0], found.params_pj[0]) == (6, 6, 0, 0)
        assert found.inout_pj[0] == pytest.approx(8 * word(1000))
        assert found.potential_pj[0] == pytest.approx(12 * word(4))
    both = replace(layer, kind="float", kind_b="float")
    found = lemaire2022(Counts(1, 1, [both], []))
    assert (found.mac[0], found.acc_addr[0]) == (12, 12 + 4)
    assert found.inout_pj[0] == pytest.approx(12 * word(12))


def test_neurons_leak_or_not() -> None:
    spikes = np.array([[1], [2]])
    for model, macs in (("lif", 8), ("if", 0), ("if_soft", 0), ("ilif", 8)):
        found = lemaire2022(Counts(2, 1, [], [NeuronCount("n", model, 4, 1, spikes, spikes)]))
        assert (found.mac[0], found.ac[0]) == (macs, 3)
        assert found.potential_pj[0] == pytest.approx(2 * 8 * word(4))
        assert found.inout_pj[0] == pytest.approx(3 * word(1000))


def test_geometry_is_asked_for_where_it_matters() -> None:
    layer = replace(linear("binary"), op="conv2d")
    counts = Counts(2, 1, [layer], [])
    assert lemaire2022(counts, "exact").synop[0] == 12
    with pytest.raises(ValueError, match=r"'fc' \(conv2d\) has no kernel"):
        lemaire2022(counts, "paper")
    with pytest.raises(ValueError, match="expected one of exact, paper"):
        lemaire2022(counts, "nominal")
    with pytest.raises(ValueError, match="known for the whole run only"):
        lemaire2022(Counts(2, 1, [replace(layer, assigned=False)], []))
