"""Models by name: `create_model("spikformer_cifar_4_384", num_classes=100)`, `list_models("spikformer*")`.

A registered model takes overrides of its configuration and is a module with

* `config`: a frozen dataclass of plain values, enough to build the module again;
* `num_classes`, `reset_classifier(num_classes)`; with `num_classes=0` the output is that of `forward_features`;
* `forward_features(x)`, `forward_head(features)` and `forward(x)`, `[T, B, ...]` in, logits `[T, B, num_classes]` out.

A language model has `vocab_size` in its configuration, no `num_classes`, and takes token ids `[T, B]`.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import nn

from spikeloom.models.config import configure, nearest, to_json

F = TypeVar("F", bound=Callable[..., nn.Module])
UNREAD = "not re-read in the paper"
"""Note of a published result that is widely quoted and was not looked up in its paper again."""
TOP_1 = "top-1 %"
"""Metric of a published accuracy."""


@dataclass(frozen=True)
class Published:
    """A result as its paper printed it, never one of ours: top-1 accuracy in percent, or what `metric` says.

    note: what sets it apart, such as another resolution, and where it was read if not in the paper.
    metric: of a result that is no accuracy, its measure, such as "perplexity"; `accuracy` is then its value.
    """

    dataset: str
    accuracy: float
    note: str = ""
    metric: str = TOP_1


@dataclass(frozen=True)
class Entry:
    """A registered model: its builder and class, one line of what it is, its paper, and the paper's results.

    config: the configuration without overrides, where it was registered as one (`default_config` knows all).
    """

    build: Callable[..., nn.Module]
    kind: type[nn.Module]
    says: str
    paper: str = ""
    published: tuple[Published, ...] = ()
    config: Any = None


_MODELS: dict[str, Entry] = {}


def register(function: F) -> F:
    """Register a model under the name of the function that builds it; its docstring's first line is what it is.

    Raises:
        ValueError: the name is taken.
        TypeError: the function does not say which class it returns.
    """
    kind = typing.get_type_hints(function).get("return")
    if not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        raise TypeError(f"Model {function.__name__!r}: annotate the class that it returns, got {kind!r}.")
    says = (function.__doc__ or "").strip().partition("\n")[0]
    _add(function.__name__, Entry(function, kind, says), function.__module__)
    return function


def register_variant(
    name: str,
    kind: type[Any],
    config: Any,
    says: str,
    *,
    paper: str,
    published: Sequence[Published] = (),
) -> None:
    """Register `kind(config)` under a name; overrides replace fields of `config`.

    Raises:
        ValueError: the name is taken.
    """

    def build(**overrides: Any) -> nn.Module:
        model: nn.Module = kind(configure(config, overrides))
        return model

    _add(name, Entry(build, kind, says, paper, tuple(published), config), kind.__module__)


def _add(name: str, entry: Entry, where: str) -> None:
    if name in _MODELS:
        first = _MODELS[name].kind.__module__
        raise ValueError(f"Model {name!r} of {where} is already registered by {first}. Rename one.")
    _MODELS[name] = entry


def create_model(name: str, **overrides: Any) -> nn.Module:
    """Build a registered model; `overrides` replace fields of its configuration.

    Raises:
        ValueError: no such model (the three nearest names are given), or no such field.
    """
    return describe(name).build(**overrides)


def describe(name: str) -> Entry:
    """What is registered under a name.

    Raises:
        ValueError: no such model (the three nearest names are given).
    """
    if name not in _MODELS:
        raise ValueError(
            f"There is no model {name!r}{nearest(name, _MODELS)}. list_models() gives all {len(_MODELS)} names."
        )
    return _MODELS[name]


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


def default_config(name: str) -> Any:
    """The configuration that `create_model(name)` has without overrides.

    Raises:
        ValueError: no such model.
    """
    entry = describe(name)
    if entry.config is not None:
        return entry.config
    with torch.device("meta"):  # without memory
        return entry.build().config


def name_of(model: nn.Module) -> str:
    """The registered name of a model: of those of its class, the one from which the fewest fields were overridden.

    Raises:
        ValueError: no model of its class is registered.
    """
    names = [name for name, entry in _MODELS.items() if entry.kind is type(model)]
    if not names:
        kinds = sorted({entry.kind.__name__ for entry in _MODELS.values()})
        raise ValueError(
            f"{type(model).__name__} is no registered model; expected one of {', '.join(kinds)}, without a wrapper "
            "such as that of torch.compile (model._orig_mod) or DistributedDataParallel (model.module). A class of "
            "your own is registered by spikeloom.models.register."
        )
    given = model_config(model)

    def overridden(name: str) -> int:
        default = to_json(default_config(name))
        return sum(default[field] != value for field, value in given.items())

    return min(sorted(names), key=overridden)
