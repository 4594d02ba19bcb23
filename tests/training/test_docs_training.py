"""docs/training.md names every recipe, data set and augmentation, with the numbers that the recipes have."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from spikeloom.training import Augment, get_recipe, list_recipes
from spikeloom.training.sources import SOURCES

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
ROWS = {
    row.split("|")[1].strip(" `"): [cell.strip(" `") for cell in row.split("|")[2:-1]]
    for row in TEXT.splitlines()
    if row.startswith("| `")
}


PAPERS = {name: get_recipe(name).task for name in list_recipes() if name.endswith("_paper")}


@pytest.mark.parametrize("name", [name for name, task in PAPERS.items() if task == "language"])
def test_a_published_language_model_has_a_row_with_its_numbers(name: str) -> None:
    recipe = get_recipe(name)
    data, model, tokenizer, context, epochs = ROWS[name]
    assert (data, model, tokenizer) == (recipe.data.name, recipe.model, recipe.data.tokenizer)
    assert (int(context), int(epochs)) == (recipe.data.context, recipe.epochs)


@pytest.mark.parametrize("name", [name for name in PAPERS if name.startswith("delays_")])
def test_a_published_network_with_delays_has_a_row_with_its_numbers(name: str) -> None:
    recipe = get_recipe(name)
    data, model, epochs, batch_size, accuracy = ROWS[name]
    assert (data, model) == (recipe.data.name, recipe.model)
    assert (int(epochs), int(batch_size)) == (recipe.epochs, recipe.batch_size)
    assert f"accuracy: {accuracy.removesuffix(' %')}" in list_recipes()[name]


@pytest.mark.parametrize(
    "name", [name for name, task in PAPERS.items() if task != "language" and not name.startswith("delays_")]
)
def test_a_published_recipe_has_a_row_with_its_numbers(name: str) -> None:
    recipe = get_recipe(name)
    data, model, T, epochs, accuracy = ROWS[name]
    assert (data, model, int(T)) == (recipe.data.name, recipe.model, recipe.data.T)
    cooldown = int(recipe.optim.cooldown_epochs)
    assert epochs == f"{recipe.epochs - cooldown} + {cooldown}"
    assert f"accuracy: {accuracy}" in list_recipes()[name]


@pytest.mark.parametrize(
    "name",
    [
        "saccade_small",
        "spikformer_saccade_small",
        "maxformer_saccade_small",
        "nmnist_small",
        "spikformer_fashion_small",
        "maxformer_fashion_small",
        "cifar10_10min",
        "spikegpt_char",
        "char_small",
        "delays_manifolds",
        "delays_digits",
        "spikmamba_small",
    ],
)
def test_a_small_recipe_has_a_row(name: str) -> None:
    recipe = get_recipe(name)
    assert recipe.data.name in ROWS[name][0]
    assert recipe.model in ROWS[name][1]


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_a_data_set_is_described(name: str) -> None:
    assert f"`{name}`" in TEXT.partition("## Data")[2].partition("## Augmentation")[0]


@pytest.mark.parametrize("name", [field.name for field in fields(Augment)])
def test_an_augmentation_is_described(name: str) -> None:
    described = TEXT.partition("## Augmentation")[2].partition("## How published")[0]
    assert f"`{name.replace('_', '-')}`" in described
