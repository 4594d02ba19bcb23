"""Adaptive event frames: a recording is halved as long as its halves look different, and each piece is one frame.

    score(piece) = 600 sum |clean(first half) - clean(second half)| / events of the piece
    score <= threshold: one frame.   Else halves of <= min_events: one frame each.   Else: each half on its own

A half has half of the events, rounded down. clean: counts per polarity, eroded, then dilated, by 2 x 2 pixels (a
pixel with those to its left and above), and added up, which removes lone events. A frame shows a piece's counts on
white, channels blue, green, red: a brighter pixel is blue, a darker one red, one with both black, then resized and
turned upside down:

    frame = clip(255 - (on * [0, 255, 255] + off * [255, 255, 0]), 0, 255)

Method: Zhou et al. 2024, "ExACT: Language-guided Conceptual Reasoning and Uncertainty Estimation for Event-based Action
Recognition and More", arXiv:2403.12534, with the constants of the SpikMamba code (Typistchen/SpikMamba, commit
743aa75), which takes the canvas from the events of each piece; here it is the sensor. Pieces of one level of halving
are counted together, by one bincount.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.datasets.events import Events

_INK = torch.tensor([[255.0, 255.0, 0.0], [0.0, 255.0, 255.0]])
"""What an OFF and an ON event take away from white: blue, green, red."""
_CELLS = 2**26
"""Counters of one bincount at most: pieces are taken in groups."""


@dataclass(frozen=True, eq=False)
class AdaptiveFrames:
    """n pieces of a recording.

    frames: `[n, 3, H, W]` float32, 0 to 255, blue, green, red, in time order.
    segments: `[n, 2]` int64, first event of a piece and one behind its last.
    scores: `[m, 3]` float64, first event, one behind the last and score of every piece that was scored, a piece in
        front of its halves.
    """

    frames: Tensor
    segments: Tensor
    scores: Tensor


def adaptive_event_frames(
    events: Events,
    T: int | None = None,
    *,
    size: tuple[int, int] | None = (224, 224),
    min_events: int = 100_000,
    threshold: float = 50.0,
) -> Tensor:
    """Frames `[n, 3, H, W]` of a recording, float32, 0 to 255; n follows from the events, or is T.

    Args:
        events: of one recording, at least one.
        T: number of frames. If there are more, those at round(linspace(0, n - 1, T)) are taken; if fewer, frames of
            zeros are put behind (our rule: the published code does not say how it gets there).
        size: (H, W); None is the sensor's. Resized bilinearly, without filtering.
        min_events: halves of at most so many events are not halved again.
        threshold: of the score.

    Raises:
        ValueError: no events, or T, size, min_events or threshold out of range.
    """
    if T is not None and (not isinstance(T, int) or T < 1):
        raise ValueError(f"adaptive_event_frames got T={T}; expected a whole number >= 1, or None for all frames.")
    frames = adaptive_pieces(events, size=size, min_events=min_events, threshold=threshold).frames
    return frames if T is None else fit_steps(frames, T)


def fit_steps(frames: Tensor, T: int) -> Tensor:
    """T of n frames `[n, ...]`, evenly spread with the first and the last, or all of them and zeros behind."""
    n = len(frames)
    if n <= T:
        return torch.cat([frames, frames.new_zeros(T - n, *frames.shape[1:])])
    chosen = torch.linspace(0, n - 1, T, dtype=torch.float64).round().long()
    return frames[chosen.to(frames.device)]


def adaptive_pieces(
    events: Events, *, size: tuple[int, int] | None = (224, 224), min_events: int = 100_000, threshold: float = 50.0
) -> AdaptiveFrames:
    """`adaptive_event_frames` with the pieces' bounds and scores.

    Raises:
        ValueError: as there.
    """
    if len(events) == 0:
        raise ValueError("adaptive_event_frames got a recording without events; expected at least one.")
    sides = (1, 1) if size is None else size
    if min_events < 1 or not threshold >= 0 or not isinstance(sides, tuple | list) or len(sides) != 2 or min(sides) < 1:
        raise ValueError(
            f"adaptive_event_frames got min_events={min_events}, threshold={threshold}, size={size}; expected >= 1, "
            ">= 0 and (H, W) with sides >= 1."
        )
    level = [(0, len(events))]
    final: list[tuple[int, int]] = []
    scored: list[tuple[int, int, float]] = []
    while level:
        scores = _scores(events, level)
        scored += [(lo, hi, score) for (lo, hi), score in zip(level, scores, strict=True)]
        deeper = []
        for (lo, hi), score in zip(level, scores, strict=True):
            middle = lo + (hi - lo) // 2
            if score <= threshold or hi - lo == 1:  # a lone event has no halves
                final.append((lo, hi))
            elif middle - lo <= min_events:
                final += [(lo, middle), (middle, hi)]
            else:
                deeper += [(lo, middle), (middle, hi)]
        level = deeper
    final.sort()
    scored.sort(key=lambda row: (row[0], -row[1]))  # a piece, then its halves
    groups = _groups(final, 2 * events.height * events.width)
    frames = torch.cat([_render(_counts(events, group), size) for group in groups])
    return AdaptiveFrames(frames, torch.tensor(final), torch.tensor(scored, dtype=torch.float64))


def _groups(pieces: list[tuple[int, int]], cells: int) -> list[list[tuple[int, int]]]:
    """Pieces in groups of at most `_CELLS` counters."""
    step = max(1, _CELLS // cells)
    return [pieces[i : i + step] for i in range(0, len(pieces), step)]


def _counts(events: Events, pieces: list[tuple[int, int]]) -> Tensor:
    """Events per pixel `[pieces, 2, H, W]` float32, OFF and ON, of neighbouring or separate pieces in time order."""
    bounds = torch.tensor(pieces, device=events.t.device)
    lengths = bounds[:, 1] - bounds[:, 0]
    piece = torch.repeat_interleave(torch.arange(len(pieces), device=bounds.device), lengths)
    starts = bounds[:, 0] - (lengths.cumsum(0) - lengths)
    event = torch.arange(len(piece), device=bounds.device) + starts[piece]
    p, y, x = (column[event].long() for column in (events.p, events.y, events.x))
    shape = len(pieces), 2, events.height, events.width
    index = ((piece * 2 + p) * events.height + y) * events.width + x
    return torch.bincount(index, minlength=shape[0] * 2 * shape[2] * shape[3]).view(shape).float()


def _scores(events: Events, pieces: list[tuple[int, int]]) -> list[float]:
    """How different the halves of each piece are."""
    found: list[float] = []
    for group in _groups(pieces, 4 * events.height * events.width):
        halves = [half for lo, hi in group for half in ((lo, (lo + hi) // 2), ((lo + hi) // 2, hi))]
        clean = _clean(_counts(events, halves)).unflatten(0, (-1, 2))
        apart = (clean[:, 0] - clean[:, 1]).abs().double().sum((1, 2))  # whole numbers
        sizes = torch.tensor([hi - lo for lo, hi in group], dtype=torch.float64, device=apart.device)
        found += (600 * apart / sizes).float().tolist()
    return found


def _clean(counts: Tensor) -> Tensor:
    """Eroded, then dilated, by a pixel with its left, upper and upper left neighbours; polarities added up."""
    eroded = -F.max_pool2d(F.pad(-counts, (1, 0, 1, 0), value=-torch.inf), 2, 1)
    return F.max_pool2d(F.pad(eroded, (1, 0, 1, 0), value=-torch.inf), 2, 1).sum(1)


def _render(counts: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Counts `[n, 2, H, W]` -> frames `[n, 3, H', W']`, upside down."""
    taken = torch.einsum("nphw,pc->nchw", counts, _INK.to(counts.device))
    frames = (255 - taken).clamp(0, 255)
    if size is not None and size != tuple(frames.shape[2:]):
        frames = F.interpolate(frames, size=size, mode="bilinear", align_corners=False)
    return frames.flip(2)
