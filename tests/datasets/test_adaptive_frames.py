"""Adaptive event frames: the recursion written plainly, colours, sizes, a fixed number of frames, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spikeloom.datasets import Events, adaptive_event_frames
from spikeloom.datasets import adaptive_frames as module
from spikeloom.datasets.adaptive_frames import adaptive_pieces, fit_steps

H, W = 9, 12


def recording(n: int, seed: int = 0, spread: float = 1.5) -> Events:
    """Events around a point that crosses the sensor and comes back, of both polarities."""
    rng = np.random.default_rng(seed)
    where = np.abs(np.linspace(-1, 1, n))
    x = np.clip(where * (W - 1) + rng.normal(0, spread, n), 0, W - 1).astype(int)
    y = np.clip(H / 2 + rng.normal(0, spread, n), 0, H - 1).astype(int)
    return Events.from_arrays(np.arange(n) * 10, x, y, rng.integers(0, 2, n), H, W)


def count(events: Events, lo: int, hi: int) -> np.ndarray[Any, Any]:
    image = np.zeros((2, H, W), np.float32)
    for i in range(lo, hi):
        image[int(events.p[i]), int(events.y[i]), int(events.x[i])] += 1
    return image


def morph(image: np.ndarray[Any, Any], best: Any) -> np.ndarray[Any, Any]:
    out = image.copy()
    for y in range(H):
        for x in range(W):
            out[y, x] = best(image[max(0, y - 1) : y + 1, max(0, x - 1) : x + 1])
    return out


def plain(events: Events, lo: int, hi: int, min_events: int, threshold: float) -> Any:
    """Pieces and scores, as the method is written."""
    middle = lo + (hi - lo) // 2
    clean = [
        sum(morph(morph(image, np.min), np.max) for image in count(events, *half))
        for half in ((lo, middle), (middle, hi))
    ]
    score = 600 * float(np.abs(clean[0] - clean[1]).sum()) / (hi - lo)
    rows = [(lo, hi, score)]
    if score <= threshold:
        return [(lo, hi)], rows
    if middle - lo <= min_events:
        return [(lo, middle), (middle, hi)], rows
    first, second = (plain(events, *half, min_events, threshold) for half in ((lo, middle), (middle, hi)))
    return first[0] + second[0], rows + first[1] + second[1]


@pytest.mark.parametrize(
    ("n", "min_events", "threshold"), [(1, 1, 0.0), (2, 1, 50.0), (501, 40, 60.0), (501, 20, 250.0), (333, 1000, 50.0)]
)
def test_pieces_are_those_of_the_method(n: int, min_events: int, threshold: float) -> None:
    events = recording(n)
    pieces, scores = plain(events, 0, n, min_events, threshold)
    found = adaptive_pieces(events, size=None, min_events=min_events, threshold=threshold)
    assert found.segments.tolist() == [list(piece) for piece in pieces]
    np.testing.assert_allclose(found.scores.numpy(), np.array(scores), rtol=1e-6)
    for (lo, hi), frame in zip(pieces, found.frames, strict=True):
        off, on = count(events, lo, hi)
        ink = np.stack([off * 255, on * 255 + off * 255, on * 255])
        assert np.array_equal(frame.numpy(), np.clip(255 - ink, 0, 255)[:, ::-1])


def test_pieces_do_not_depend_on_how_they_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    events = recording(700)
    whole = adaptive_pieces(events, min_events=20, threshold=40.0, size=(8, 8))
    assert len(whole.segments) > 8
    monkeypatch.setattr(module, "_CELLS", 5 * H * W)
    again = adaptive_pieces(events, min_events=20, threshold=40.0, size=(8, 8))
    assert all(torch.equal(getattr(whole, name), getattr(again, name)) for name in ("frames", "segments", "scores"))


def test_pieces_cover_the_recording() -> None:
    segments = adaptive_pieces(recording(997), min_events=30, threshold=30.0).segments
    assert segments[0, 0] == 0
    assert segments[-1, 1] == 997
    assert torch.equal(segments[1:, 0], segments[:-1, 1])


def test_colours() -> None:
    events = Events.from_arrays([0, 1, 2, 3], [1, 2, 3, 3], [0, 0, 0, 0], [1, 0, 1, 0], 2, 4)
    frame = adaptive_event_frames(events, size=None)[0]
    assert frame.shape == (3, 2, 4)
    bottom = frame[:, 1].T.tolist()  # upside down
    assert bottom == [[255, 255, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]]


def test_sizes_and_numbers() -> None:
    events = recording(600)
    options: dict[str, Any] = {"min_events": 30, "threshold": 40.0}
    frames = adaptive_event_frames(events, **options)
    n = len(frames)
    assert frames.shape[1:] == (3, 224, 224)
    assert frames.dtype == torch.float32
    assert 0 <= frames.min() < frames.max() < 255.001
    more = adaptive_event_frames(events, n + 3, **options)
    assert torch.equal(more[:n], frames)
    assert not more[n:].any()
    few = adaptive_event_frames(events, 3, **options)
    assert torch.equal(few, frames[[0, round((n - 1) / 2), n - 1]])
    assert torch.equal(adaptive_event_frames(events, 1, **options), frames[:1])


def test_steps_are_spread() -> None:
    frames: Tensor = torch.arange(10.0)
    assert fit_steps(frames, 4).tolist() == [0, 3, 6, 9]
    assert fit_steps(frames, 10).tolist() == frames.tolist()
    assert fit_steps(frames, 12)[9:].tolist() == [9, 0, 0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"T": 0}, "T=0"),
        ({"T": 2.5}, "T=2.5"),
        ({"min_events": 0}, "min_events=0"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"size": (0, 8)}, r"size=\(0, 8\)"),
        ({"size": 8}, r"size=8; expected .*\(H, W\)"),
        ({"size": (8,)}, r"size=\(8,\)"),
    ],
    ids=["T", "T in parts", "min_events", "threshold", "size", "one number", "one side"],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        adaptive_event_frames(recording(20), **options)


def test_a_lone_event_is_one_frame() -> None:
    """In the corner, where erosion leaves it, it scores; but it has no halves."""
    events = Events.from_arrays([0], [0], [0], [1], 4, 4)
    assert adaptive_pieces(events, size=None).segments.tolist() == [[0, 1]]


def test_a_recording_without_events_is_refused() -> None:
    with pytest.raises(ValueError, match="without events"):
        adaptive_event_frames(recording(20)[:0])
