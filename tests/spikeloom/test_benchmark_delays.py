"""benchmarks/delays.py: its options, its parts on the CPU, and the published construction where it is installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")
TINY = ["--device", "cpu", "--tiny", "--batch", "2", "--steps", "12", "--repetitions", "1"]
Script = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def script() -> Iterator[Script]:
    """Imports a script, which finds its neighbours as it does when it is run."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield import_module
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(autouse=True)
def same_settings() -> Iterator[None]:
    """What the script sets for its process stays as it was."""
    held = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = held


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["train", "--dtypes", "float16"], "--dtypes has float16; expected some of float32,bfloat16"),
        (["train", "--only", "spikeloom,official"], "--only has official; expected some of spikeloom; "),
        (["train", "--device", "cpu", "--only", "spikeloom_graph"], "--only has spikeloom graph"),
        (["forms", "--only", "waves"], "--only has waves; expected some of lines; "),
    ],
)
def test_options_that_are_refused(
    script: Script, given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script("delays")._options(given)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_race_on_the_cpu(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script("_delays"), "missing", lambda: "not installed: dcls")
    out = tmp_path / "train.json"
    script("delays").main(["train", *TINY, "--commit", "abc", "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["commit"] == "abc"
    assert record["settings"]["tf32_convolutions"] is True
    assert record["settings"]["tf32_products"] is False
    assert [row["dtype"] for row in record["rows"]] == ["float32", "bfloat16"]
    for row in record["rows"]:
        results = row["results"]
        assert list(results) == ["spikeloom", "spikeloom direct", "spikeloom frequencies", "published"]
        assert results["published"] == {"skipped": "not installed: dcls"}
        assert results["spikeloom"]["eager"]["median"] > 0
        assert results["spikeloom frequencies"]["eager"]["median"] > 0
        assert row["targets"] == {"spikeloom": [], "spikeloom direct": [], "spikeloom frequencies": []}
    assert "not installed: dcls" in capsys.readouterr().out


def test_forms_on_the_cpu(script: Script, tmp_path: Path) -> None:
    out = tmp_path / "forms.json"
    script("delays").main(["forms", *TINY, "--out", str(out)])
    single, half = json.loads(out.read_text())["rows"]
    assert list(single["results"]) == list(script("_delays").FORMS)
    assert set(single["results"]) - set(half["results"]) == {"fourier", "frequencies"}
    for row, rounding in ((single, 2e-6), (half, 2e-2)):
        assert row["results"].keys() == row["errors"].keys()
        assert all("failure" not in found for found in row["results"].values())
        assert all(error < rounding for errors in row["errors"].values() for error in errors.values())


def test_names_with_spaces_are_given_with_underscores(script: Script) -> None:
    given = ["train", "--only", "spikeloom_graph,published_without_cuDNN"]
    options = script("delays")._options(given)
    assert options.only == ["spikeloom graph", "published without cuDNN"]
    assert set(options.only) < set(script("delays").makers(options, CPU, torch.float32))


def test_every_form_can_be_picked(script: Script) -> None:
    for name in script("_delays").FORMS:
        given = ["forms", "--device", "cpu", "--only", name.replace(" ", "_") + ",lines"]
        assert script("delays")._options(given).only == [name, "lines"]


def test_targets(script: Script) -> None:
    results = {
        "spikeloom": {"eager": {"median": 4.0}, "peak_mib": 70.0},
        "published": {"eager": {"median": 10.0}, "peak_mib": 100.0},
    }
    faster, smaller = script("delays").targets(results, "spikeloom")
    assert (faster["value"], faster["met"]) == (2.5, True)
    assert (smaller["value"], smaller["met"]) == (0.7, False)
    assert script("delays").targets(results, "spikeloom frequencies") == []


def test_the_published_network_is_ours(script: Script) -> None:
    pytest.importorskip("DCLS")
    pytest.importorskip("spikingjelly")
    nets = script("_delays")
    x, labels = nets.batch(16, 3, 140, 35, CPU)
    found = nets.difference("delays_ssc_3l_2kc", x, **nets.TINY)
    assert found["largest"] < 1e-4
    net = nets.ours("delays_ssc_3l_2kc", CPU, **nets.TINY)
    peer = nets.published(net)
    assert sum(p.numel() for g in peer.groups() for p in g["params"]) == sum(
        p.numel() for p in net.parameters() if p.requires_grad
    )
    step = nets.train_step(peer, (x, labels), torch.float32)
    before = peer.model[0].P.detach().clone()
    step.call()
    step.call()
    assert not torch.equal(peer.model[0].P, before)
    assert float(peer.model[0].P.detach().abs().max()) <= 3
