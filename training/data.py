"""The recordings of a recipe: train, validation and test part, and their batches of frames on the device.

All randomness comes from generators seeded by (seed, epoch, batch), so a run continues in the middle of an epoch with
the numbers that it would have had anyway, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikeloom.datasets import (
    NMNIST,
    PackedEvents,
    SaccadeConfig,
    frames_by_time,
    random_drop,
    random_rotation,
    random_shift,
    saccade_mnist,
    shift_frames,
    time_jitter,
)
from spikeloom.models.config import nearest
from spikeloom.training.recipe import Augment, Data

MAX_CACHE_BYTES = 2 * 2**30
"""Frames of a part that take no more are binned once and kept."""

_ORDER, _AUGMENT = 0, 1  # streams of random numbers
_SPLIT_SEED = 0  # the held-out recordings are the same for every seed of a recipe


@dataclass(frozen=True)
class Source:
    """A data set: how to load its train or test part with labels, its classes, and what results on it are called."""

    load: Callable[[Data, str], PackedEvents]
    num_classes: int
    says: str


def _load_saccades(data: Data, part: str) -> PackedEvents:
    config = SaccadeConfig(swap_polarity=data.swap_polarity)
    if part == "test":
        return saccade_mnist("test", config)
    packed = saccade_mnist("train", config)
    return packed.select((torch.arange(len(packed)) % 400 >= data.skip_per_class).nonzero().squeeze(1))


def _load_nmnist(data: Data, part: str) -> PackedEvents:
    if data.root is None:
        raise ValueError(
            "The data set nmnist is read from files, and no folder was given. Pass --root FOLDER, which holds "
            "Train/<digit>/<id>.bin and Test/<digit>/<id>.bin. Get Train.zip and Test.zip of N-MNIST from "
            "https://www.garrickorchard.com/datasets/n-mnist and unpack both into it."
        )
    return NMNIST(data.root, "train" if part == "train" else "test").pack()


SOURCES = {
    "saccade_mnist": Source(_load_saccades, 10, "simulated events of MNIST images, not N-MNIST"),
    "nmnist": Source(_load_nmnist, 10, "N-MNIST recordings"),
}


def source(data: Data) -> Source:
    """The data set that a recipe names.

    Raises:
        ValueError: there is none of that name.
    """
    if data.name not in SOURCES:
        raise ValueError(f"There is no data set {data.name!r}{nearest(data.name, SOURCES)} for recipes.")
    return SOURCES[data.name]


def load_train(data: Data) -> tuple[PackedEvents, PackedEvents | None]:
    """The training part, and the part of it that is held out for validation (None: nothing is)."""
    packed = _limit(source(data).load(data, "train"), data.limit)
    if data.validation == 0:
        return packed, None
    if data.validation >= len(packed):
        raise ValueError(f"data.validation is {data.validation}, but there are only {len(packed)} training recordings.")
    held = held_out(labels_of(packed), data.validation)
    return packed.select((~held).nonzero().squeeze(1)), packed.select(held.nonzero().squeeze(1))


def load_test(data: Data) -> PackedEvents:
    """The test part."""
    return _limit(source(data).load(data, "test"), data.limit)


def labels_of(packed: PackedEvents) -> Tensor:
    """Labels `[N]` int64 of recordings that have them."""
    if packed.labels is None:
        raise ValueError("The recordings have no labels; pack them with labels to train on them.")
    return packed.labels


def held_out(labels: Tensor, count: int) -> Tensor:
    """Mask `[N]` of `count` recordings, as equally many of each class as `count` allows; always the same ones."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    # rank of each recording within its class, in the random order; the lowest ranks of all classes are held out
    rank = torch.empty_like(order)
    for label in labels.unique().tolist():
        members = order[labels[order] == label]
        rank[members] = torch.arange(len(members))
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order[torch.argsort(rank[order], stable=True)][:count]] = True
    return mask


def _limit(packed: PackedEvents, limit: int | None) -> PackedEvents:
    if limit is None or limit >= len(packed):
        return packed
    return packed.select(torch.arange(limit) * len(packed) // limit)


def generator_for(seed: int, stream: int, epoch: int, batch: int = 0) -> torch.Generator:
    """A generator that depends on these numbers alone."""
    mixed = np.random.SeedSequence((seed, stream, epoch, batch)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


class Batches:
    """Frames `[T, B, 2, H, W]` float32 (channels-last in memory) and labels `[B]` of recordings, batch by batch.

    With at most a shift as augmentation, frames are binned once and the frames are shifted, which gives the same
    numbers as shifting events; otherwise events are changed and binned for every batch.
    """

    def __init__(
        self, packed: PackedEvents, data: Data, batch_size: int, device: torch.device, augment: Augment | None = None
    ) -> None:
        self.augment = Augment() if augment is None else augment
        self.data = data
        self.batch_size = batch_size
        self.packed = packed.to(device)
        self.labels = labels_of(packed).to(device)
        on_events = self.augment.rotate_degrees or self.augment.drop or self.augment.jitter_us
        size = len(packed) * data.T * 2 * packed.height * packed.width
        self._frames = self._bin_all() if not on_events and size <= MAX_CACHE_BYTES else None

    @property
    def recordings(self) -> int:
        """The number of recordings."""
        return len(self.labels)

    def __len__(self) -> int:
        """The number of batches; the last one may be smaller."""
        return -(-self.recordings // self.batch_size)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All recordings as they are."""
        for start in range(0, self.recordings, self.batch_size):
            indices = torch.arange(start, min(start + self.batch_size, self.recordings))
            yield self._encode(self._plain(indices)), self.labels[indices.to(self.labels.device)]

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The augmented batches of an epoch from batch `start` on, in the random order of that epoch."""
        order = torch.randperm(self.recordings, generator=generator_for(seed, _ORDER, epoch))
        for batch in range(start, len(self)):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            frames = self._augmented(indices, generator_for(seed, _AUGMENT, epoch, batch))
            yield self._encode(frames), self.labels[indices.to(self.labels.device)]

    def _augmented(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        change = self.augment
        if self._frames is not None:
            frames = self._plain(indices)
            return shift_frames(frames, change.shift_px, generator) if change.shift_px else frames
        events = self.packed.select(indices)
        if change.rotate_degrees:
            events = random_rotation(events, change.rotate_degrees, generator)
        if change.shift_px:
            events = random_shift(events, change.shift_px, generator)
        if change.drop:
            events = random_drop(events, change.drop, generator)
        if change.jitter_us:
            events = time_jitter(events, change.jitter_us, generator)
        return self._bin(events)

    def _plain(self, indices: Tensor) -> Tensor:
        if self._frames is None:
            return self._bin(self.packed.select(indices))
        return self._frames[:, indices.to(self._frames.device)]

    def _bin(self, events: PackedEvents) -> Tensor:
        """Counts (or 0 and 1) `[T, B, 2, H, W]`."""
        counts = frames_by_time(events, self.data.T, end_us=self.data.duration_us)
        return counts > 0 if self.data.encoding == "binary" else counts

    def _bin_all(self) -> Tensor:
        """All frames, in the smallest dtype that holds them; binned in parts, because binning needs int64."""
        parts = [self._bin(self.packed.select(part)) for part in torch.arange(self.recordings).split(256)]
        largest = max(int(part.max()) for part in parts)
        dtype = torch.uint8 if largest <= 255 else torch.int32
        return torch.cat([part.to(dtype) for part in parts], dim=1)

    def _encode(self, frames: Tensor) -> Tensor:
        values = frames.to(torch.float32)
        if self.data.encoding == "sqrt":
            values = values.sqrt()
        folded = values.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        return folded.unflatten(0, values.shape[:2])
