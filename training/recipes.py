"""Recipes by name. A recipe is a function that returns a `Recipe`; its docstring is what `spikeloom train` says.

The recipes of the package are in `small_recipes.py` and, by model family, `spikformer_recipes.py` and others.
"""

from __future__ import annotations

from collections.abc import Callable

from spikeloom.models.config import nearest
from spikeloom.training.recipe import Recipe

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
