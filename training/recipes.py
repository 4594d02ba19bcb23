"""Recipes by name. A recipe is a function that returns a `Recipe`; its docstring is what `spikeloom train` says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from spikeloom.models.config import nearest
from spikeloom.training.recipe import Augment, Data, Loss, Optim, Recipe

_RECIPES: dict[str, Callable[[], Recipe]] = {}


def recipe(function: Callable[[], Recipe]) -> Callable[[], Recipe]:
    """Register a recipe under the name of its function.

    Raises:
        ValueError: the name is taken.
    """
    name = function.__name__
    if name in _RECIPES:
        first = _RECIPES[name].__module__
        raise ValueError(f"Recipe {name!r} of {function.__module__} is already registered by {first}. Rename one.")
    _RECIPES[name] = function
    return function


def get_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: there is none; the three nearest names are given.
    """
    if name not in _RECIPES:
        raise ValueError(
            f"There is no recipe {name!r}{nearest(name, _RECIPES)}. `spikeloom train --help` lists them; the name of a "
            ".json file or of a run folder does as well."
        )
    return _RECIPES[name]()


def list_recipes() -> dict[str, str]:
    """Every recipe's name with the first line of what it is."""
    return {name: (function.__doc__ or "").strip().splitlines()[0] for name, function in sorted(_RECIPES.items())}


@recipe
def saccade_small() -> Recipe:
    """MNIST-5k digits as simulated events: nothing to download, a minute or two on two CPU cores."""
    return Recipe(
        model="conv_snn_small",
        data=Data("saccade_mnist", T=8),
        augment=Augment(shift_px=2),
        optim=Optim(lr=4e-3),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=15,
    )


@recipe
def saccade_pretrain() -> Recipe:
    """The first stage of nmnist_small: simulated events with the polarities of N-MNIST's files.

    MNIST-5k holds the first 500 images of each digit of MNIST's training set. The first 1,000 recordings of N-MNIST
    show the first 1,000 of its images, at most the first 117 of a digit; those are left out, so that no image that a
    split of these recordings is tested on was seen here.
    """
    first = saccade_small()
    return replace(first, data=replace(first.data, skip_per_class=120, swap_polarity=True))


@recipe
def nmnist_small() -> Recipe:
    """A few hundred N-MNIST recordings (in --root), after pre-training on simulated events."""
    return Recipe(
        model="conv_snn_small",
        data=Data("nmnist", T=8),
        augment=Augment(shift_px=2, rotate_degrees=10, drop=0.3),
        optim=Optim(lr=1e-3),
        loss=Loss("rate", label_smoothing=0.1),
        epochs=20,
        pretrain="saccade_pretrain",
    )
