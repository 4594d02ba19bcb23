"""A network trained on a folder of images knows its classes by name, and refuses a folder with others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from spikeloom_tests.training.image_folders import write_folder

from spikeloom import cli
from spikeloom.training import Data, Recipe, fit, get_recipe
from spikeloom.training.checkpoint import read_description, require_checkpoint

NARROW = {"embed_dim": 32, "num_heads": 2, "depths": [1, 1, 1], "input_size": [32, 32]}
NAMES = ("n00000000", "n00000001", "n00000002")
OTHER = "first that differs is n00000002 in training and zebra here"


def folder_with(root: Path, names: tuple[str, ...]) -> Path:
    write_folder(root, classes=len(names), train=8, test=2)
    for part in ("train", "val"):
        for number, name in enumerate(names):
            (root / part / f"n{number:08d}").rename(root / part / name)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A run of one epoch on three classes."""
    root = folder_with(tmp_path_factory.mktemp("images"), NAMES)
    recipe = get_recipe("maxformer_10_384_imagenet_paper")
    data = Data("image_folder", root=str(root), T=2, image_size=32, workers=0)
    recipe = replace(recipe, model_args=NARROW, data=data, epochs=1, batch_size=8)
    out = tmp_path_factory.mktemp("runs") / "run"
    fit(recipe, out, device="cpu", console=Console(quiet=True))
    return recipe, out


def test_the_names_are_stored(trained: tuple[Recipe, Path]) -> None:
    assert read_description(require_checkpoint(trained[1])).classes == NAMES


@pytest.mark.parametrize("part", ["test", "train"])
@pytest.mark.parametrize("command", ["eval", "energy"])
def test_another_folder_with_the_same_names_is_taken(
    command: str, part: str, trained: tuple[Recipe, Path], tmp_path: Path
) -> None:
    root = folder_with(tmp_path, NAMES)
    assert cli.main([command, str(trained[1]), "--root", str(root), "--part", part, "--device", "cpu"]) == 0


@pytest.mark.parametrize("part", ["test", "train"])
@pytest.mark.parametrize("command", ["eval", "energy"])
def test_other_names_are_refused(
    command: str, part: str, trained: tuple[Recipe, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_with(tmp_path, (*NAMES[:2], "zebra"))
    assert cli.main([command, str(trained[1]), "--root", str(root), "--part", part, "--device", "cpu"]) == 1
    assert OTHER in capsys.readouterr().err.replace("\n", " ")


def test_a_run_does_not_go_on_with_others(trained: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, out = trained
    root = folder_with(tmp_path, (*NAMES[:2], "zebra"))
    elsewhere = replace(recipe, data=replace(recipe.data, root=str(root)))
    with pytest.raises(ValueError, match=OTHER):
        fit(elsewhere, out, resume=True, device="cpu", console=Console(quiet=True))
    assert read_description(require_checkpoint(out)).recipe == recipe


def test_of_an_older_checkpoint_the_number_is_checked(
    trained: tuple[Recipe, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = require_checkpoint(trained[1]) / "config.json"
    text = path.read_text()
    fewer, same = folder_with(tmp_path / "fewer", NAMES[:2]), folder_with(tmp_path / "same", (*NAMES[:2], "zebra"))
    try:
        path.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "classes"}))
        assert read_description(path.parent).classes is None
        assert cli.main(["eval", str(trained[1]), "--root", str(fewer), "--device", "cpu"]) == 1
        assert "trained on 3 classes, and fewer test has 2" in capsys.readouterr().err.replace("\n", " ")
        assert cli.main(["eval", str(trained[1]), "--root", str(same), "--device", "cpu"]) == 0
    finally:
        path.write_text(text)
