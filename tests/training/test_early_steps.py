"""Fewer time steps in the first epochs: what runs, what is saved, and that graphs follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from spikeloom_tests.training.pretended_graphs import CPU, ListedBatches, PretendedRecorder, ahead
from spikeloom_tests.training.tiny_files import write_fashion
from torch import nn

from spikeloom.models import create_model
from spikeloom.training import Data, Recipe, fit, network
from spikeloom.training.checkpoint import read_description
from spikeloom.training.loop import start, train_epoch

SMALL = {
    "in_channels": 1,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "input_size": [28, 28],
    "pools": [True, True, False, False],
}
RECIPE = Recipe(
    model="spikformer_small",
    model_args=SMALL,
    data=Data("fashion_mnist", T=3),
    epochs=3,
    early_epochs=2,
    early_steps=1,
)


def watched(model: nn.Module) -> list[int]:
    steps: list[int] = []
    model.register_forward_hook(lambda module, given, logits: steps.append(len(logits)))
    return steps


def two_batches() -> ListedBatches:
    generator = torch.Generator().manual_seed(0)
    return ListedBatches([(torch.randn(3, 1, 28, 28, generator=generator), torch.tensor([0, 1, 2])) for _ in range(2)])


@pytest.mark.parametrize("graphs", [False, True])
def test_the_first_epochs_have_fewer_steps(graphs: bool) -> None:
    model = network.build(RECIPE, 10)
    recorder = PretendedRecorder()
    training = ahead(RECIPE, model, recorder) if graphs else start(RECIPE, model, CPU)
    steps = watched(model)
    for wanted in (1, 1, 3):
        steps.clear()
        for _ in train_epoch(training, two_batches()):  # type: ignore[arg-type]
            assert model.config.T == 3  # what would be saved
        assert steps == [wanted] * 2
    if graphs:  # three calls of each length run as they are, so the first is recorded once and the second not
        assert recorder.records == 1


def test_a_run_saves_the_steps_of_the_last_epochs(tmp_path: Path) -> None:
    recipe = replace(RECIPE, data=replace(RECIPE.data, root=str(write_fashion(tmp_path))), batch_size=16)
    result = fit(recipe, tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert result.epochs == 3
    assert read_description(result.checkpoint).model_config["T"] == 3


def test_what_has_no_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a classifier of images, got a .* and saccade_mnist"):
        network.build(replace(RECIPE, data=Data("saccade_mnist", T=3), model_args={}), 10)
    with pytest.raises(ValueError, match="early_epochs is 4; expected 0 to epochs=3"):
        replace(RECIPE, early_epochs=4)


def test_steps_of_a_classifier() -> None:
    model = create_model("spikformer_small", T=2, **SMALL)
    image = torch.randn(2, 1, 28, 28)
    assert len(model(image)) == 2
    model.set_steps(5)
    assert len(model(image)) == 5
    model.set_steps(None)
    assert len(model(image.expand(7, *image.shape))) == 7
    with pytest.raises(ValueError, match="T=0"):
        model.set_steps(0)
