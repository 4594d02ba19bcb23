"""Augmentation: each does what it says to every recording alone, and only the given generator decides."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from spikeloom.datasets import (
    Events,
    PackedEvents,
    flip_frames,
    frames_by_time,
    random_drop,
    random_flip,
    random_polarity_flip,
    random_rotation,
    random_shift,
    shift_frames,
    time_jitter,
)

EVENT_CHANGES = {
    "shift": lambda e, g: random_shift(e, 2, g),
    "rotation": lambda e, g: random_rotation(e, 30.0, g),
    "flip": random_flip,
    "polarity": random_polarity_flip,
    "drop": lambda e, g: random_drop(e, 0.6, g),
    "jitter": lambda e, g: time_jitter(e, 500.0, g),
}
every_change = pytest.mark.parametrize("change", EVENT_CHANGES.values(), ids=EVENT_CHANGES)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: PackedEvents | Events, b: PackedEvents | Events) -> bool:
    return len(a) == len(b) and all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("t", "x", "y", "p"))


@every_change
def test_only_the_given_generator_decides(make_packed: Any, change: Any) -> None:
    packed = make_packed(60, 0, 40, 50, 30)
    torch.manual_seed(1)
    first = change(packed, seeded(3))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert same(first, change(packed, seeded(3)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert any(not same(first, change(packed, seeded(seed))) for seed in range(4, 9))


@every_change
def test_recordings_labels_and_sensor_stay(make_packed: Any, change: Any) -> None:
    packed = make_packed(60, 0, 40)
    changed = change(packed, seeded(3))  # the constructor checks the ranges and the order of time
    assert len(changed) == 3
    assert torch.equal(changed.labels, packed.labels)
    assert (changed.height, changed.width) == (5, 7)
    single = change(packed[0], seeded(3))
    assert isinstance(single, Events)
    assert len(single) <= 60


def test_shift_moves_each_recording_by_its_own_offset() -> None:
    spot = Events.from_arrays([0, 1], [3, 3], [2, 2], [0, 1], 5, 7)
    shifted = random_shift(PackedEvents.from_events([spot] * 200), 2, seeded(0))
    x, y = shifted.x.view(200, 2), shifted.y.view(200, 2)  # nothing can leave from the centre
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(y[:, 0], y[:, 1])
    assert set(x.flatten().tolist()) == {1, 2, 3, 4, 5}
    assert set(y.flatten().tolist()) == {0, 1, 2, 3, 4}


def test_shift_off_the_sensor_drops_events() -> None:
    corner = Events.from_arrays([0], [0], [0], [1], 5, 7)
    kept = random_shift(PackedEvents.from_events([corner] * 400), 1, seeded(0)).lengths.float().mean()
    assert 0.35 < kept < 0.54  # expected 4/9, six standard deviations of 400 draws below and four above


def test_rotation_by_nothing_is_the_identity_and_keeps_the_centre(make_packed: Any) -> None:
    packed = make_packed(60, 40)
    assert same(packed, random_rotation(packed, 0.0, seeded(0)))
    edge = Events.from_arrays([0, 1], [3, 6], [2, 2], [1, 1], 5, 7)  # the centre and the right edge
    turned = random_rotation(PackedEvents.from_events([edge] * 100), 20.0, seeded(0))
    centre, rim = turned.keep(turned.t == 0), turned.keep(turned.t == 1)
    assert set(zip(centre.x.tolist(), centre.y.tolist(), strict=True)) == {(3, 2)}
    assert set(rim.y.tolist()) == {1, 2, 3}
    assert set(rim.x.tolist()) == {6}


def test_flip_mirrors_columns(make_packed: Any) -> None:
    packed = make_packed(60, 40)
    mirrored = random_flip(packed, seeded(0), probability=1.0)
    assert torch.equal(mirrored.x, 6 - packed.x)
    assert torch.equal(mirrored.y, packed.y)
    assert same(packed, random_flip(packed, seeded(0), probability=0.0))


def test_polarity_flip_exchanges_the_channels(make_packed: Any) -> None:
    packed = make_packed(60, 40)
    flipped = random_polarity_flip(packed, seeded(0), probability=1.0)
    assert torch.equal(frames_by_time(flipped, 3), frames_by_time(packed, 3).flip(2))


def test_drop_rates_differ_between_recordings_and_stay_in_range(make_packed: Any) -> None:
    left = random_drop(make_packed(*[2_000] * 20), 0.5, seeded(0)).lengths / 2_000
    assert left.min() > 0.46
    assert left.max() < 1
    assert left.max() - left.min() > 0.2
    everything = make_packed(50)
    assert same(everything, random_drop(everything, 0.0, seeded(0)))


def test_jitter_moves_times_by_the_given_spread() -> None:
    n = 4_000
    events = Events.from_arrays([50_000] * n, [3] * n, [2] * n, [1] * n, 5, 7)
    jittered = time_jitter(events, 200.0, seeded(0))
    assert 190 < jittered.t.double().std() < 210
    assert abs(jittered.t.double().mean() - 50_000) < 15
    assert time_jitter(events[:5], 1e6, seeded(0)).t.min() >= 0


def test_jitter_keeps_each_event_whole(make_packed: Any) -> None:
    packed = make_packed(200, 0, 100)
    jittered = time_jitter(packed, 3_000.0, seeded(0))
    assert not torch.equal(jittered.t, packed.t)
    counts, before = (frames_by_time(p, 1, end_us=10**6) for p in (jittered, packed))
    assert torch.equal(counts, before)  # per recording, pixel and polarity


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float16, torch.bool])
def test_frame_shift_equals_a_loop(dtype: torch.dtype) -> None:
    frames = torch.randint(0, 2, (3, 40, 2, 5, 7), generator=seeded(1)).to(dtype)
    shifted = shift_frames(frames, 2, seeded(5))
    dx, dy = torch.randint(-2, 3, (2, 40), generator=seeded(5)).tolist()
    expected = torch.zeros_like(frames)
    for b in range(40):
        for y in range(5):
            for x in range(7):
                if 0 <= y - dy[b] < 5 and 0 <= x - dx[b] < 7:
                    expected[:, b, :, y, x] = frames[:, b, :, y - dy[b], x - dx[b]]
    assert torch.equal(shifted, expected)
    assert shifted.dtype == dtype


def test_frame_flip_is_per_sample() -> None:
    frames = torch.rand(3, 40, 2, 5, 7, generator=seeded(1))
    flipped = flip_frames(frames, seeded(5))
    mirrored = [torch.equal(flipped[:, b], frames[:, b].flip(3)) for b in range(40)]
    untouched = [torch.equal(flipped[:, b], frames[:, b]) for b in range(40)]
    assert all(a != b for a, b in zip(mirrored, untouched, strict=True))
    assert 8 < sum(mirrored) < 32


@pytest.mark.parametrize("change", [partial(shift_frames, max_px=1), flip_frames])
def test_frames_of_another_shape_are_refused(change: Any) -> None:
    with pytest.raises(ValueError, match=r"expected \[T, B, C, H, W\]"):
        change(torch.zeros(3, 2, 5, 7), generator=seeded(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: random_shift(e, -1, seeded(0)), "max_px is -1"),
        (lambda e: random_drop(e, 1.5, seeded(0)), "max_fraction is 1.5"),
        (lambda e: time_jitter(e, -2.0, seeded(0)), "sigma_us is -2.0"),
        (lambda e: random_rotation(e, -2.0, seeded(0)), "max_degrees is -2.0"),
    ],
)
def test_bad_amounts_are_refused(make_packed: Any, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(make_packed(5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_change
def test_a_cpu_generator_serves_the_gpu_alike(make_packed: Any, change: Any) -> None:
    packed = make_packed(60, 0, 40)
    assert same(change(packed, seeded(3)), change(packed.to("cuda"), seeded(3)).to("cpu"))
    frames = frames_by_time(packed, 4)
    assert torch.equal(shift_frames(frames, 2, seeded(3)), shift_frames(frames.cuda(), 2, seeded(3)).cpu())
    assert torch.equal(flip_frames(frames, seeded(3)), flip_frames(frames.cuda(), seeded(3)).cpu())
