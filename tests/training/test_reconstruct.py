"""The task "reconstruct": pre-training without labels, fine-tuning from its encoder, interruption, words."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from spikeloom.models import MaskedAutoencoder, MaskedConfig, SpikformerV2
from spikeloom.models.masked_stem import random_kept
from spikeloom.training import Data, Optim, Recipe, Result, cli, fit, get_recipe, load_model, recipes, run, sources
from spikeloom.training.checkpoint import require_checkpoint
from spikeloom.training.energy_cli import energy
from spikeloom.training.interrupt import TrainingInterrupted
from spikeloom.training.log import RunLog

SMALL = {
    "in_channels": 2,
    "input_size": [32, 32],
    "embed_dim": 16,
    "num_heads": 2,
    "depth": 1,
    "stages": 3,
    "expansion": 2,
}


def pretraining(recordings: Path) -> Recipe:
    """Five steps per epoch on 40 recordings of 10 blobs; an average of the weights, so that all is saved."""
    return Recipe(
        model="spikformer_v2_8_384",
        model_args=SMALL,
        task="reconstruct",
        mask=MaskedConfig(ratio=0.5, decoder_dim=16, decoder_depth=1, decoder_heads=2),
        data=Data("nmnist", root=str(recordings), T=1, encoding="sqrt", crop=32),
        optim=Optim(lr=5e-3),
        epochs=2,
        batch_size=8,
        ema=0.9,
    )


def quiet(recipe: Recipe, out: Path, resume: bool = False) -> Result:
    return fit(recipe, out, resume=resume, device="cpu", console=Console(quiet=True))


def epochs(out: Path) -> list[dict[str, Any]]:
    return [line for line in RunLog(out / "log.jsonl").lines() if line["event"] == "epoch"]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(require_checkpoint(out) / "model.safetensors")


@contextmanager
def stopping(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A signal arrives during step `step`."""

    class Stop:
        asked = 0

        @property
        def signal(self) -> int | None:
            self.asked += 1
            return 2 if self.asked >= step else None

    @contextmanager
    def watch() -> Iterator[Stop]:
        yield Stop()

    with monkeypatch.context() as patch:
        patch.setattr(run, "watch", watch)
        with pytest.raises(TrainingInterrupted, match=r"spikeloom train .* --resume"):
            yield


def test_the_loss_falls_and_there_is_no_accuracy(recordings: Path, tmp_path: Path) -> None:
    recipe = replace(pretraining(recordings), epochs=12)
    recipe = replace(recipe, data=replace(recipe.data, validation=10))
    result = quiet(recipe, tmp_path / "run")
    lines = epochs(tmp_path / "run")
    losses = [line["loss"] for line in lines]
    assert losses[-1] < 0.97 * losses[0]
    assert lines[-1]["validation_loss"] < lines[0]["validation_loss"]
    assert not any("accuracy" in key for line in RunLog(tmp_path / "run" / "log.jsonl").lines() for key in line)
    assert result.test.correct is None
    assert math.isnan(result.test.accuracy)
    assert 0 < result.test.mean_loss < losses[0]
    assert "encoder.stem.0.down.fire" in result.firing
    model, description = load_model(tmp_path / "run")
    assert isinstance(model, MaskedAutoencoder)
    assert isinstance(model.encoder, SpikformerV2)
    assert (model.encoder.config.T, model.encoder.num_classes, model.masking) == (1, 0, recipe.mask)
    assert description.recipe == recipe


@pytest.mark.parametrize("step", [3, 5, 7])
def test_resumed_equals_uninterrupted(
    step: int, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = pretraining(recordings)
    whole = quiet(recipe, tmp_path / "whole")
    with stopping(step, monkeypatch):
        quiet(recipe, tmp_path / "cut")
    resumed = quiet(recipe, tmp_path / "cut", resume=True)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert resumed.test.loss == whole.test.loss
    assert [line["loss"] for line in epochs(tmp_path / "cut")] == [line["loss"] for line in epochs(tmp_path / "whole")]


def test_fine_tuning_starts_from_the_encoder_with_a_fresh_head(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pretraining(recordings)
    monkeypatch.setattr(recipes, "_RECIPES", {"first": lambda: first})
    frozen = Optim(lr=1e-30, weight_decay=0.0)
    tuned = replace(
        first, task="classify", mask=MaskedConfig(), data=replace(first.data, T=2), optim=frozen, ema=None, epochs=1
    )
    tuned = replace(tuned, pretrain="first")
    out = tmp_path / "run"
    result = fit(tuned, out, device="cpu", console=Console(width=400))
    said = capsys.readouterr().out
    assert "entries of the encoder; left out:" in said
    assert "entries of decoder, mask_token, norm; fresh: head.weight, head.bias" in said
    assert "T = 2" in said
    assert 0 <= result.test.accuracy <= 1
    before, after = weights(out / "pretrain"), weights(out)
    learned = [name for name in after if not name.startswith("head.")]
    trained = [name for name in learned if "running" not in name and "num_batches" not in name]
    assert len(trained) > 20
    assert all(torch.equal(after[name], before[f"encoder.{name}"]) for name in trained)
    assert set(after) - set(learned) == {"head.weight", "head.bias"}
    again = replace(tuned, pretrain=None, init=str(out / "pretrain"))
    quiet(again, tmp_path / "init")
    assert all(torch.equal(weights(tmp_path / "init")[name], after[name]) for name in trained)


def test_the_recipes_of_the_package_fit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = get_recipe("spikformer_v2_pretrain_small"), get_recipe("spikformer_v2_finetune_small")
    assert second.pretrain == "spikformer_v2_pretrain_small"
    assert (first.model, first.model_args, first.data) == (second.model, second.model_args, second.data)
    monkeypatch.setattr(sources, "saccade_mnist", functools.cache(sources.saccade_mnist))  # both stages read it
    few = replace(first, data=replace(first.data, limit=256), epochs=3)
    monkeypatch.setattr(recipes, "_RECIPES", {second.pretrain: lambda: few})
    quiet(replace(second, data=replace(second.data, limit=128), epochs=1), tmp_path / "run")
    losses = [line["loss"] for line in epochs(tmp_path / "run" / "pretrain")]
    assert losses[2] < losses[1] < losses[0]
    assert "accuracy" in epochs(tmp_path / "run")[0]


def test_the_commands(recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(replace(pretraining(recordings), epochs=1).to_json()))
    out = str(tmp_path / "run")
    assert cli.train([str(file), "--out", out, "--device", "cpu", "--mask.ratio", "0.75"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "test reconstruction loss after epoch 1" in said
    assert "accuracy" not in said
    assert not (tmp_path / "run" / "energy.json").exists()
    assert cli.evaluate([out, "--device", "cpu"]) == 0
    assert "test reconstruction loss" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="has no classifier and never runs in inference"):
        energy([out, "--device", "cpu"])


@pytest.mark.parametrize(
    ("grid", "ratio", "keep"),
    [((2, 5), 0.9, 1), ((10, 10), 0.9, 10), ((14, 14), 0.75, 49), ((1, 3), 0.666, 1), ((4, 4), 0.7, 4)],
    ids=str,
)
def test_as_many_patches_are_kept_as_the_ratio_says(grid: tuple[int, int], ratio: float, keep: int) -> None:
    assert random_kept(2, grid, ratio, torch.Generator()).patches.shape == (2, keep)


def test_the_ratio_that_a_message_advises_keeps_a_patch() -> None:
    for count in range(2, 400):
        with pytest.raises(ValueError, match="keeps none") as caught:
            random_kept(1, (1, count), 0.9999, torch.Generator())
        advised = float(str(caught.value).partition("at most ")[2].partition(",")[0])
        assert random_kept(1, (1, count), advised, torch.Generator()).patches.shape[1] >= 1


def test_impossible_settings_are_refused(recordings: Path, tmp_path: Path) -> None:
    recipe = pretraining(recordings)
    with pytest.raises(ValueError, match=r"task is 'reconstruct' and data.T is 8; expected T=1"):
        Recipe(task="reconstruct")
    with pytest.raises(ValueError, match="'conv_snn_tiny' is a ConvSNN"):
        quiet(replace(recipe, model="conv_snn_tiny", model_args={}), tmp_path / "a")
    with pytest.raises(ValueError, match="multiples of 8"):
        quiet(replace(recipe, data=replace(recipe.data, crop=None)), tmp_path / "b")
    assert not (tmp_path / "b").exists()
    classifier = replace(recipe, task="classify", mask=MaskedConfig(), epochs=1)
    quiet(classifier, tmp_path / "c")
    with pytest.raises(ValueError, match="holds another model"):
        quiet(replace(recipe, init=str(tmp_path / "c")), tmp_path / "d")
