"""Dataclasses as JSON and back."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from spikeloom.models.config import configure, from_json, to_json


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    pair: tuple[float, int] = (0.5, 1)


@dataclass(frozen=True)
class Outer:
    name: str = "a"
    kind: Literal["x", "y"] = "x"
    on: bool = False
    count: int | None = None
    inner: Inner = field(default_factory=Inner)
    extra: dict[str, Any] = field(default_factory=dict)


FULL = Outer("b", "y", True, 3, Inner(2.0, (4,), (1.5, 2)), {"widths": [1, 2]})


@pytest.mark.parametrize("config", [Outer(), FULL])
def test_round_trip_through_text(config: Outer) -> None:
    assert from_json(Outer, json.loads(json.dumps(to_json(config)))) == config


def test_absent_fields_keep_their_defaults() -> None:
    assert from_json(Outer, {"inner": {"sizes": [7]}}) == Outer(inner=Inner(sizes=(7,)))


def test_a_whole_number_serves_as_float() -> None:
    rate = from_json(Inner, {"rate": 2}).rate
    assert rate == 2.0
    assert isinstance(rate, float)


def test_configure_replaces_fields() -> None:
    assert configure(FULL, {"inner": {"rate": 1.0}, "count": None}) == Outer(
        "b", "y", True, None, Inner(1.0), FULL.extra
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"nam": "b"}, r"Outer has no field 'nam' \(nearest: name, "),
        ({"name": 3}, "Outer.name is 3; expected str"),
        ({"kind": "z"}, "Outer.kind is 'z'; expected one of 'x', 'y'"),
        ({"on": 1}, "Outer.on is 1; expected bool"),
        ({"count": True}, "Outer.count is True; expected int"),
        ({"count": "3"}, "Outer.count is '3'; expected int"),
        ({"inner": 3}, "Outer.inner is 3; expected the fields of Inner"),
        ({"inner": {"rate": "high"}}, "Outer.inner.rate is 'high'; expected float"),
        ({"inner": {"sizes": [1, 2.5]}}, r"Outer.inner.sizes\[1\] is 2.5; expected int"),
        ({"inner": {"sizes": 3}}, "Outer.inner.sizes is 3; expected a list"),
        ({"inner": {"pair": [1]}}, r"Outer.inner.pair is \[1\]; expected 2 values"),
        ({"extra": []}, r"Outer.extra is \[\]; expected names with values"),
    ],
)
def test_wrong_values_are_named_with_their_place(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Outer, data)
