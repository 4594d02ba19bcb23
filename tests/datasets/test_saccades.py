"""The simulated camera: its equation on hand-made cases, its statistics beside real N-MNIST recordings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeloom.datasets import (
    NMNIST,
    EventsFromImages,
    MNIST5k,
    PackedEvents,
    SaccadeConfig,
    frames_by_time,
    frames_by_window,
    render_saccades,
    saccade_mnist,
)

QUIET: dict[str, Any] = {"mismatch": 0.0, "background_hz": 0.0, "hot_pixels": 0}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("t", "x", "y", "p"))


@pytest.fixture(scope="module")
def simulated() -> PackedEvents:
    digits = MNIST5k("train")
    return render_saccades(digits.images[::8], SaccadeConfig(), seeded(0)).with_labels(digits.labels[::8])


def statistics(packed: PackedEvents) -> dict[str, float]:
    counts = frames_by_time(packed, 1)[0].sum(1)  # [B, H, W]
    return {
        "events": packed.lengths.double().mean().item(),
        "spread of events": packed.lengths.double().std().item(),
        "ON fraction": packed.p.double().mean().item(),
        "pixels hit": (counts > 0).sum(dim=(1, 2)).double().mean().item(),
        "pixels hit once": (counts == 1).sum(dim=(1, 2)).double().mean().item(),
        "busiest pixel": counts.amax(dim=(1, 2)).double().mean().item(),
    }


def profile(packed: PackedEvents) -> Tensor:
    """Events per 10 ms and recording, `[30]`."""
    return frames_by_window(packed, 30, 10_000).sum(dim=(1, 2, 3, 4)).double() / len(packed)


# what 700 real recordings gave (N-MNIST training subset), and the margin within which the simulation must stay
REAL = {
    "events": (4136, 300), "spread of events": (1167, 450), "ON fraction": (0.500, 0.015), "pixels hit": (448, 25),
    "pixels hit once": (93, 20), "busiest pixel": (26.3, 4),
}  # fmt: skip


def test_statistics_are_those_of_real_recordings(simulated: PackedEvents) -> None:
    for name, value in statistics(simulated).items():
        real, margin = REAL[name]
        assert value == pytest.approx(real, abs=margin), name


def test_profile_has_three_humps_with_smooth_sides(simulated: PackedEvents) -> None:
    for leg in profile(simulated).view(3, 10):
        assert 3 <= int(leg.argmax()) <= 6
        assert leg[0] < 0.2 * leg.max()
        assert leg[9] < 0.25 * leg.max()
        assert leg[2] < 0.8 * leg.max()
        assert leg[7] < 0.9 * leg.max()


def test_numbers_above_are_those_of_the_real_samples(nmnist_root: Path, simulated: PackedEvents) -> None:
    real = NMNIST(nmnist_root, "train").pack()
    for name, value in statistics(real).items():
        assert value == pytest.approx(REAL[name][0], rel=0.01), name
    correlation = torch.corrcoef(torch.stack((profile(real), profile(simulated))))[0, 1]
    assert correlation > 0.9


def test_geometry_carries_over_to_real_recordings(nmnist_root: Path) -> None:
    """Ridge regression on simulated events reads real digits; it would not if motion, place or polarity were others."""
    digits = MNIST5k("train")
    config = SaccadeConfig(swap_polarity=True)
    train = render_saccades(digits.images[::2], config, seeded(0))
    real = NMNIST(nmnist_root, "test").pack()

    def features(packed: PackedEvents) -> Tensor:
        frames = frames_by_time(packed, 3, end_us=310_000)
        return frames.transpose(0, 1).flatten(1).float().sqrt()

    x = features(train)
    mean = x.mean(0)
    x = x - mean
    target = torch.nn.functional.one_hot(digits.labels[::2], 10).float() - 0.1
    weight = torch.linalg.solve(x @ x.T + 300 * torch.eye(len(x)), target)
    guess = ((features(real) - mean) @ x.T @ weight).argmax(1)
    # 0.93 measured on the 800 samples; 0.47 with the polarity of the wrong sign
    assert (guess == real.labels).double().mean() > 0.85


def test_a_static_or_uniform_scene_gives_no_events() -> None:
    still = SaccadeConfig(corners_px=((0.0, 0.0), (0.0, 0.0)), **QUIET)
    assert len(render_saccades(MNIST5k("test").images[:3], still, seeded(0)).t) == 0
    assert len(render_saccades(torch.zeros(2, 28, 28), SaccadeConfig(**QUIET), seeded(0)).t) == 0


def test_events_count_the_thresholds_crossed() -> None:
    """A bright image that covers 2 x 2 of a 6 x 6 sensor moves by 4 pixels right and back, along whole pixels."""
    config = SaccadeConfig(
        height=6, width=6, corners_px=((-2.0, 0.0), (2.0, 0.0)), steps=2, threshold=0.1, eps=0.2, **QUIET
    )
    events = render_saccades(torch.ones(1, 2, 2), config, seeded(0))[0]
    # columns 0, 1 go dark and columns 4, 5 bright in the first step, the reverse in the second, rows 2 and 3
    crossings = math.log(1.2 / 0.2) / 0.1  # 17.9: each pixel emits 17 or 18, and at most one more with its phase
    frames = frames_by_time(events, 2, end_us=300_000)[:, :, 2:4].sum(2)  # [T, 2, 6]
    assert frames.sum() == len(events)
    for step, (on, off) in enumerate(((4, 0), (0, 4))):
        for first, channel in ((on, 1), (off, 0)):
            per_pixel = frames[step, channel, first : first + 2] / 2
            assert (per_pixel >= crossings - 2).all()
            assert (per_pixel <= crossings + 1).all()
            assert frames[step, 1 - channel, first : first + 2].sum() == 0
    assert frames[:, :, 2:4].sum() == 0


def test_on_events_lead_a_bright_edge_and_swap_polarity_exchanges_them() -> None:
    config = SaccadeConfig(corners_px=((-3.0, 0.0), (3.0, 0.0)), **QUIET)
    events = render_saccades(torch.ones(1, 8, 8), config, seeded(0))[0].time_slice(0, 150_000)  # the leg to the right
    assert events.x[events.p == 1].double().mean() > 17 > events.x[events.p == 0].double().mean()
    swapped = render_saccades(
        torch.ones(1, 8, 8), SaccadeConfig(corners_px=((-3.0, 0.0), (3.0, 0.0)), swap_polarity=True, **QUIET), seeded(0)
    )[0].time_slice(0, 150_000)
    assert torch.equal(swapped.p, 1 - events.p)


def test_background_and_hot_pixels_have_their_rates() -> None:
    config = SaccadeConfig(duration_us=3_000_000, background_hz=0.5, hot_pixels=10, hot_hz=20.0)
    packed = render_saccades(torch.zeros(100, 28, 28), config, seeded(0))
    counts = frames_by_time(packed, 1)[0].sum(dim=(0, 1)).flatten().double() / 300  # Hz per pixel
    hot, rest = counts.sort(descending=True).values.split([10, 34 * 34 - 10])
    assert hot.mean() == pytest.approx(20.5, rel=0.05)
    assert rest.mean() == pytest.approx(0.5, rel=0.05)
    assert rest.max() < 1.0
    assert hot.min() > 15
    assert packed.p.double().mean() == pytest.approx(0.5, abs=0.01)


def test_only_the_given_generator_decides() -> None:
    images = MNIST5k("test").images[::100]
    torch.manual_seed(1)
    first = render_saccades(images, SaccadeConfig(), seeded(3))
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert same(first, render_saccades(images, SaccadeConfig(), seeded(3)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert not same(first, render_saccades(images, SaccadeConfig(), seeded(4)))


def test_float_and_byte_images_render_alike() -> None:
    images = MNIST5k("test").images[::100]
    config = SaccadeConfig()
    assert same(render_saccades(images, config, seeded(3)), render_saccades(images.float() / 255, config, seeded(3)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 40, 28), "do not fit on a sensor of 34 x 34"),
        (torch.full((2, 28, 28), 255.0), "span 255.0 to 255.0; expected"),
        (torch.zeros(2, 28, 28, dtype=torch.int64), "Images of torch.int64"),
        (torch.zeros(28, 28), r"expected at least one image, \[B, h, w\]"),
        (torch.zeros(0, 28, 28), "at least one image"),
    ],
)
def test_bad_images_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_saccades(images, SaccadeConfig(), seeded(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"background_hz": -1.0}, "background_hz is -1.0"),
        ({"steps": 61}, "61 steps for 3 corners"),
        ({"corners_px": ((0.0, 0.0),)}, "1 corners"),
        ({"hot_pixels": 2000}, "2000 hot pixels"),
        ({"threshold": 0.05}, "over 127 events"),
        ({"duration_us": 2**33}, r"2\*\*32 us"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaccadeConfig(**changes)


def test_events_from_images_are_the_same_one_by_one_and_packed() -> None:
    digits = MNIST5k("test")
    events = EventsFromImages(digits, seed=5)
    packed = events.pack(range(970, 1000))
    assert packed.labels is not None
    assert packed.labels.tolist() == [9] * 30
    for position, index in ((0, 970), (29, 999)):
        single, label = events[index]
        assert label == 9
        assert same(single, packed[position])
    assert not same(events[970][0], EventsFromImages(digits, seed=6)[970][0])
    with pytest.raises(IndexError, match="Recording 1000 of 1000"):
        events[1000]


def test_every_kind_of_image_is_taken() -> None:
    grey = MNIST5k("test").images[0]
    rgb = grey.expand(3, 28, 28)
    kinds = [grey, grey[None], rgb, grey.numpy(), np.moveaxis(rgb.numpy(), 0, -1), grey.float() / 255]
    first, *others = (EventsFromImages([(image, 0)])[0][0] for image in kinds)
    assert len(first) > 1000
    assert all(same(first, other) for other in others)
    with pytest.raises(ValueError, match=r"shape \(2, 28, 28\)"):
        EventsFromImages([(grey.expand(2, 28, 28), 0)])[0]


def test_mnist5k_split_is_fixed_and_balanced() -> None:
    train, test = MNIST5k("train"), MNIST5k("test")
    assert torch.bincount(train.labels).tolist() == [400] * 10
    assert torch.bincount(test.labels).tolist() == [100] * 10
    assert train.images.shape == (4000, 28, 28)
    assert train.images.dtype == torch.uint8
    assert int(train.images.max()) == 255
    assert test[0][1] == 0
    seen = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in seen for image in test.images)
    with pytest.raises(ValueError, match="'valid'; expected 'train' or 'test'"):
        MNIST5k("valid")  # type: ignore[arg-type]


def test_saccade_mnist_is_the_simulated_test_split() -> None:
    packed = saccade_mnist("test", seed=1)
    assert len(packed) == 1000
    assert packed.labels is not None
    assert torch.equal(packed.labels, MNIST5k("test").labels)
    assert 3_800 < len(packed.t) / 1000 < 4_500
    assert int(packed.t.max()) < 300_000
