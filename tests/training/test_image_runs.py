"""Networks on images, from the command line to energy: training, resuming, evaluation, counting."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from spikeloom_tests.training.tiny_files import write_fashion

from spikeloom import cli
from spikeloom.energy.store import load
from spikeloom.models import create_model
from spikeloom.training import Augment, Recipe, TrainingInterrupted, fit, get_recipe, run
from spikeloom.training.checkpoint import load_model, read_state, require_checkpoint
from spikeloom.training.network import build

NARROW: dict[str, Any] = {
    "in_channels": 1,
    "input_size": [28, 28],
    "embed_dim": 16,
    "num_heads": 2,
    "pools": [True, True, False, False],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fashion(tmp_path_factory.mktemp("fashion"))


@pytest.fixture
def narrow(root: Path) -> Recipe:
    """Two epochs of four steps, with every sort of augmentation."""
    recipe = get_recipe("spikformer_fashion_small")
    return replace(
        recipe,
        model_args=NARROW,
        data=replace(recipe.data, root=str(root), T=2),
        augment=replace(recipe.augment, rand_augment="rand-m9-n1", mixup=0.5, mix_epochs=1),
        epochs=2,
        batch_size=5,
    )


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")


def test_train_eval_and_energy(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--root", str(root), "--model-args", json.dumps(NARROW), "--epochs", "1", "--batch-size", "8", "--T", "3"]
    assert cli.main(["train", "spikformer_fashion_small", *flags, "--out", "run", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "on 20 images of fashion_mnist (Fashion-MNIST images, direct encoding), T = 3" in text
    assert "of 10 images of fashion_mnist" in text
    assert "energy on 10 test images: " in text
    assert cli.main(["eval", "run", "--device", "cpu"]) == 0
    assert "of 10 images of fashion_mnist: Fashion-MNIST images, direct encoding" in capsys.readouterr().out

    assert cli.main(["energy", "run", "--batch-size", "4", "--json", "a.json", "--strict", "--device", "cpu"]) == 0
    assert "10 images; fashion_mnist, test part: Fashion-MNIST images, direct encoding" in capsys.readouterr().out
    counts = load("a.json")
    assert (counts.T, counts.samples) == (3, 10)
    first, second = counts.layer("stem.stages.0.synapse"), counts.layer("stem.stages.1.synapse")
    assert (first.kind, second.kind) == ("float", "binary")
    assert first.static_input
    assert first.events[0].tolist() == first.events[-1].tolist()
    assert cli.main(["energy", "run", "--T", "2", "--samples", "3", "--json", "b.json", "--device", "cpu"]) == 0
    assert (load("b.json").T, load("b.json").samples) == (2, 3)


def test_counts_are_those_of_frames_that_repeat_the_image(root: Path, narrow: Recipe) -> None:
    fit(narrow, "run", device="cpu", console=Console(quiet=True))
    for size in ("2", "10"):  # two samples and two steps: axes of one length
        assert cli.main(["energy", "run", "--json", f"{size}.json", "--batch-size", size, "--device", "cpu"]) == 0
    first, second = (json.loads(Path(f"{size}.json").read_text())["counts"]["layers"] for size in ("2", "10"))
    assert first == second


class _StopAfter:
    def __init__(self, step: int) -> None:
        self.asked, self.step = 0, step

    @property
    def signal(self) -> int | None:
        self.asked += 1
        return signal.SIGINT if self.asked >= self.step else None


@pytest.mark.parametrize("step", [1, 3, 6])
def test_resumed_equals_uninterrupted(step: int, narrow: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def watch() -> Iterator[_StopAfter]:
        yield _StopAfter(step)

    quiet = Console(quiet=True)
    fit(narrow, "whole", device="cpu", console=quiet)
    with monkeypatch.context() as patch:
        patch.setattr(run, "watch", watch)
        with pytest.raises(TrainingInterrupted):
            fit(narrow, "cut", device="cpu", console=quiet)
    fit(narrow, "cut", resume=True, device="cpu", console=quiet)
    a, b = (require_checkpoint(Path(name)) for name in ("whole", "cut"))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert read_state(a)["tally"]["loss"] == read_state(b)["tally"]["loss"]


def test_the_models_steps_follow_the_recipes(narrow: Recipe) -> None:
    model = build(replace(narrow, data=replace(narrow.data, T=7)), 10)
    assert model.config.T == 7
    with pytest.raises(ValueError, match=r"model_args has T=5 and data.T is 2; expected the same. Leave T out"):
        build(replace(narrow, model_args={**NARROW, "T": 5}), 10)
    with pytest.raises(ValueError, match="conv_snn_tiny takes frames, and fashion_mnist has images"):
        build(replace(narrow, model="conv_snn_tiny", model_args={}), 10)


def test_a_checkpoint_with_other_steps(narrow: Recipe) -> None:
    fit(replace(narrow, epochs=1), "run", device="cpu", console=Console(quiet=True))
    images = torch.zeros(3, 1, 28, 28)
    with torch.no_grad():
        assert load_model(Path("run"))[0](images).shape == (2, 3, 10)
        assert load_model(Path("run"), T=5)[0](images).shape == (5, 3, 10)


def test_a_run_that_cannot_start_leaves_no_folder(narrow: Recipe) -> None:
    with pytest.raises(ValueError, match="changes events or frames of events"):
        fit(replace(narrow, augment=Augment(frame_op=True)), "run", device="cpu", console=Console(quiet=True))
    assert not Path("run").exists()


@pytest.mark.parametrize("name", ["spikformer_saccade_small", "spikformer_fashion_small"])
def test_small_recipes_stay_below_a_million_parameters(name: str) -> None:
    recipe = get_recipe(name)
    model = build(recipe, 10)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert model.config.T == recipe.data.T


def test_random_frames_for_a_model_of_fixed_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert create_model("spikformer_small").config.T == 6
    assert cli.main(["energy", "spikformer_small", "--samples", "1", "--json", "a.json", "--device", "cpu"]) == 0
    assert load("a.json").T == 6
    flags = ["--data", "saccade_mnist", "--crop", "32", "--T", "2", "--samples", "1", "--json", "b.json"]
    assert cli.main(["energy", "spikformer_small", *flags, "--device", "cpu"]) == 0
    assert load("b.json").T == 2
    assert cli.main(["energy", "spikformer_small", *flags[:2], "--samples", "1", "--device", "cpu"]) == 1
    assert "Crop or pad the frames" in capsys.readouterr().err
