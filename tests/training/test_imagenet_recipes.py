"""The published ImageNet recipes: their numbers, the schedule step by step, what decays, and that each takes steps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from spikeloom_tests.training.image_folders import write_folder

from spikeloom.models import create_model
from spikeloom.training import fit, get_recipe, list_recipes
from spikeloom.training.optim import learning_rate, parameter_groups
from spikeloom.training.sources import check_augment, make_rand_augment, source

NAMES = [name for name in list_recipes() if name.endswith("_imagenet_paper") or name.endswith("_imagenet_t1_paper")]
NUMBERS = {  # model, T, peak rate, lowest rate, alpha of mixup
    "maxformer_10_384_imagenet_paper": ("maxformer_10_384", 4, 2.7e-3, 2.5e-6, 0.25),
    "maxformer_10_512_imagenet_t1_paper": ("maxformer_10_512", 1, 2.4e-3, 1e-6, 0.4),
    "maxformer_10_512_imagenet_paper": ("maxformer_10_512", 4, 2.7e-3, 1e-6, 0.4),
    "maxformer_10_768_imagenet_t1_paper": ("maxformer_10_768", 1, 2.4e-3, 1e-5, 0.8),
    "maxformer_10_768_imagenet_paper": ("maxformer_10_768", 4, 2.7e-3, 1e-5, 0.8),
    "ms_qkformer_10_384_imagenet_paper": ("ms_qkformer_10_384", 4, 2.7e-3, 2.5e-6, 0.25),
}
NARROW: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "depths": [1, 1, 1], "input_size": [32, 32]}
STEPS = 1_281_167 // 512


def test_all_are_there() -> None:
    assert sorted(NAMES) == sorted(NUMBERS)


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_its_numbers_are_those_of_the_paper(name: str) -> None:
    recipe = get_recipe(name)
    optim, augment = recipe.optim, recipe.augment
    assert (recipe.model, recipe.data.T, optim.lr, optim.min_lr, augment.mixup) == pytest.approx(NUMBERS[name])
    assert (recipe.epochs, recipe.batch_size, recipe.seed, recipe.ema, recipe.data.drop_last) == (
        200,
        512,
        42,
        None,
        True,
    )
    assert (optim.weight_decay, optim.betas, optim.clip_norm) == (0.05, (0.9, 0.999), None)
    assert (augment.cutmix, augment.mix_prob, augment.mix_epochs, augment.flip) == (1.0, 0.5, None, 0.5)
    assert (augment.erase, augment.erase_mode) == (0.25, "pixel")
    assert (recipe.loss.name, recipe.loss.label_smoothing) == ("rate", 0.1)
    assert (recipe.data.name, recipe.data.image_size, recipe.data.crop_area) == ("imagenet", 224, 0.08)
    check_augment(augment, recipe.data)
    rand = make_rand_augment(augment, source(recipe.data))
    assert rand is not None
    assert (rand.magnitude, rand.layers, rand.magnitude_std, rand.increasing) == (9, 2, 0.5, True)
    assert (len(rand.operations), rand.fill, rand.interpolation) == (15, (124, 116, 104), "bicubic")


@pytest.mark.parametrize("name", ["maxformer_10_384_imagenet_paper", "maxformer_10_768_imagenet_t1_paper"])
def test_the_rate_follows_the_published_formula(name: str) -> None:
    """In the warm-up ours is that of the next step, so that the first step is not one at rate 0."""
    optim = get_recipe(name).optim
    low = optim.min_lr
    assert low is not None

    def published(step: int) -> float:
        e = step / STEPS
        if e < 5:
            return optim.lr * e / 5
        return low + (optim.lr - low) * 0.5 * (1 + math.cos(math.pi * (e - 5) / 195))

    def ours(step: int) -> float:
        return learning_rate(step, 200 * STEPS, STEPS, optim)

    for step in (0, 1, STEPS, 3 * STEPS + 7, 5 * STEPS - 1):
        assert ours(step) == pytest.approx(published(step + 1), rel=1e-12)
    for step in (5 * STEPS, 5 * STEPS + 1, 60 * STEPS + 13, 199 * STEPS, 200 * STEPS - 1):
        assert ours(step) == pytest.approx(published(step), rel=1e-9)


@pytest.mark.parametrize("model", ["maxformer_10_384", "ms_qkformer_10_384"])
def test_what_has_more_than_one_axis_decays(model: str) -> None:
    network = create_model(model, **NARROW)
    decayed, kept = parameter_groups(network, 0.05)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    sizes = {len(p.shape) for p in decayed["params"]}
    assert 1 not in sizes
    assert {len(p.shape) for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(network.parameters()))


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_it_takes_steps(name: str, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", classes=2, train=3, test=1)
    recipe = get_recipe(name)
    data = replace(recipe.data, name="image_folder", root=str(root), image_size=32)
    small = replace(recipe, model_args=NARROW, data=data, epochs=1, batch_size=2)
    result = fit(small, tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert (result.test.samples, result.checkpoint.name) == (2, "checkpoint-000003")
    assert math.isfinite(result.test.mean_loss)
