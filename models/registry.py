"""Models by name: `create_model("conv_snn_small", num_classes=11)`, `list_models("conv*")`.

A registered function takes overrides of its configuration and returns a module with

* `config`: a frozen dataclass of plain values, enough to build the module again;
* `num_classes`, `reset_classifier(num_classes)`; with `num_classes=0` the output is that of `forward_features`;
* `forward_features(x)`, `forward_head(features)` and `forward(x)`, `[T, B, ...]` in, logits `[T, B, num_classes]` out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from spikeloom.models.config import nearest, to_json

F = TypeVar("F", bound=Callable[..., nn.Module])

_MODELS: dict[str, Callable[..., nn.Module]] = {}


def register(function: F) -> F:
    """Register a model under the name of the function that builds it.

    Raises:
        ValueError: the name is taken.
    """
    name = function.__name__
    if name in _MODELS:
        first = _MODELS[name].__module__
        raise ValueError(f"Model {name!r} of {function.__module__} is already registered by {first}. Rename one.")
    _MODELS[name] = function
    return function


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Build a registered model; `overrides` replace fields of its configuration.

    Raises:
        ValueError: no such model (the three nearest names are given), or no such field.
    """
    if name not in _MODELS:
        raise ValueError(
            f"There is no model {name!r}{nearest(name, _MODELS)}. list_models() gives all {len(_MODELS)} names."
        )
    return _MODELS[name](**overrides)


def list_models(pattern: str = "*") -> list[str]:
    """The names that match a shell pattern such as "max*", in alphabetical order."""
    return sorted(name for name in _MODELS if fnmatchcase(name, pattern))


def is_model(name: str) -> bool:
    """Whether a model of that name is registered."""
    return name in _MODELS


def model_config(model: nn.Module) -> dict[str, Any]:
    """The configuration of a registered model as JSON: `create_model(name, **model_config(model))` builds it again.

    Raises:
        TypeError: the module has no `config` dataclass.
    """
    config = getattr(model, "config", None)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{type(model).__name__} has no `config` dataclass; expected a model of the registry.")
    return to_json(config)
