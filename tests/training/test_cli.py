"""`spikeloom train` and `spikeloom eval`, from the command line to the exit code."""

import json
import re
from pathlib import Path

import pytest

from spikeloom import cli
from spikeloom.training import Recipe, list_recipes
from spikeloom.training.checkpoint import read_description, require_checkpoint

NARROW = "conv_snn_tiny"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, on a terminal wide enough for every line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def flags(recordings: Path) -> list[str]:
    """A training of a second."""
    return ["--root", str(recordings), "--pretrain", "None", "--model", NARROW, "--epochs", "1", "--batch-size", "8"]


def test_train_then_eval(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "nmnist_small", *flags, "--data.validation", "10", "--T", "3"]) == 0
    text = capsys.readouterr().out
    assert "training conv_snn_tiny (14,314 parameters) on 30 recordings and 10 held out of nmnist" in text
    assert re.search(r"epoch 1/1  loss \d\.\d+  accuracy \d+\.\d+%  validation ", text)
    accuracy = re.search(
        r"test accuracy after epoch 1 \(\d+ s of training\): (\d+\.\d+%) \(\d+ of 20 recordings of nmnist", text
    )
    assert accuracy is not None
    assert "stages.1.fire" in text
    assert "spikeloom eval runs/nmnist_small" in text

    assert cli.main(["eval", "runs/nmnist_small"]) == 0
    text = capsys.readouterr().out
    assert f"test accuracy {accuracy[1]} " in text
    assert "stages.1.fire" in text

    for part, count in (("train", 30), ("validation", 10)):
        assert cli.main(["eval", "runs/nmnist_small", "--part", part, "--batch-size", "7"]) == 0
        assert f"of {count} recordings" in capsys.readouterr().out


def test_the_embedded_events_train(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["train", "saccade_small", "--data.limit", "40", "--epochs", "1", "--model", NARROW, "--T", "2"]) == 0
    )
    assert "simulated events of MNIST images, not N-MNIST" in capsys.readouterr().out


def test_every_run_gets_a_folder_of_its_own_and_resume_takes_the_newest(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert cli.main(["train", "nmnist_small", *flags]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["nmnist_small", "nmnist_small-2"]
    capsys.readouterr()
    assert cli.main(["train", "nmnist_small", *flags, "--resume"]) == 0
    assert "saved in runs/nmnist_small-2/checkpoint-000005;" in capsys.readouterr().out
    assert cli.main(["train", "runs/nmnist_small", "--resume"]) == 0
    assert "saved in runs/nmnist_small/checkpoint-000005;" in capsys.readouterr().out
    assert cli.main(["train", "nmnist_small", *flags, "--out", "runs/nmnist_small"]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_flags_override_the_recipe(flags: list[str]) -> None:
    changes = ["--lr", "0.01", "--loss.name", "tet", "--optim.clip-norm", "None", "--model-args", '{"widths": [4, 6]}']
    assert cli.main(["train", "nmnist_small", *flags, *changes, "--out", "here"]) == 0
    description = read_description(require_checkpoint(Path("here")))
    recipe = description.recipe
    assert (recipe.optim.lr, recipe.loss.name, recipe.optim.clip_norm) == (0.01, "tet", None)
    assert description.model_config["widths"] == [4, 6]
    assert json.loads(Path("here/recipe.json").read_text()) == recipe.to_json()


def test_a_recipe_may_be_a_file(tiny: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.json").write_text(json.dumps(tiny.to_json()))
    assert cli.main(["train", "mine.json", "--epochs", "1"]) == 0
    assert "saved in runs/mine/checkpoint-000005" in capsys.readouterr().out


def test_help_lists_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in list_recipes())
    assert cli.main(["train"]) == 2
    assert cli.main(["train", "--epochs", "3"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "sacade_smal"], "There is no recipe 'sacade_smal' (nearest: saccade_small"),
        (["train", "list"], "`spikeloom train --help` lists them"),
        (["train", "nmnist_small"], "Pass --root FOLDER"),
        (["train", "saccade_small", "--data.name", "mnist", "--data.crop", "20"], "Pass --data.crop None"),
        (["train", "saccade_small", "--mask.ratio", "0.5"], "mask changes nothing"),
        (["train", "spikformer_cifar10_paper", "--epochs", "20"], "Raise --epochs"),
        (["train", "nmnist_small", "--root", "nowhere"], "There is no folder nowhere/Train"),
        (
            ["train", "saccade_small", "--model", "conv_snn_smal"],
            "There is no model 'conv_snn_smal' (nearest: conv_snn_",
        ),
        (["train", "saccade_small", "--model-args", '{"width": [3]}'], "no field 'width' (nearest: widths"),
        (["train", "saccade_small", "--epochs", "0"], "Recipe.epochs is 0; expected >= 1"),
        (["train", "saccade_small", "--device", "tpu9"], "There is no device 'tpu9'"),
        (["train", "saccade_small", "--resume"], "There is no run at runs/saccade_small to resume"),
        (["train", "saccade_small", "--init", "nowhere"], "There is nothing at nowhere"),
        (["train", "nothing.json"], "nothing.json"),
        (["eval", "nowhere"], "There is nothing at nowhere"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not Path("runs").exists()


@pytest.mark.parametrize("arguments", [["train", "saccade_small", "--epohs", "3"], ["eval"]])
def test_wrong_flags_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_eval_without_validation_part_says_so(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "nmnist_small", *flags]) == 0
    assert cli.main(["eval", "runs/nmnist_small", "--part", "validation"]) == 1
    assert "without a validation part" in capsys.readouterr().err


def test_eval_with_the_recordings_elsewhere(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "nmnist_small", *flags]) == 0
    assert cli.main(["eval", "runs/nmnist_small", "--root", str(tmp_path)]) == 1
    assert "n-mnist" in capsys.readouterr().err
