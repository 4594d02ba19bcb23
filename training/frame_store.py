"""Recordings as frames that were binned while they were read, for event data too large to keep as events.

CIFAR10-DVS has some two thousand million events (26 GB in columns); its 16 frames of 128 x 128 per recording take
0.5 MB each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from spikeloom.datasets import Events, PackedEvents, frames_by_count, frames_by_time
from spikeloom.training.left_out import readable
from spikeloom.training.recipe import Data


@dataclass(frozen=True, eq=False)
class StoredFrames:
    """N recordings as frames.

    frames: `[N, T, 2, H, W]`, counts (or 0 and 1) in the smallest dtype of `narrow`. labels: `[N]` int64.
    """

    frames: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """The number of recordings."""
        return len(self.labels)

    def select(self, indices: Sequence[int] | Tensor) -> StoredFrames:
        """The recordings `indices` `[K]` in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return StoredFrames(self.frames[chosen], self.labels[chosen])


def bin_events(events: Events | PackedEvents, data: Data) -> Tensor:
    """Counts (or 0 and 1) by `data.split`: `[T, 2, H, W]` of one recording, `[T, B, 2, H, W]` of many."""
    if data.split == "number":
        counts = frames_by_count(events, data.T, remainder="last")  # as the published frames were made
    else:
        counts = frames_by_time(events, data.T, end_us=data.duration_us)
    return counts > 0 if data.encoding == "binary" else counts


def narrow(frames: Tensor) -> Tensor:
    """The same counts in the smallest of uint8, int16 and int32 that holds them all."""
    largest = int(frames.max())
    return frames.to(torch.uint8 if largest <= 255 else torch.int16 if largest <= 32_767 else torch.int32)


class Readable(Protocol):
    """Recordings that are read when asked for."""

    def pack(self, indices: Sequence[int]) -> PackedEvents:
        """Those of `indices`, with labels."""


def store_frames(
    recordings: Readable, groups: Sequence[Sequence[int]], data: Data, rule: str = "", part: str = "test"
) -> StoredFrames:
    """Bin recordings group by group; a group is read at once and held as events no longer than that.

    rule: which recordings belong to a part, for the message where none does. part: see `readable`.

    Raises:
        ValueError: there is no recording; or the sensor's size changes between recordings.
        DataFaultError: as `readable`.
    """
    count, start = sum(len(group) for group in groups), 0
    if count == 0:
        raise ValueError(f"{data.name} has no recordings in this part; expected at least one{rule and f' ({rule})'}.")
    store = torch.empty(0, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for group, packed in readable(recordings.pack, groups, data, part):
        frames = narrow(bin_events(packed, data)).transpose(0, 1)  # [b, T, 2, H, W]
        if start == 0:
            store = torch.empty((count, *frames.shape[1:]), dtype=torch.uint8)
        if frames.shape[1:] != store.shape[1:]:
            raise ValueError(
                f"Recording {start} has frames of {list(frames.shape[1:])}, those before it {list(store.shape[1:])}; "
                "expected recordings of one sensor."
            )
        store = store.to(torch.promote_types(store.dtype, frames.dtype))
        store[start : start + len(group)] = frames
        labels[start : start + len(group)] = cast(Tensor, packed.labels)
        start += len(group)
    return StoredFrames(store[:start], labels[:start])
