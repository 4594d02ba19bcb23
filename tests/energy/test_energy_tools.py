"""The comparison of energy counters in benchmarks/: ours is exact on every golden network; what it says of others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from spikeloom_tests.golden.energy.functional import all_values

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def tools() -> Iterator[ModuleType]:
    """benchmarks/_energy_tools.py, which imports its neighbours as a script does."""
    sys.path.append(str(BENCHMARKS))
    try:
        yield import_module("_energy_tools")
    finally:
        sys.path.remove(str(BENCHMARKS))


def rows_of(tools: ModuleType, name: str) -> Rows:
    """The rows of one counter, by case."""
    chosen = [tool for tool in tools.TOOLS if tool.name == name]
    assert chosen
    return {row["case"]: row for row in tools.compare_tools(tools=chosen)}


def test_ours_is_exact(tools: ModuleType) -> None:
    ours, exact = rows_of(tools, "spikeloom"), rows_of(tools, "brute force")
    assert len(ours) == len(list(tools.cases())) > 14
    for case, row in ours.items():
        assert (row["ac"], row["mac"]) == (exact[case]["ac"], exact[case]["mac"]), case
        assert row["ratio"] == 1, case
        assert row["remark"] == "exact", case
        assert all(type(row[key]) is int for key in ("ac", "mac")), case


def test_the_net_of_other_counters_computes_the_golden_network(tools: ModuleType) -> None:
    nets = import_module("_energy_nets")
    for name in tools.cases():
        case = tools.load(name)
        net = nets.ToolNet(case).double().eval()
        out, wanted = net(case.x.double())[case.final].detach(), all_values(case)[case.final]
        assert float((out - wanted).abs().max()) < 1e-12, name


def test_spikingjelly(tools: ModuleType) -> None:
    pytest.importorskip("spikingjelly")
    rows = rows_of(tools, "SpikingJelly")
    exact = {"depthwise_dilated", "pruned", "recurrent", "sdsa_masked", "silent", "transposed_conv1d"}
    assert {case for case, row in rows.items() if row["remark"] == "exact"} == exact
    assert rows["conv_bn_lif"]["remark"] == "conv1: dense MAC"
    assert rows["ssa"]["differences"] == {"out": "AC per SOP of one operand alone", "fc1": "dense MAC"}
    assert rows["graded"]["ac"] == 0  # no layer of it has {0, 1} inputs


def test_rule_of_the_literature(tools: ModuleType) -> None:
    with_products, without = rows_of(tools, "FLOPs x T x rate"), rows_of(tools, "FLOPs x T x rate, weights only")
    for case in tools.cases():
        stored = tools.load(case).golden["totals"]["literature_rule_per_sample_mean"]
        samples = tools.load(case).samples
        assert with_products[case]["ac"] == pytest.approx(stored["ac"] * samples, rel=1e-5), case
        assert with_products[case]["mac"] == pytest.approx(stored["mac"] * samples, rel=1e-5), case
    assert without["ssa"]["differences"]["attn"] == "not counted"


def test_what_is_not_installed_says_how_to_get_it(tools: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neurobench", None)
    table = import_module("_energy_table")
    rows = list(rows_of(tools, "NeuroBench").values())
    assert all(row["ac"] is None and row["ratio"] is None for row in rows)
    (line,) = table.missing(rows)
    assert "pip install --no-deps --target build/tools neurobench==2.3.0`" in line
    assert table.counts(rows)[1][0][1] == "not installed"


def test_folder_of_tools_must_exist(tools: ModuleType) -> None:
    with pytest.raises(SystemExit, match="pip install --target nowhere"):
        tools.compare_tools(Path("nowhere"))


def test_tables(tools: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    table = import_module("_energy_table")
    rows = [{"version": "1"} | row for row in rows_of(tools, "FLOPs x T x rate").values()]
    columns, lines = table.counts(rows)
    assert columns == ["case", "FLOPs x T x rate"]
    assert ["recurrent", "1,364 / 0 (exact)"] in lines
    assert ["delays", "2,670 / 0 (6.61x)"] in lines
    columns, lines = table.differences(rows)
    assert ["AC per SOP of one operand alone", "softmax_attention: av; ssa: attn, out"] in [line[1:] for line in lines]
