"""Event recordings as batches of frames on the device."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import torch
from torch import Tensor

from spikeloom.datasets import (
    PackedEvents,
    StorePart,
    flip_frames,
    random_drop,
    random_rotation,
    random_shift,
    shift_frames,
    time_jitter,
)
from spikeloom.datasets.frame_augment import one_operation_each
from spikeloom.training.aside import Aside, Batch
from spikeloom.training.faults import tell_skipped
from spikeloom.training.frame_store import StoredFrames, bin_events, narrow
from spikeloom.training.one_copy import sent
from spikeloom.training.recipe import Augment, Data
from spikeloom.training.stored_events import RECORDINGS, StoredEvents, Words

MAX_CACHE_BYTES = 2 * 2**30
"""Frames of a part that take no more are binned once and kept."""
_CELLS = 2**26  # counters at once for that


class EventFrames:
    """Frames `[T, B, 2, H, W]` float32 (channels-last in memory) of recordings.

    With no change of events but a shift, frames are binned once and the frames are shifted, which gives the same
    numbers as shifting events; otherwise events are changed and binned for every batch. Frames of an event store that
    are too large to keep are binned for every batch, too, straight from the file.

    Shifts count pixels of the sensor; `Data.pool` follows them, and flip, frame_op and crop see the pooled frames.

    Raises:
        ValueError: the squares of `Data.pool` do not tile the sensor; the crop is larger than the frames.
    """

    def __init__(
        self, recordings: PackedEvents | StorePart | StoredFrames, data: Data, device: torch.device, augment: Augment
    ) -> None:
        self.data, self.augment = data, augment
        self.skipped = 0
        self._on_events = bool(augment.rotate_degrees or augment.drop or augment.jitter_us)
        self._events: PackedEvents | StoredEvents | None = None
        if isinstance(recordings, StoredFrames):
            self._frames: Tensor | None = recordings.frames.to(device).transpose(0, 1)
            height, width = self._frames.shape[-2:]
        else:
            height, width = recordings.height, recordings.width
            if isinstance(recordings, StorePart):
                self._events = StoredEvents(recordings, data, device)
            else:
                self._events = recordings.to(device)
            count, cells = len(recordings), data.T * 2 * height * width
            kept = not self._on_events and count * cells <= MAX_CACHE_BYTES
            self._frames = self._bin_all(count, cells) if kept else None
        if height % data.pool or width % data.pool:
            raise ValueError(
                f"Data.pool is {data.pool}, but the frames of {data.name} have {height} x {width} pixels; expected a "
                "divisor of both."
            )
        height, width = height // data.pool, width // data.pool
        if data.crop is not None and data.crop > min(height, width):
            raise ValueError(f"Data.crop is {data.crop}, but the frames of {data.name} have {height} x {width} pixels.")
        self._aside = Aside(device)

    def reads(self, batches: Iterable[Tensor], skips: bool = False) -> Generator[Tensor | Words]:
        """What `plain` and `augmented` take, for the recordings `[B]` of each batch: read ahead from an event store.

        skips: those that `shown` gives, where some are damaged.

        Raises:
            DataFaultError: recordings of a batch are damaged, and are not to be skipped, or all of them.
        """
        if not isinstance(self._events, StoredEvents):
            yield from batches
        elif self._frames is None:
            yield from self._events.reads(batches, skips)
        else:
            for indices in batches:
                yield self._events.readable(indices, skips)

    def shown(self, indices: Tensor) -> Tensor:
        """The recordings that are shown for `[B]` of a batch that was read."""
        return self._events.shown(indices) if isinstance(self._events, StoredEvents) else indices

    def tell(self, indices: Tensor) -> None:
        """Count and warn of those of a batch of recordings `[B]` that are not shown."""
        lost = self._events.known(indices) if isinstance(self._events, StoredEvents) else {}
        if lost:
            self.skipped += len(lost)
            tell_skipped([*lost.values()], len(indices), self.skipped, RECORDINGS)

    def beside(self, batches: Generator[Batch]) -> Generator[Batch]:
        """Batches of what `plain` and `augmented` give; on a GPU made beside the step before, see `Aside.made`."""
        return self._aside.made(batches)

    def plain(self, given: Tensor | Words) -> Tensor:
        """The frames of recordings `[B]` as they are."""
        return self._encode(self._pooled(self._counts(given)))

    def augmented(self, given: Tensor | Words, generator: torch.Generator) -> Tensor:
        """The frames of recordings `[B]`, changed at random."""
        change = self.augment
        if self._on_events or (self._frames is None and isinstance(self._events, PackedEvents)):
            frames = bin_events(self._changed(given, generator), self.data)
        else:
            frames = self._counts(given)
            frames = shift_frames(frames, change.shift_px, generator) if change.shift_px else frames
        frames = self._pooled(frames)
        if change.flip:
            frames = flip_frames(frames, generator, change.flip)
        if change.frame_op:
            frames = one_operation_each(frames, generator, cutout="area")  # as the authors' scripts cut
        return self._encode(frames)

    def _changed(self, given: Tensor | Words, generator: torch.Generator) -> PackedEvents:
        change, events = self.augment, self._select(given)
        if change.rotate_degrees:
            events = random_rotation(events, change.rotate_degrees, generator)
        if change.shift_px:
            events = random_shift(events, change.shift_px, generator)
        if change.drop:
            events = random_drop(events, change.drop, generator)
        if change.jitter_us:
            events = time_jitter(events, change.jitter_us, generator)
        return events

    def _counts(self, given: Tensor | Words) -> Tensor:
        """Counts (or 0 and 1) `[T, B, 2, H, W]`."""
        if self._frames is None:
            return self._binned(given)
        assert isinstance(given, Tensor)
        (place,) = sent([given], self._frames.device)
        return self._frames[:, place]

    def _binned(self, given: Tensor | Words) -> Tensor:
        if isinstance(self._events, StoredEvents):
            return self._events.frames(given)
        return bin_events(self._select(given), self.data)

    def _select(self, given: Tensor | Words) -> PackedEvents:
        if isinstance(self._events, StoredEvents):
            return self._events.events(given)
        assert self._events is not None  # only stored frames come without, and they are always kept
        assert isinstance(given, Tensor)
        return self._events.select(given)

    def _bin_all(self, count: int, cells: int) -> Tensor:
        """All frames, so many cells each, in the smallest dtype that holds them; binned in parts, as it needs int64."""
        at_once = max(1, min(256, _CELLS // cells))
        parts = [self._bin_part(part) for part in torch.arange(count).split(at_once)]
        return torch.cat(parts, dim=1)  # in the widest dtype of a part

    def _bin_part(self, part: Tensor) -> Tensor:
        """Frames to keep; of damaged recordings something that `shown` never gives."""
        if isinstance(self._events, StoredEvents):
            skips = self.data.unreadable == "skip"
            if skips and len(self._events.learn(part)) == len(part):
                size = (self.data.T, len(part), 2, self._events.part.height, self._events.part.width)
                return torch.zeros(size, dtype=torch.uint8, device=self._events.device)
            part = self._events.readable(part, skips)
        return narrow(self._binned(part))

    def _pooled(self, frames: Tensor) -> Tensor:
        """Counts `[T, B, 2, H, W]` summed over squares of `pool` pixels; 0 and 1: any of them."""
        side = self.data.pool
        if side == 1:
            return frames
        squares = frames.unflatten(-1, (-1, side)).unflatten(
            -3, (-1, side)
        )  # [T, B, 2, H / side, side, W / side, side]
        return squares.amax((-3, -1)) if self.data.encoding == "binary" else squares.sum((-3, -1), dtype=torch.int32)

    def _encode(self, frames: Tensor) -> Tensor:
        if self.data.crop is not None:
            top, left = ((side - self.data.crop) // 2 for side in frames.shape[-2:])
            frames = frames[..., top : top + self.data.crop, left : left + self.data.crop]
        values = frames.to(torch.float32)
        if self.data.encoding == "sqrt":
            values = values.sqrt()
        folded = values.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return folded.unflatten(0, values.shape[:2])
