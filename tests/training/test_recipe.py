"""Recipes: values, JSON, registry, comparison."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from spikeloom.models import MaskedConfig, is_model
from spikeloom.training import Augment, Data, Loss, Optim, Recipe, get_recipe, list_recipes, recipe, recipes
from spikeloom.training.recipe import differences, read_recipe
from spikeloom.training.sources import SOURCES, check_augment

RECONSTRUCT: dict[str, Any] = {"task": "reconstruct", "data": Data(T=1)}
CHANGED = Recipe(
    model="conv_snn_tiny",
    model_args={"widths": [4, 8], "dropout": 0.5},
    data=Data("nmnist", root="/data", T=4, encoding="sqrt", validation=100, limit=50),
    augment=Augment(shift_px=2, rotate_degrees=5.0, drop=0.1, jitter_us=100.0),
    optim=Optim(lr=0.1, betas=(0.5, 0.6), clip_norm=None),
    loss=Loss("tet", 0.1, 0.2, 0.3),
    epochs=3,
    ema=0.99,
    pretrain="saccade_pretrain",
)


@pytest.mark.parametrize("original", [Recipe(), CHANGED, *(get_recipe(name) for name in list_recipes())])
def test_json_both_ways(original: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps(original.to_json()))
    assert read_recipe(file) == original


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_names_what_exists_and_says_what_it_is(name: str) -> None:
    chosen = get_recipe(name)
    assert is_model(chosen.model)
    assert chosen.data.name in SOURCES
    assert chosen.pretrain is None or chosen.pretrain in list_recipes()
    assert list_recipes()[name]


def test_an_unknown_recipe_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'sacade_smal' \(nearest: saccade_small, "):
        get_recipe("sacade_smal")


def test_a_duplicate_recipe_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_RECIPES", {})

    def mine() -> Recipe:
        """Mine."""
        return Recipe()

    recipe(mine)
    with pytest.raises(ValueError, match=r"'mine' .* is already registered"):
        recipe(mine)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (Recipe, {"epochs": 0}, "Recipe.epochs is 0; expected >= 1"),
        (Recipe, {"ema": 1.0}, "Recipe.ema is 1.0"),
        (Recipe, {"init": "a", "pretrain": "b"}, "both init='a' and pretrain='b'"),
        (Data, {"T": 0}, "Data.T is 0"),
        (Data, {"limit": 0}, "Data.limit is 0"),
        (Augment, {"drop": 1.5}, "Augment.drop is 1.5; expected 0 to 1"),
        (Augment, {"shift_px": -1}, "Augment.shift_px is -1"),
        (Optim, {"lr": 0.0}, "Optim.lr is 0.0; expected > 0"),
        (Optim, {"betas": (0.9, 1.0)}, "Optim.betas"),
        (Optim, {"lr": 0.1, "min_lr": 0.2}, "Optim.min_lr is 0.2; expected 0 to lr"),
        (Optim, {"cooldown_epochs": -1.0}, "Optim.cooldown_epochs"),
        (Data, {"crop": 0}, "Data.crop is 0"),
        (Augment, {"mix_prob": 1.5}, "Augment.mix_prob is 1.5; expected 0 to 1"),
        (Augment, {"mixup": -0.1}, "Augment.mixup"),
        (Loss, {"label_smoothing": 1.0}, "Loss.label_smoothing is 1.0"),
        (
            Recipe,
            {"epochs": 30, "optim": Optim(warmup_epochs=20, cooldown_epochs=10)},
            "epochs is 30, of which warm-up takes 20 and cooldown 10; expected more than both. Raise --epochs",
        ),
        (Recipe, {"mask": MaskedConfig(ratio=0.5)}, "task is 'classify', and mask changes nothing"),
        (Recipe, {**RECONSTRUCT, "augment": Augment(mixup=0.5)}, r"and augment\.mixup changes nothing"),
        (Recipe, {**RECONSTRUCT, "augment": Augment(cutmix=0.5)}, r"and augment\.cutmix changes nothing"),
        (Recipe, {**RECONSTRUCT, "loss": Loss(label_smoothing=0.1)}, "task is 'reconstruct', and loss changes nothing"),
    ],
)
def test_impossible_values_are_refused(build: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_schedules_that_fit_are_taken() -> None:
    assert Recipe(epochs=31, optim=Optim(warmup_epochs=20, cooldown_epochs=10)).epochs == 31
    assert Recipe(epochs=2, optim=Optim(warmup_epochs=5)).epochs == 2  # warm-up alone
    assert Recipe(epochs=1, optim=Optim(warmup_epochs=20, cooldown_epochs=10)).epochs == 1  # a try


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"encoding": "sqrt"}, "--data.encoding binary"),
        ({"split": "number"}, "--data.split time"),
        ({"duration_us": 5}, "--data.duration-us 300000"),
        ({"pool": 2}, "--data.pool 1"),
        ({"crop": 28}, "--data.crop None"),
    ],
)
def test_images_are_not_binned(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=rf"cifar10 has images, .*{next(iter(changes))}.* Pass {flag}\."):
        check_augment(Augment(), Data("cifar10", **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not a JSON file"), ("[]", "holds a list"), ('{"epoch": 3}', r"no field 'epoch' \(nearest: epochs")],
)
def test_a_file_that_is_no_recipe_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "recipe.json")


def test_differences_name_every_changed_setting() -> None:
    other = dataclasses.replace(CHANGED, epochs=4, optim=dataclasses.replace(CHANGED.optim, lr=0.2))
    assert differences(CHANGED.to_json(), other.to_json()) == ["optim.lr 0.1 -> 0.2", "epochs 3 -> 4"]
    assert differences(CHANGED.to_json(), CHANGED.to_json()) == []
