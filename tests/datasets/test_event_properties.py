"""Properties of binning, transforms and filters, on recordings that hypothesis makes: empty ones, ties, every dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spikeloom import datasets as d
from spikeloom.datasets import Events, PackedEvents, event_filters, frames
from spikeloom.kernels.events import cpu, reference

QUICK = settings(max_examples=40, deadline=None)
DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


@st.composite
def recording(draw: st.DrawFn, height: int = 6, width: int = 9) -> Events:
    count = draw(st.integers(0, 50))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = draw(st.sampled_from([1, 5, 1000, 10**9]))
    t = np.sort(rng.integers(0, most, count))
    p = rng.integers(0, 2, count)
    return Events.from_arrays(t, rng.integers(0, width, count), rng.integers(0, height, count), p, height, width)


batches = st.lists(recording(), min_size=1, max_size=4).map(PackedEvents.from_events)
seeds = st.integers(0, 2**62)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CHANGES: dict[str, Callable[[Any, torch.Generator], Any]] = {
    "crop": lambda e, g: d.crop(e, 1, 2, 4, 5),
    "random_crop_events": lambda e, g: d.random_crop_events(e, 4, 5, g),
    "random_roll": lambda e, g: d.random_roll(e, 20, g),
    "spatial_jitter": lambda e, g: d.spatial_jitter(e, 2, g),
    "polarity_jitter": lambda e, g: d.polarity_jitter(e, 0.5, g),
    "drop_time": lambda e, g: d.drop_time(e, 0.7, g),
    "drop_area": lambda e, g: d.drop_area(e, 0.7, g),
    "nda": lambda e, g: d.nda(e, g),
    "time_jitter": lambda e, g: d.time_jitter(e, 50.0, g),
    "random_drop": lambda e, g: d.random_drop(e, 0.5, g),
    "random_flip": lambda e, g: d.random_flip(e, g),
    "random_polarity_flip": lambda e, g: d.random_polarity_flip(e, g),
    "random_rotation": lambda e, g: d.random_rotation(e, 40.0, g),
    "random_shift": lambda e, g: d.random_shift(e, 3, g),
    "refractory_filter": lambda e, g: d.refractory_filter(e, 20),
    "background_filter": lambda e, g: d.background_filter(e, 20),
}
KEEPS_ALL = ("random_roll", "polarity_jitter", "time_jitter", "random_flip", "random_polarity_flip")


@pytest.mark.parametrize("name", CHANGES)
@QUICK
@given(packed=batches, seed=seeds)
def test_changes_keep_the_layout(name: str, packed: PackedEvents, seed: int) -> None:
    changed = CHANGES[name](packed, generator(seed))
    # whole check of dtypes, bounds and order, which a fast path may have left out
    columns = (changed.t, changed.x, changed.y, changed.p, changed.offsets)
    PackedEvents(*columns, changed.height, changed.width, changed.labels)
    assert len(changed) == len(packed)
    assert bool((changed.lengths <= packed.lengths).all())
    if name in KEEPS_ALL:
        assert changed.lengths.tolist() == packed.lengths.tolist()
    again = CHANGES[name](packed, generator(seed))
    assert all(torch.equal(a, getattr(again, n)) for a, n in zip(columns, ("t", "x", "y", "p", "offsets"), strict=True))


@pytest.mark.parametrize("name", CHANGES)
@QUICK
@given(events=recording(), seed=seeds)
def test_one_recording_is_a_batch_of_one(name: str, events: Events, seed: int) -> None:
    alone = CHANGES[name](events, generator(seed))
    packed = CHANGES[name](PackedEvents.from_events([events]), generator(seed))[0]
    assert all(torch.equal(getattr(alone, n), getattr(packed, n)) for n in "txyp")
    assert (alone.height, alone.width) == (packed.height, packed.width)


@QUICK
@given(packed=batches, T=st.integers(1, 7), window=st.integers(1, 2000), per=st.integers(1, 9))
def test_the_compiled_count_is_the_reference(packed: PackedEvents, T: int, window: int, per: int) -> None:
    calls: list[Callable[[], Tensor]] = [
        lambda: d.frames_by_time(packed, T),
        lambda: d.frames_by_time(packed, T, start_us=3, end_us=3 + window),
        lambda: d.frames_by_window(packed, T, window),
        lambda: d.frames_by_count(packed, T),
        lambda: d.frames_by_count(packed, T, remainder="last"),
        lambda: d.frames_by_count(packed, T, events_per_frame=per),
    ]
    fast = [call() for call in calls]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "choose", lambda *_: "reference")
        slow = [call() for call in calls]
    assert all(torch.equal(a, b) for a, b in zip(fast, slow, strict=True))
    for whole in (fast[0], fast[3], fast[4]):
        assert whole.sum((0, 2, 3, 4)).tolist() == packed.lengths.tolist()


@QUICK
@given(events=recording(), time=st.sampled_from([0, 1, 3, 50, 10**6]))
@pytest.mark.parametrize("name", ["refractory", "background"])
def test_filters_do_what_they_say(name: str, events: Events, time: int) -> None:
    expected = []
    last: dict[tuple[int, int], int] = {}
    for t, x, y in zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), strict=True):
        if name == "refractory":
            kept = (x, y) not in last or t - last[x, y] >= time
            last[x, y] = t if kept else last[x, y]
        else:
            near = [(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
            kept = any(place in last and t - last[place] <= time for place in near)
            last[x, y] = t
        expected.append(kept)
    given_ = (events.t, events.x, events.y, torch.tensor([0, len(events)]), time, events.height, events.width)
    for kernels in (cpu, reference):
        assert getattr(kernels, name)(*given_).tolist() == expected


@QUICK
@given(packed=batches)
def test_filters_look_at_one_recording_only(packed: PackedEvents) -> None:
    for change in (event_filters.refractory_filter, event_filters.background_filter):
        whole = change(packed, 100)
        for index, events in enumerate(packed):
            assert whole[index].t.tolist() == change(events, 100).t.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@QUICK
@given(events=recording())
def test_every_dtype_counts_the_same(dtype: str, events: Events) -> None:
    p = events.p.numpy().astype(dtype)
    wide = "float64" if dtype.startswith("float") else "int64" if dtype in ("bool", "int8", "uint8") else dtype
    t = (events.t % 10_000).sort().values
    columns = (t.numpy().astype(wide), events.x.numpy().astype(wide), events.y.numpy().astype(wide), p)
    counted = d.frames_by_time(Events.from_arrays(*columns, 6, 9), 3)
    expected = d.frames_by_time(Events(t, events.x, events.y, events.p, 6, 9), 3)
    assert torch.equal(counted, expected)
    signed = p.astype("int64") * 2 - 1
    assert torch.equal(d.frames_by_time(Events.from_arrays(*columns[:3], signed, 6, 9), 3), expected)


@QUICK
@given(events=recording(), T=st.integers(1, 5))
def test_voxels_add_up(events: Events, T: int) -> None:
    total = float((events.p.double() * 2 - 1).sum())
    assert abs(float(d.voxel_grid(events, T).double().sum()) - total) < 1e-3


@QUICK
@given(events=recording(), T=st.integers(1, 5), tau=st.sampled_from([1.0, 300.0, 1e7]))
def test_time_surface_by_hand(events: Events, T: int, tau: float) -> None:
    surface = d.time_surface(events, T, tau)
    end = max(1, int(events.t[-1]) if len(events) else 0)
    expected = torch.zeros((T, 2, events.height, events.width), dtype=torch.float64)
    for k in range(T):
        instant = -(-((k + 1) * end) // T)
        for t, x, y, p in zip(*(getattr(events, n).tolist() for n in "txyp"), strict=True):
            if t <= instant:
                expected[k, p, y, x] = np.exp(-(instant - t) / tau)
    torch.testing.assert_close(surface, expected.float())


@QUICK
@given(first=recording(), second=recording(), seed=seeds)
def test_mixing_takes_events_of_both(first: Events, second: Events, seed: int) -> None:
    mixed, weight = d.event_mix(first, second, generator(seed))
    assert 0 <= weight <= 1
    assert len(mixed) <= len(first) + len(second)
    for source in (first, second):
        assert torch.equal(source.t.sort().values, source.t)
    rows = {tuple(row) for e in (first, second) for row in zip(*_columns(e), strict=True)}
    assert {tuple(row) for row in zip(*_columns(mixed, False), strict=True)} <= rows
    again, same = d.event_mix(first, second, generator(seed))
    assert (same, again.t.tolist()) == (weight, mixed.t.tolist())


def test_mixing_weights_follow_the_mask() -> None:
    rng = np.random.default_rng(0)
    made = [
        Events.from_arrays(
            np.sort(rng.integers(0, 10**5, 5000)), *rng.integers(0, 64, (2, 5000)), np.full(5000, p), 64, 64
        )
        for p in (1, 0)
    ]
    for seed in range(5):
        mixed, weight = d.event_mix(made[0], made[1], generator(seed))
        assert weight == pytest.approx(float(mixed.p.float().mean()))
        assert 4000 < len(mixed) < 6000  # what one loses the other gives


def _columns(events: Events, rebased: bool = True) -> list[list[int]]:
    t = events.t - events.t[:1] if rebased else events.t
    return [t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist()]
