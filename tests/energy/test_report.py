"""The report: numbers in words, tables, JSON and CSV."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from spikeloom.energy.counts import Counts, NeuronCount
from spikeloom.energy.export import csv_rows, read_csv
from spikeloom.energy.models import EnergyModel, get_model
from spikeloom.energy.report import DEFAULT_MODELS, Report
from spikeloom.energy.store import StoreError, load, save
from spikeloom.energy.tables import Head, Table
from spikeloom.energy.totals import Policy
from spikeloom.energy.units import count_text, energy_range, energy_text, nice_ticks, ratio_text
from spikeloom.energy.words import headline, verdict

Build = Callable[..., Counts]
Golden = Callable[[str], Counts]


def text_of(report: Report, width: int = 170) -> str:
    """The report on a terminal without colours, its lines joined where they were broken."""
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as captured:
        report.print(console)
    return captured.get()


def test_the_golden_case_whose_snn_costs_more_says_so(golden_case: Golden) -> None:
    report = Report(golden_case("conv_bn_lif"))
    assert report.main.mean == pytest.approx(108_574.6, abs=0.05)
    assert report.ann() == pytest.approx(9192 * 4.6)
    said = verdict(report)
    assert said.tone == "more"
    assert said.text.startswith("The spiking network costs more than the same ANN: 2.57x the energy, 108.6 nJ against ")
    assert any("The input of conv1 never changes" in reason for reason in said.reasons)
    text = text_of(report)
    assert said.text in text.replace("\n", " ")
    assert "49.90 nJ" in text  # the nominal ANN of papers, beside the exact one
    assert "42.28 nJ" in text


def test_headline_has_all_it_must(build: Build) -> None:
    report = Report(build(N=40), accuracy=0.973, accuracy_note="389 of 400 recordings")
    said = headline(report)
    assert said.startswith("97.3 % accuracy (389 of 400 recordings), ")
    for part in (
        "synaptic operations per inference (95 % interval ",
        "nJ per inference, ",
        "the same network as an ANN",
    ):
        assert part in said
    assert said.endswith("; horowitz45_fp32, estimated.")
    assert headline(Report(build(N=1))).count("interval") == 0


def test_less_and_even(build: Build) -> None:
    cheap = Report(build(direct=False, rate=0.05))
    assert verdict(cheap).tone == "less"
    assert verdict(cheap).text.startswith("The spiking network needs ")
    model = get_model("horowitz45_fp32")
    same = cheap.main.mean / (cheap.ann() or 1) * model.constants["mac"]
    even = EnergyModel("even", "x", "x", "x", "estimated", "per_term", {"ac": model.constants["ac"], "mac": same})
    ratio = cheap.reprice(models=[even]).ratio()
    assert ratio is not None
    assert verdict(cheap.reprice(models=["truenorth2014"])).tone == ""


def test_random_input_gets_no_verdict(build: Build) -> None:
    counts = build(direct=False)
    counts.setting |= {"input": "random", "data": "random input: ..."}
    report = Report(counts)
    assert headline(report).startswith("On random input: ")
    assert verdict(report).tone == ""
    assert "no statement on data" in verdict(report).text
    assert "Random input. These numbers say nothing" in text_of(report)


def test_a_silent_network_is_not_set_against_an_ann(build: Build) -> None:
    counts = build()
    neurons = counts.of(NeuronCount)
    for neuron in neurons[1:]:
        neuron.spikes[:] = 0
    assert verdict(Report(counts)).tone == "less"  # one still fires
    neurons[0].spikes[:] = 0
    report = Report(counts)
    assert verdict(report).tone == ""
    assert "the network is silent" in verdict(report).text
    assert "as an ANN" not in headline(report)
    assert "less energy" not in text_of(report)


def test_the_layer_tree(build: Build) -> None:
    report = Report(build())
    root = report.tree()
    labels = [(depth, node.label) for depth, node in root.walk()]
    assert labels == [
        (0, ""),
        (1, "stem.conv"),
        (1, "block"),
        (2, "0.conv"),
        (2, "1.conv"),
        (2, "attention.matmul.0"),
        (1, "head"),
    ]
    assert root.sums.sop == pytest.approx(report.sop.mean)
    block = root.children[1].sums
    assert block.sop == pytest.approx(sum(child.sums.sop for child in root.children[1].children))
    assert root.children[0].sums.rate == pytest.approx(report.counts.layers[0].events.mean() / 192)
    beside = report.main.layer_mean("block.late_norm")
    assert root.sums.energy + beside == pytest.approx(report.main.mean)


def test_a_layer_may_have_the_name_of_a_module(build: Build) -> None:
    counts = build()
    counts.layers[3].name = "block"
    report = Report(counts)
    root = report.tree()
    assert root.sums.sop == pytest.approx(report.sop.mean)
    assert root.children[1].row is not None
    assert [child.label for child in root.children[1].children] == ["0.conv", "1.conv"]
    assert "SOP" in text_of(report)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_every_table_fits_the_terminal(build: Build, width: int) -> None:
    text = text_of(Report(build(gaps=True)), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert ("columns without room here" in text) == (width < 200) or width == 200


def test_what_is_not_counted_stands_out(build: Build) -> None:
    text = text_of(Report(build(gaps=True)))
    assert "Operations without a counting rule ran; they are in no number here." in text
    assert "aten.fft_rfft in block.mixer: 4 calls" in text
    assert "could not be told apart by step and sample" in text
    assert "lost ‡" in text
    assert "stem.conv †" in text
    assert "cannot fold" in text
    console = Console(width=170, force_terminal=True, highlight=False, color_system="standard")
    with console.capture() as captured:
        Report(build(gaps=True)).print(console)
    assert "\x1b[33m" in captured.get()  # yellow


def test_unassigned_layers_are_in_the_means(build: Build) -> None:
    whole, gaps = Report(build()), Report(build(gaps=True))
    assert gaps.sop.mean - whole.sop.mean == pytest.approx(288_000 / 6)
    assert gaps.energy().mean == pytest.approx(gaps.main.mean)
    assert gaps.main.mean - whole.main.mean == pytest.approx(0.9 * 288_000 / 6)


def test_silent_layers_are_named(golden_case: Golden) -> None:
    assert "never received a spike" in text_of(Report(golden_case("silent")))


def test_static_layers_both_ways(build: Build) -> None:
    text = text_of(Report(build()))
    assert "recomputed every step (used above)" in text
    assert "computed once, current kept" in text
    once = Report(build(), Policy(static_once=True))
    assert once.main.mean < Report(build()).main.mean
    assert "computed once, current kept (used above)" in text_of(once)
    assert "Static input:" not in text_of(Report(build(direct=False)))


def test_repricing_runs_nothing_and_keeps_the_rest(build: Build) -> None:
    report = Report(build(), accuracy=0.5, accuracy_by_step=[0.1, 0.2, 0.3, 0.5])
    again = report.reprice(Policy(integers="mac"), ["loihi2018", "horowitz45_int8"])
    assert list(again.prices) == ["loihi2018", "horowitz45_int8"]
    assert again.totals.mac_effective.sum() > report.totals.mac_effective.sum()
    assert (again.accuracy, again.accuracy_by_step) == (0.5, [0.1, 0.2, 0.3, 0.5])
    assert again.counts is report.counts


def test_a_model_that_cannot_price_the_policy_says_why(build: Build) -> None:
    report = Report(build(), Policy(include_bias=True), ["horowitz45_fp32", "truenorth2014"])
    assert list(report.refused) == ["truenorth2014"]
    assert "not priced" in text_of(report)
    assert "all-in" in report.refused["truenorth2014"]
    with pytest.raises(ValueError, match="all-in"):
        Report(build(), Policy(include_bias=True), ["truenorth2014"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": []}, "expected at least one"),
        ({"models": ["paper", "paper"]}, "each once"),
        ({"models": ["horowitz"]}, "no energy model 'horowitz'"),
        ({"accuracy": 97.3}, r"97 % is 0\.97"),
        ({"accuracy_by_step": [0.5]}, "has 1 values; expected 4"),
    ],
)
def test_mistakes(build: Build, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Report(build(), **options)  # type: ignore[arg-type]


def test_json_holds_everything_and_comes_back(build: Build, tmp_path: Path) -> None:
    mine = get_model("memory45", base="horowitz45_int8")  # not what goes by the name
    report = Report(build(gaps=True), Policy(integers="graded"), ["horowitz45_fp32", mine], accuracy=0.9, title="net")
    path = report.to_json(tmp_path / "energy.json")
    data = json.loads(path.read_text())
    assert (data["format"], data["version"]) == ("spikeloom-energy-report", 1)
    energy = data["energies"][0]
    assert {"model", "formula", "source", "evidence", "scope", "constants", "pj_per_inference"} <= set(energy)
    assert energy["constants"]["ac"] == 0.9
    assert data["run"]["sop"] == int(report.totals.sop.sum())
    assert data["conventions"]["SOP"]
    again = Report.load(path)
    assert again.to_dict() == report.to_dict()
    assert again.models[1] == mine or again.prices["memory45"].mean == report.prices["memory45"].mean
    assert load(path).samples == 6  # counts alone
    assert Report.load(path, models=["paper"]).main.model.name == "paper"


def test_json_has_no_nan(build: Build, tmp_path: Path) -> None:
    path = Report(build(N=1)).to_json(tmp_path / "one.json")
    assert json.loads(path.read_text())["sop_per_inference"]["sd"] is None


def test_bare_counts_become_a_report(build: Build, tmp_path: Path) -> None:
    path = save(build(), tmp_path / "counts.json")
    assert [model.name for model in Report.load(path).models] == list(DEFAULT_MODELS)
    (tmp_path / "other.json").write_text('{"format": "spikeloom-energy-report", "version": 9}')
    with pytest.raises(StoreError, match="version 9"):
        Report.load(tmp_path / "other.json")


def test_csv_per_layer(build: Build, tmp_path: Path) -> None:
    report = Report(build(gaps=True))
    rows = read_csv(report.to_csv(tmp_path / "layers.csv"))
    assert rows == csv_rows(report)
    assert [row["layer"] for row in rows] == [layer.name for layer in report.counts.layers]
    assert all(type(row["sop"]) is int for row in rows)
    assert rows[0]["sop_unit"] is None
    assert sum(float(str(row["horowitz45_fp32_pj"])) for row in rows) == pytest.approx(
        report.main.mean - report.main.layer_mean("block.late_norm")
    )


def test_csv_per_step(build: Build, tmp_path: Path) -> None:
    report = Report(build(gaps=True))
    rows = read_csv(report.to_csv(tmp_path / "steps.csv", steps=True))
    assert rows == csv_rows(report, steps=True)
    mine = [row for row in rows if row["layer"] == "block.0.conv"]
    assert [row["t"] for row in mine] == [1, 2, 3, 4]
    assert [row["sop"] for row in mine] == report.counts.layer("block.0.conv").sop.sum(1).tolist()
    lost = [row for row in rows if row["layer"] == "block.lost"]
    assert [(row["t"], row["assigned"], row["sop"]) for row in lost] == [(None, False, 288_000)]


def test_a_read_out_has_no_rate(build: Build) -> None:
    counts = build()
    none = np.zeros((4, 6), np.int64)
    counts.aux.append(NeuronCount("decide", "li", 10, 1, none, none, spiking=False))
    line = next(line for line in text_of(Report(counts)).splitlines() if line.startswith("decide"))
    assert "read-out" in line


def test_one_sample_has_no_interval(build: Build) -> None:
    assert "One sample: there is no interval." in text_of(Report(build(N=1)))


def test_columns_go_by_need() -> None:
    table = Table("t", [Head("name", number=False), Head("little", keep=1), Head("much", keep=5)])
    table.add("x" * 10, "1" * 14, "2" * 14)
    console = Console(width=40, no_color=True)
    with console.capture() as captured:
        console.print(table)
    assert "2" * 14 in captured.get()
    assert "1" * 14 not in captured.get()
    assert "columns without room here: little" in captured.get()


@pytest.mark.parametrize(
    ("pj", "text"),
    [
        (0, "0 pJ"),
        (0.5, "0.5 pJ"),
        (999.9, "999.9 pJ"),
        (1000, "1.000 nJ"),
        (108574.6, "108.6 nJ"),
        (2.5e6, "2.500 µJ"),
        (3.2e9, "3.200 mJ"),
        (7e12, "7.000 J"),
        (None, "-"),
    ],
)
def test_energies_in_words(pj: float | None, text: str) -> None:
    assert energy_text(pj) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (12345, "12,345"),
        (99999, "99,999"),
        (100000, "100.0 k"),
        (1234567, "1.235 M"),
        (26.05, "26.1"),
        (1234.5, "1,234"),
        (0.123456, "0.123"),
        (4.4e9, "4.400 G"),
        (None, "-"),
    ],
)
def test_counts_in_words(count: float | None, text: str) -> None:
    assert count_text(count) == text


def test_ranges_and_ratios() -> None:
    assert energy_range(107_900, 110_200) == "107.9–110.2 nJ"
    assert [ratio_text(r) for r in (0.0061, 0.43, 0.7, 1, 2.176, 120)] == [
        "0.0061x",
        "0.430x",
        "0.700x",
        "1.00x",
        "2.18x",
        "120.0x",
    ]
    assert nice_ticks(0) == [0.0, 1.0]
    for high in (1e-9, 0.3, 1, 7.5, 99, 12345):
        ticks = nice_ticks(high)
        assert ticks[0] == 0
        assert ticks[-1] >= high
        assert 3 <= len(ticks) <= 8
