"""Event recordings as batches of frames on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeloom.datasets import (
    PackedEvents,
    flip_frames,
    random_drop,
    random_rotation,
    random_shift,
    shift_frames,
    time_jitter,
)
from spikeloom.datasets.frame_augment import one_operation_each
from spikeloom.training.frame_store import StoredFrames, bin_events, narrow
from spikeloom.training.one_copy import sent
from spikeloom.training.recipe import Augment, Data

MAX_CACHE_BYTES = 2 * 2**30
"""Frames of a part that take no more are binned once and kept."""


class EventFrames:
    """Frames `[T, B, 2, H, W]` float32 (channels-last in memory) of recordings.

    With no change of events but a shift, frames are binned once and the frames are shifted, which gives the same
    numbers as shifting events; otherwise events are changed and binned for every batch.

    Shifts count pixels of the sensor; `Data.pool` follows them, and flip, frame_op and crop see the pooled frames.

    Raises:
        ValueError: the squares of `Data.pool` do not tile the sensor; the crop is larger than the frames.
    """

    def __init__(
        self, recordings: PackedEvents | StoredFrames, data: Data, device: torch.device, augment: Augment
    ) -> None:
        self.data, self.augment = data, augment
        on_events = bool(augment.rotate_degrees or augment.drop or augment.jitter_us)
        self._events: PackedEvents | None = None
        if isinstance(recordings, StoredFrames):
            self._frames: Tensor | None = recordings.frames.to(device).transpose(0, 1)
            height, width = self._frames.shape[-2:]
        else:
            self._events = recordings.to(device)
            height, width = recordings.height, recordings.width
            size = len(recordings) * data.T * 2 * height * width
            self._frames = self._bin_all(self._events) if not on_events and size <= MAX_CACHE_BYTES else None
        if height % data.pool or width % data.pool:
            raise ValueError(
                f"Data.pool is {data.pool}, but the frames of {data.name} have {height} x {width} pixels; expected a "
                "divisor of both."
            )
        height, width = height // data.pool, width // data.pool
        if data.crop is not None and data.crop > min(height, width):
            raise ValueError(f"Data.crop is {data.crop}, but the frames of {data.name} have {height} x {width} pixels.")

    def plain(self, indices: Tensor) -> Tensor:
        """The frames of recordings `[B]` as they are."""
        return self._encode(self._pooled(self._counts(indices)))

    def augmented(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """The frames of recordings `[B]`, changed at random."""
        change = self.augment
        if self._frames is not None:
            frames = self._counts(indices)
            frames = shift_frames(frames, change.shift_px, generator) if change.shift_px else frames
        else:
            frames = bin_events(self._changed(indices, generator), self.data)
        frames = self._pooled(frames)
        if change.flip:
            frames = flip_frames(frames, generator, change.flip)
        if change.frame_op:
            frames = one_operation_each(frames, generator, cutout="area")  # as the authors' scripts cut
        return self._encode(frames)

    def _changed(self, indices: Tensor, generator: torch.Generator) -> PackedEvents:
        change, events = self.augment, self._select(indices)
        if change.rotate_degrees:
            events = random_rotation(events, change.rotate_degrees, generator)
        if change.shift_px:
            events = random_shift(events, change.shift_px, generator)
        if change.drop:
            events = random_drop(events, change.drop, generator)
        if change.jitter_us:
            events = time_jitter(events, change.jitter_us, generator)
        return events

    def _counts(self, indices: Tensor) -> Tensor:
        """Counts (or 0 and 1) `[T, B, 2, H, W]`."""
        if self._frames is None:
            return bin_events(self._select(indices), self.data)
        (place,) = sent([indices], self._frames.device)
        return self._frames[:, place]

    def _select(self, indices: Tensor) -> PackedEvents:
        assert self._events is not None  # only stored frames come without, and they are always kept
        return self._events.select(indices)

    def _bin_all(self, events: PackedEvents) -> Tensor:
        """All frames, in the smallest dtype that holds them; binned in parts, because binning needs int64."""
        parts = [narrow(bin_events(events.select(part), self.data)) for part in torch.arange(len(events)).split(256)]
        return torch.cat(parts, dim=1)  # in the widest dtype of a part

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
