"""`spikeloom energy`, and what a training says of energy at its end."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from spikeloom import cli
from spikeloom.energy.report import Report
from spikeloom.energy.store import load
from spikeloom.models import create_model
from spikeloom.training import Recipe, energy_report, fit, load_model
from spikeloom.training.energy_count import Work, count_over, random_frames
from spikeloom.training.run import measure

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, on a terminal wide enough for every line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def trained(tiny: Recipe) -> Path:
    """A run folder, trained for a second."""
    fit(tiny, "run", device="cpu", console=Console(quiet=True))
    return Path("run")


def run(*arguments: str) -> int:
    return cli.main(["energy", *arguments])


def test_a_trained_network(trained: Path, tiny: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "--html", "page.html", "--json", "all.json", "--csv", "layers.csv", "--device", "cpu") == 0
    text = capsys.readouterr().out
    tally, firing = measure(load_model(trained)[0], tiny, CPU)
    assert f"{tally.accuracy:.1%} accuracy ({tally.correct} of 20 recordings; ".replace("%", " %") in text
    assert "N-MNIST recordings" in text
    for words in ("stages.0.conv", "stages.1.conv", "head", "horowitz45_fp32", "per inference", "Conventions"):
        assert words in text
    assert {path.name for path in Path().iterdir()} >= {"page.html", "all.json", "layers.csv"}
    report = Report.load("all.json")
    assert report.accuracy == tally.accuracy
    assert report.accuracy_by_step is not None
    assert report.accuracy_by_step[-1] == tally.accuracy
    neurons = {n.name: float(n.spikes.sum()) / (n.updates * 3 * 20) for n in report.counts.aux if hasattr(n, "spikes")}
    assert neurons == pytest.approx({name: layer.rate for name, layer in firing.items()})


def test_counts_do_not_depend_on_the_batch(trained: Path) -> None:
    for size in ("3", "20"):
        assert run("run", "--json", f"{size}.json", "--batch-size", size, "--device", "cpu") == 0
    first, second = (json.loads(Path(f"{size}.json").read_text())["counts"]["layers"] for size in ("3", "20"))
    assert first == second


def test_fewer_samples_steps_and_the_training_part(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", "--samples", "7", "--T", "5", "--part", "train", "--json", "a.json") == 0
    counts = load("a.json")
    assert (counts.T, counts.samples) == (5, 7)
    assert "nmnist, train part" in capsys.readouterr().out
    assert run("run", "--part", "validation") == 1
    assert "without a validation part" in capsys.readouterr().err


def test_a_name_counts_random_frames_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("conv_snn_tiny", "--T", "3", "--samples", "5", "--density", "0.3", "--json", "a.json") == 0
    text = capsys.readouterr().out
    assert "conv_snn_tiny, untrained, random input" in text
    assert "On random input: " in text
    assert "Random input. These numbers say nothing of the network on data." in text
    assert "accuracy" not in text.split("Layers")[0]
    counts = load("a.json")
    assert counts.setting["input"] == "random"
    assert 0.25 < counts.layer("stages.0.conv").events.mean() / (2 * 34 * 34) < 0.35


def test_random_frames_do_not_depend_on_the_batch() -> None:
    drawn = [
        torch.cat([frames for frames, _ in random_frames((2, 4, 4), 3, 5, size, 0.5, 7, CPU)], 1) for size in (2, 5)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert drawn[0].shape == (3, 5, 2, 4, 4)
    assert not torch.equal(drawn[0][:, 0], drawn[0][:, 1])


def test_a_name_on_recordings(recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("conv_snn_tiny", "--data", "nmnist", "--root", str(recordings), "--T", "2", "--samples", "4") == 0
    text = capsys.readouterr().out
    assert "conv_snn_tiny, untrained" in text
    assert "Random input" not in text
    assert "4 recordings; nmnist, test part" in text


def test_stored_counts_are_priced_again(capsys: pytest.CaptureFixture[str]) -> None:
    run("conv_snn_tiny", "--T", "2", "--samples", "3", "--density", "0.4", "--json", "a.json")
    capsys.readouterr()
    assert run("a.json", "--models", "loihi2018, horowitz45_int8", "--integers", "mac", "--static-once") == 0
    text = capsys.readouterr().out
    assert "loihi2018, simulated." in text
    assert "integers: mac" in text
    assert "computed once" in text
    assert run("a.json", "--samples", "3", "--batch-size", "2") == 1
    assert "finished counts, which --samples, --batch-size cannot change" in capsys.readouterr().err
    assert run("a.json", "--models", "truenorth2014", "--bias") == 1
    assert "all-in" in capsys.readouterr().err


def test_models_and_models_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.toml").write_text(
        '[chip_of_the_tests]\ntechnology = "22 nm"\nformula = "3.1 SOP"\nsource = "nobody"\nevidence = "estimated"\n'
        'scope = "all_in"\nconstants = { sop = 3.1 }\n'
    )
    assert run("models") == 0
    text = capsys.readouterr().out
    assert "horowitz45_fp32" in text
    assert "spinnaker" in text
    assert "disputed" in text
    command = ["conv_snn_tiny", "--T", "2", "--samples", "2", "--density", "0.4", "--models-file", "mine.toml"]
    assert run(*command, "--models", "chip_of_the_tests") == 0
    assert "chip_of_the_tests, estimated" in capsys.readouterr().out
    assert run("models", "chip*") == 0
    assert "nobody" in capsys.readouterr().out
    assert run("models", "nothing*") == 1
    assert "No hardware model matches 'nothing*'" in capsys.readouterr().err


def test_diff_is_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for name, density in (("low", "0.2"), ("high", "0.3")):
        run("conv_snn_tiny", "--T", "2", "--samples", "3", "--density", density, "--json", f"{name}.json")
    capsys.readouterr()
    assert run("diff", "low.json", "high.json") == 1
    assert "failed: energy regression" in capsys.readouterr().out
    assert run("diff", "high.json", "low.json") == 0
    assert run("diff", "low.json", "high.json", "--tolerance", "9") == 0
    assert run("diff", "low.json", "nothing.json") == 1


class _Interrupting(nn.Module):
    """A network whose third batch brings a Ctrl-C."""

    def __init__(self) -> None:
        super().__init__()
        self.net = create_model("conv_snn_tiny")
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGINT)
        logits: Tensor = self.net(x)
        return logits


def test_an_interrupted_count_keeps_what_it_has() -> None:
    console = Console(width=200, record=True, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for frames, _ in random_frames((2, 34, 34), 2, 20, 2, 0.3, 0, CPU):
            yield frames, torch.zeros(frames.shape[1], dtype=torch.int64)

    counted = count_over(Work(_Interrupting(), batches(), 20, CPU), console)
    assert (counted.samples, counted.wanted) == (6, 20)
    counts = counted.run.counts()
    assert counts.samples == 6
    assert counts.setting["interrupted"] == "interrupted: 6 of 20 samples were counted"
    assert "interrupted: 6 of 20 samples were counted" in console.export_text()
    console.file.close()


def test_training_ends_with_energy(recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--root", str(recordings), "--pretrain", "None", "--model", "conv_snn_tiny", "--epochs", "1", "--T", "3"]
    assert cli.main(["train", "nmnist_small", *flags]) == 0
    text = capsys.readouterr().out
    accuracy = re.search(r"test accuracy after epoch 1 .*?: (\d+\.\d)\d% \((\d+) of 20 ", text)
    assert accuracy is not None
    assert re.search(rf"energy on 20 test recordings: .* % accuracy \({accuracy[2]} of 20 recordings", text)
    assert ("the same network as an ANN" in text) != ("the network is silent" in text)
    assert Path("runs/nmnist_small/report.html").stat().st_size > 10_000
    assert Report.load("runs/nmnist_small/energy.json").counts.samples == 20
    assert cli.main(["train", "nmnist_small", *flags, "--no-energy"]) == 0
    assert "per inference" not in capsys.readouterr().out
    assert not Path("runs/nmnist_small-2/energy.json").exists()


def test_without_jinja2_there_is_no_page(trained: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy_report, "find_spec", lambda name: None)
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    energy_report.report_energy(next(trained.glob("checkpoint-*")), tiny, CPU, console)
    assert "needs jinja2, pip install 'spikeloom[report]'" in console.export_text()
    assert (trained / "energy.json").exists()
    assert not (trained / "report.html").exists()
    console.file.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["conv_snn_tin"], "There is no model 'conv_snn_tin' (nearest: conv_snn_tiny"),
        (["runs/nothing"], "is no run folder, checkpoint or JSON file of counts"),
        (["nothing.json"], "is no run folder, checkpoint or JSON file of counts"),
        (["."], "is no checkpoint"),
        (["conv_snn_tiny", "--models", "horowits45"], "no energy model 'horowits45' (nearest: horowitz45"),
        (["conv_snn_tiny", "--models", ","], "--models names nothing"),
        (["conv_snn_tiny", "--shape", "2", "5", "5"], "ConvSNN got frames of shape [2, 5, 5]"),
        (["conv_snn_tiny", "--models-file", "nothing.toml"], "nothing.toml"),
        (["diff", "nothing.json", "b.json"], "nothing.json"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "usage: spikeloom energy TARGET" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sample", "3"], "--sample"),
        (["--samples", "0"], "--samples is 0; expected >= 1"),
        (["--density", "3"], "--density is 3.0; expected a probability"),
    ],
)
def test_wrong_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("conv_snn_tiny", *flags)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_written_fails_before_the_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr("spikeloom.training.energy_cli.count_over", never)
    Path("file").write_text("")
    for flag in ("--html", "--json", "--csv"):
        assert run("conv_snn_tiny", flag, "file/page.html") == 1
        assert "file/page.html cannot be written: no file can be made in" in capsys.readouterr().err
        assert run("conv_snn_tiny", flag, ".") == 1
        assert ". is a folder; expected the name of a file" in capsys.readouterr().err
    assert run("conv_snn_tiny", "--json", "a", "--csv", "./a") == 1
    assert "name the same file twice" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert run("conv_snn_tiny", "--html", "page.html") == 1
    assert "pip install 'spikeloom[report]'" in capsys.readouterr().err
    assert run("conv_snn_tiny", "--models", "truenorth2014", "--bias") == 1
    assert "all-in" in capsys.readouterr().err
