"""Binning: nothing is lost, nothing wraps round, every device counts alike."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spikeloom.datasets import (
    Events,
    PackedEvents,
    collate,
    frames_by_count,
    frames_by_time,
    frames_by_window,
    time_surface,
    to_binary,
    voxel_grid,
)

BINNINGS = {
    "time": frames_by_time,
    "time_to_end": partial(frames_by_time, end_us=10_000),
    "window": partial(frames_by_window, window_us=1_500),
    "count": frames_by_count,
    "events_per_frame": partial(frames_by_count, events_per_frame=50),
}
every_binning = pytest.mark.parametrize("binning", BINNINGS.values(), ids=BINNINGS)


def at(times: list[int], p: Any = 1, x: int = 3, y: int = 2) -> Events:
    """Events of one pixel of a 5 x 7 sensor."""
    n = len(times)
    return Events.from_arrays(times, [x] * n, [y] * n, np.broadcast_to(p, n).copy(), 5, 7)


def brute_force(events: Events, bins: list[int], T: int) -> Tensor:
    frames = torch.zeros(T, 2, events.height, events.width, dtype=torch.int32)
    for k, x, y, p in zip(bins, events.x.tolist(), events.y.tolist(), events.p.tolist(), strict=True):
        if 0 <= k < T:
            frames[k, p, y, x] += 1
    return frames


@every_binning
def test_no_event_is_lost(make_packed: Any, binning: Any) -> None:
    packed = make_packed(307, 0, 1, 200)
    frames = binning(packed, 7)
    assert frames.shape == (7, 4, 2, 5, 7)
    assert frames.dtype == torch.int32
    assert frames.sum(dim=(0, 2, 3, 4)).tolist() == [307, 0, 1, 200]
    on = [int(events.p.sum()) for events in packed]
    assert frames[:, :, 1].sum(dim=(0, 2, 3)).tolist() == on


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 10**12), max_size=40), st.integers(1, 20))
def test_any_times_are_conserved(times: list[int], T: int) -> None:
    events = at(times)
    assert frames_by_time(events, T).sum() == frames_by_count(events, T).sum() == len(times)
    assert voxel_grid(events, T).sum().item() == pytest.approx(len(times))  # float32 sum of 2^-20 units


@every_binning
def test_batch_is_the_stack_of_its_recordings(make_packed: Any, binning: Any) -> None:
    packed = make_packed(120, 0, 33)
    batch = binning(packed, 4)
    assert torch.equal(batch, torch.stack([binning(events, 4) for events in packed], dim=1))
    assert torch.equal(batch, binning(list(packed), 4))


def test_bins_equal_a_loop_over_events(make_packed: Any) -> None:
    events = make_packed(300)[0]
    t, T = events.t.tolist(), 6
    last = t[-1]
    by_time = brute_force(events, [min(k * T // last, T - 1) for k in t], T)
    assert torch.equal(frames_by_time(events, T), by_time)
    part = [min((k - 2_000) * T // 6_000, T - 1) if 2_000 <= k <= 8_000 else -1 for k in t]
    assert torch.equal(frames_by_time(events, T, start_us=2_000, end_us=8_000), brute_force(events, part, T))
    assert torch.equal(frames_by_window(events, T, 700), brute_force(events, [k // 700 for k in t], T))
    assert torch.equal(frames_by_count(events, T), brute_force(events, [i * T // 300 for i in range(300)], T))
    per_frame = brute_force(events, [i // 40 for i in range(300)], T)
    assert torch.equal(frames_by_count(events, T, events_per_frame=40), per_frame)
    assert per_frame.sum() == 240  # the last 60 do not fit in six frames of 40


def test_one_pixel_counts_past_int16() -> None:
    frames = frames_by_time(at([1] * 40_000), 2)
    assert frames.max() == 40_000
    assert frames.sum() == 40_000


@every_binning
def test_single_event_is_counted(binning: Any) -> None:
    for time in (0, 1, 6_000):
        frames = binning(at([time]), 5)
        assert frames.shape == (5, 2, 5, 7)
        assert frames.sum() == 1
        assert frames[:, 1, 2, 3].sum() == 1


@every_binning
def test_empty_recording_gives_zeros_of_the_usual_shape_and_dtype(binning: Any) -> None:
    frames = binning(at([]), 5)
    assert frames.shape == (5, 2, 5, 7)
    assert frames.dtype == torch.int32
    assert frames.sum() == 0


def test_last_event_is_in_the_last_bin_and_bins_start_at_zero() -> None:
    events = at([4_000, 9_999, 10_000])
    assert frames_by_time(events, 5).sum(dim=(1, 2, 3)).tolist() == [0, 0, 1, 0, 2]
    assert frames_by_window(events, 5, 4_000).sum(dim=(1, 2, 3)).tolist() == [0, 1, 2, 0, 0]
    assert frames_by_window(events, 2, 4_000).sum(dim=(1, 2, 3)).tolist() == [0, 1]  # cropped at T


def test_events_far_beyond_the_last_bin_cost_no_memory() -> None:
    assert frames_by_window(at([0, 10**15]), 2, 1).sum() == 1
    assert frames_by_count(at([0, 1, 10**15]), 2, events_per_frame=1).sum() == 2


def test_channel_0_is_off_and_channel_1_is_on() -> None:
    frames = frames_by_time(at([0, 1, 2], p=[-1, -1, 1]), 1)
    assert frames[0, :, 2, 3].tolist() == [2, 1]


@pytest.mark.parametrize(
    "p", [[True, False, False], np.array([1, 0, 0], np.uint8), [1, -1, -1], [1.0, 0.0, 0.0]], ids=str
)
def test_voxels_are_signed_for_every_polarity_dtype(p: Any) -> None:
    assert voxel_grid(at([0, 50, 100], p=p), 3)[:, 0, 2, 3].tolist() == [1.0, -1.0, -1.0]


def test_voxels_share_an_event_between_two_instants() -> None:
    grid = voxel_grid(at([0, 25, 100]), 3)  # instants at 0, 50, 100 us
    assert grid.shape == (3, 1, 5, 7)
    assert grid.dtype == torch.float32
    assert grid[:, 0, 2, 3].tolist() == [1.5, 0.5, 1.0]
    assert voxel_grid(at([0, 25, 100]), 3, start_us=25, end_us=125)[:, 0, 2, 3].tolist() == [1.0, 0.5, 0.5]


def test_voxels_of_one_instant_are_finite() -> None:
    for time in (0, 77):
        grid = voxel_grid(at([time] * 4), 5)
        assert grid.isfinite().all()
        assert grid.sum() == 4
    assert voxel_grid(at([77]), 1).sum() == 1
    assert voxel_grid(at([]), 4).sum() == 0


def test_voxels_of_a_batch_balance(make_packed: Any) -> None:
    packed = make_packed(500, 0, 41)
    grid = voxel_grid(packed, 9)
    balance = [float(2 * events.p.sum() - len(events)) for events in packed]
    assert grid.shape == (9, 3, 1, 5, 7)
    assert grid.sum(dim=(0, 2, 3, 4), dtype=torch.float64).tolist() == pytest.approx(balance)
    assert torch.equal(grid, torch.stack([voxel_grid(events, 9) for events in packed], dim=1))


def test_binary_frames() -> None:
    frames = to_binary(frames_by_time(at([0, 0, 10]), 2))
    assert frames.dtype == torch.float32
    assert frames[:, 1, 2, 3].tolist() == [1.0, 1.0]
    assert frames.sum() == 2


def test_collate_makes_a_batch() -> None:
    frames, labels = collate([(at([1, 2]), 4), (at([3]), 9)], partial(frames_by_time, T=3, end_us=10))
    assert frames.shape == (3, 2, 2, 5, 7)
    assert frames.sum(dim=(0, 2, 3, 4)).tolist() == [2, 1]
    assert labels.tolist() == [4, 9]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: frames_by_time(e, 0), "T is 0"),
        (lambda e: frames_by_time(e, 4, start_us=9, end_us=9), "expected start_us < end_us"),
        (lambda e: frames_by_window(e, 4, 0), "window_us is 0"),
        (lambda e: frames_by_count(e, 4, events_per_frame=0), "events_per_frame is 0"),
        (lambda e: frames_by_time(at([2**60]), 4), "set start_us"),
    ],
)
def test_bad_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(at([1, 2]))


@pytest.mark.parametrize("kind", [np.int64, torch.tensor], ids=["numpy", "tensor"])
def test_whole_numbers_of_numpy_and_tensors_are_taken(make_packed: Any, kind: Any) -> None:
    """As from `events.t[0]`, whose address a compiled loop must not take for a time."""
    events = make_packed(300)[0]
    start, end = int(events.t[20]), int(events.t[-20])
    for binning in (frames_by_time, voxel_grid, partial(time_surface, tau_us=2_000.0)):
        given = binning(events, kind(6), start_us=kind(start), end_us=kind(end))
        assert torch.equal(given, binning(events, 6, start_us=start, end_us=end))
    assert torch.equal(frames_by_window(events, kind(6), kind(700)), frames_by_window(events, 6, 700))
    assert torch.equal(
        frames_by_count(events, kind(6), events_per_frame=kind(40)), frames_by_count(events, 6, events_per_frame=40)
    )


def test_a_number_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^window_us is 9223372036854775808; expected a whole number of 64 bits"):
        frames_by_window(at([1, 2]), 2, 2**63)


@pytest.mark.parametrize("most", [2**61, 2**62, 2**63 - 1])
def test_a_frame_may_be_larger_than_any_recording(make_packed: Any, most: int) -> None:
    frames = frames_by_count(make_packed(20, 0, 3), 4, events_per_frame=most)
    assert frames.sum((2, 3, 4)).tolist() == [[20, 0, 3], [0] * 3, [0] * 3, [0] * 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("binning", [*BINNINGS.values(), voxel_grid], ids=[*BINNINGS, "voxel"])
def test_gpu_counts_as_cpu_does(make_packed: Any, binning: Any) -> None:
    packed: PackedEvents = make_packed(5_000, 0, 1, 800)
    on_gpu = binning(packed.to("cuda"), 6)
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), binning(packed, 6))
    assert torch.equal(on_gpu, binning(packed.to("cuda"), 6))
    assert torch.equal(binning(packed[0].to("cuda"), 6).cpu(), binning(packed[0], 6))


@pytest.mark.parametrize("count", [0, 3, 30_000])
def test_memory_that_was_used_before_is_set_to_0(count: int) -> None:
    """Each frame is cleared when its turn comes, also where no event falls into it."""
    draw = np.random.default_rng(0)
    t = np.sort(draw.integers(0, 1000, count))
    x, y, p = draw.integers(0, 128, count), draw.integers(0, 96, count), draw.integers(0, 2, count)
    events = Events.from_arrays(t, x, y, p, 96, 128)
    expected = np.zeros((40, 2, 96, 128), np.int32)
    np.add.at(expected, (np.minimum(t * 40 // 1000, 39), p, y, x), 1)
    for _ in range(4):
        used = np.full((40, 2, 96, 128), 7, np.int32)
        del used
        assert np.array_equal(frames_by_time(events, 40, end_us=1000).numpy(), expected)
