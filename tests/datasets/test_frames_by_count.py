"""Frames of equal event counts with the remainder in the last: SpikingJelly's split_by="number"."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.datasets import Events, PackedEvents, frames_by_count


def theirs(events: Events, T: int) -> Tensor:
    utils = pytest.importorskip("spikingjelly.datasets.utils")
    columns = {name: getattr(events, name).numpy() for name in ("t", "x", "y", "p")}
    frames = utils.integrate_events_by_fixed_frames_number(columns, "number", T, events.height, events.width)
    return torch.from_numpy(frames)


@pytest.mark.parametrize("T", [1, 4, 10, 16])
def test_equal_to_spikingjelly(make_packed: Any, T: int) -> None:
    packed: PackedEvents = make_packed(200, 163, 16, 15, 9, 1, 0, 77)
    frames = frames_by_count(packed, T, remainder="last")
    assert frames.shape == (T, 8, 2, 5, 7)
    for number, events in enumerate(packed):
        assert torch.equal(frames[:, number].double(), theirs(events, T)), number
        assert torch.equal(frames[:, number], frames_by_count(events, T, remainder="last"))


def test_the_last_frame_takes_the_rest_and_nothing_is_lost(make_packed: Any) -> None:
    frames = frames_by_count(make_packed(23, 3, 0), 5, remainder="last")
    assert frames.sum((2, 3, 4)).T.tolist() == [[4, 4, 4, 4, 7], [0, 0, 0, 0, 3], [0, 0, 0, 0, 0]]
    spread = frames_by_count(make_packed(23, 3, 0), 5)
    assert spread.sum((2, 3, 4)).T.tolist()[0] == [5, 5, 4, 5, 4]


def test_both_remainders_agree_where_there_is_none(make_packed: Any) -> None:
    packed = make_packed(40, 80)
    assert torch.equal(frames_by_count(packed, 8), frames_by_count(packed, 8, remainder="last"))


def test_bad_remainders_are_refused(make_packed: Any) -> None:
    with pytest.raises(ValueError, match="remainder is 'first'"):
        frames_by_count(make_packed(4), 2, remainder="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no remainder to place"):
        frames_by_count(make_packed(4), 2, events_per_frame=2, remainder="last")
