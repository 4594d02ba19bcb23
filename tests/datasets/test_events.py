"""The event layout: what is let in, how it is normalised, and what the errors name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import spikeloom.datasets
from spikeloom.datasets import Events


def small(**changes: Any) -> Events:
    columns: dict[str, Any] = {"t": [0, 5, 9], "x": [0, 6, 3], "y": [4, 0, 2], "p": [1, 0, 1], "height": 5, "width": 7}
    return Events.from_arrays(**columns | changes)


POLARITIES = [np.dtype(name) for name in ("bool", "uint8", "int8", "uint16", "int16", "int64", "float32", ">i4")]


@pytest.mark.parametrize("dtype", POLARITIES, ids=str)
def test_zero_one_polarity_of_every_dtype(dtype: np.dtype[Any]) -> None:
    assert small(p=np.array([1, 0, 1], dtype=dtype)).p.tolist() == [1, 0, 1]


@pytest.mark.parametrize("dtype", ["int8", "int64", "float32"])
def test_signed_polarity_of_every_dtype(dtype: str) -> None:
    assert small(p=np.array([1, -1, 1], dtype=dtype)).p.tolist() == [1, 0, 1]
    assert small(p=torch.tensor([-1, -1, -1])).p.tolist() == [0, 0, 0]


@pytest.mark.parametrize("p", [[-1, 0, 1], [0, 2, 1], np.array([1, 255, 1], dtype=np.uint8)], ids=str)
def test_ambiguous_polarity_is_refused(p: Any) -> None:
    with pytest.raises(ValueError, match="polarity"):
        small(p=p)


def test_dtypes_are_the_layouts() -> None:
    events = small()
    assert [c.dtype for c in (events.t, events.x, events.y, events.p)] == [
        torch.int64,
        torch.int16,
        torch.int16,
        torch.uint8,
    ]


def test_unsorted_events_are_sorted_stably_with_their_columns() -> None:
    events = small(t=[9, 0, 0])
    assert (events.t.tolist(), events.x.tolist(), events.y.tolist()) == ([0, 0, 9], [6, 3, 0], [0, 2, 4])
    assert events.p.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": [0, 7, 8]}, "Event 1 of 3 is at x=7, y=0, outside .* height 5 x width 7 .2 events are."),
        ({"y": [4, 0, 5]}, "Event 2 of 3 is at x=3, y=5"),
        ({"x": [0, 6, -1]}, "Event 2 of 3 is at x=-1"),
        ({"x": [65536, 0, 0]}, "Event 0 of 3 is at x=65536"),  # 0 if it were narrowed to int16 first
        ({"t": [-3, 0, 1]}, "Event 0 has time -3 us"),
        ({"t": [0, 1]}, "one length"),
        ({"t": [[0, 1, 2]]}, "one-dimensional"),
        ({"t": [0.0, 0.5, 1.0]}, "t holds 0.5; .* multiply seconds by 1e6"),
        ({"t": [0.0, float("nan"), 1.0]}, "t holds nan"),
        ({"height": 0}, "Sensor size is height 0"),
    ],
)
def test_bad_values_name_the_first_offender(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_constructor_refuses_other_dtypes_and_disorder() -> None:
    good = small()
    with pytest.raises(TypeError, match=r"Column p is torch.bool.*from_arrays"):
        Events(good.t, good.x, good.y, good.p.bool(), 5, 7)
    with pytest.raises(ValueError, match="Event 1 is at 5 us, before event 0 at 9 us"):
        Events(good.t.flip(0), good.x, good.y, good.p, 5, 7)
    with pytest.raises(ValueError, match="Event 1 has polarity 3"):
        Events(good.t, good.x, good.y, torch.tensor([0, 3, 1], dtype=torch.uint8), 5, 7)
    with pytest.raises(TypeError, match="dtype <U1"):
        small(t=["a", "b", "c"])


def test_structured_arrays_of_any_field_order_and_dtype_round_trip() -> None:
    array = np.zeros(3, dtype=[("p", "?"), ("t", ">u4"), ("y", "u1"), ("x", "<u2")])
    array["t"], array["x"], array["y"], array["p"] = [0, 5, 9], [0, 6, 3], [4, 0, 2], [1, 0, 1]
    events = Events.from_structured(array, 5, 7)
    assert torch.equal(events.t, small().t)
    assert torch.equal(events.p, small().p)
    back = events.to_structured()
    assert back.dtype.names == ("x", "y", "t", "p")
    assert back["p"].dtype == np.bool_
    for name in back.dtype.names:
        assert back[name].tolist() == array[name].tolist()


@pytest.mark.parametrize("missing", ["x", "y", "t", "p"])
def test_each_missing_field_is_noticed(missing: str) -> None:
    fields = [(name, "i4") for name in "xytp" if name != missing]
    with pytest.raises(ValueError, match=re.escape(f"missing ['{missing}']")):
        Events.from_structured(np.zeros(2, dtype=fields), 5, 7)


def test_narrow_columns_stay_narrow_and_share_nothing() -> None:
    x, y, p = np.array([255, 3], np.uint8), np.array([299, 0], np.int16), np.array([1, 0], np.uint8)
    events = Events.from_arrays(np.array([7, 9], np.uint8), x, y, p, 300, 256)
    x[0], y[0], p[0] = 0, 0, 0
    assert (events.x.tolist(), events.y.tolist(), events.p.tolist()) == ([255, 3], [299, 0], [1, 0])
    assert (events.t.dtype, events.x.dtype, events.p.dtype) == (torch.int64, torch.int16, torch.uint8)
    with pytest.raises(ValueError, match=r"Event 1 of 2 is at x=0, y=200, outside .* height 200 x width 30000"):
        Events.from_arrays([0, 1], [0, 0], np.array([0, 200], np.uint8), [0, 1], 200, 30_000)
    with pytest.raises(ValueError, match="polarity 2"):
        Events.from_arrays([0], [0], [0], np.array([2], np.uint8), 5, 5)


def test_time_slices_put_end_to_end_are_the_whole() -> None:
    events = small(t=[0, 5, 5])
    parts = [events.time_slice(0, 5), events.time_slice(5, 6)]
    assert [part.t.tolist() for part in parts] == [[0], [5, 5]]
    assert len(events.time_slice(1, 5)) == 0
    assert len(events) == 3
    with pytest.raises(ValueError, match="expected start_us <= end_us"):
        events.time_slice(5, 1)


def test_slices_and_masks_keep_the_columns_together() -> None:
    events = small()
    assert events[1:].x.tolist() == [6, 3]
    assert events[events.p == 1].y.tolist() == [4, 2]


def test_empty_recording_is_valid() -> None:
    assert len(small(t=[], x=[], y=[], p=[])) == 0


def test_import_under_the_bare_name_is_refused() -> None:
    source = spikeloom.datasets.__file__
    with open(source) as file, pytest.raises(ModuleNotFoundError, match=r"spikeloom\.datasets"):
        exec(compile(file.read(), source, "exec"), {"__name__": "datasets"})
