"""Frozen dataclasses as JSON and back, checked on the way in: the form of every model configuration and recipe."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

C = TypeVar("C")


def to_json(config: Any) -> dict[str, Any]:
    """A dataclass as plain dicts, lists, strings and numbers."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_json(cls: type[C], data: Mapping[str, Any], where: str = "") -> C:
    """Build a dataclass from what `to_json` gave; fields that are absent keep their defaults.

    where: the place in a larger structure, for messages.

    Raises:
        ValueError: an unknown field (the nearest names are given), or a value of another type.
    """
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    place = where or cls.__name__
    for name in data:
        if name not in names:
            raise ValueError(f"{place} has no field {name!r}{nearest(name, names)}; its fields are {', '.join(names)}.")
    return cls(**{name: _convert(hints[name], value, f"{place}.{name}") for name, value in data.items()})


def configure(defaults: C, overrides: Mapping[str, Any]) -> C:
    """`defaults` with some fields replaced; lists become tuples where the field is one.

    Raises:
        ValueError: as `from_json`.
    """
    fields = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(defaults)}  # type: ignore[arg-type]
    return from_json(type(defaults), {**fields, **overrides})


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """` (nearest: a, b, c)`, the known names most like `name`."""
    near = difflib.get_close_matches(name, list(known), n=count, cutoff=0.0)
    return f" (nearest: {', '.join(near)})" if near else ""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, or ValueError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _convert(arguments[0], value, where)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is Literal:
        return _demand(value in arguments, value, where, f"one of {', '.join(map(repr, arguments))}")
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin is dict:
        _demand(isinstance(value, Mapping), value, where, "names with values")
        return {str(key): _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        _demand(isinstance(value, Mapping), value, where, f"the fields of {hint.__name__}")  # type: ignore[union-attr]
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    right = isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    return _demand(right, value, where, getattr(hint, "__name__", str(hint)))


def _convert_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    problem = ValueError(f"{where} is {value!r}; expected a value.")
    for choice in choices:
        if choice is not type(None):
            try:
                return _convert(choice, value, where)
            except ValueError as error:
                problem = error
    raise problem


def _convert_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _demand(isinstance(value, (list, tuple)), value, where, "a list")
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_convert(items[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    _demand(len(value) == len(items), value, where, f"{len(items)} values")
    return tuple(_convert(h, item, f"{where}[{i}]") for i, (h, item) in enumerate(zip(items, value, strict=True)))


def _demand(right: bool, value: Any, where: str, wanted: str) -> Any:
    if not right:
        raise ValueError(f"{where} is {value!r}; expected {wanted}.")
    return value
