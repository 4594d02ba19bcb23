"""The recordings of a recipe: train, validation and test part, and their batches on the device.

All randomness comes from generators seeded by (seed, epoch, batch), so a run continues in the middle of an epoch with
the numbers that it would have had anyway, on any device.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from spikeloom.datasets.image_files import ImageFiles
from spikeloom.datasets.images import Images
from spikeloom.datasets.sequences import Sequences
from spikeloom.training.event_batches import EventFrames
from spikeloom.training.image_batches import NormalImages
from spikeloom.training.mixing import mix
from spikeloom.training.one_copy import sent
from spikeloom.training.recipe import Augment, Data
from spikeloom.training.sequence_batches import SequenceInputs
from spikeloom.training.sources import Part, Recordings, check_augment, source, take
from spikeloom.training.split import WHOLE, Split
from spikeloom.training.streamed_images import StreamedImages
from spikeloom.training.text_batches import Text, TextBatches, load_text, vocabulary_of

_ORDER, _AUGMENT = 0, 1  # streams of random numbers
_SPLIT_SEED = 0  # the held-out recordings are the same for every seed of a recipe


def load_train(data: Data) -> tuple[Part, Part | None]:
    """The training part, and what is held out for validation (None: nothing is): of a text, of its last tenth.

    A data set with a validation part of its own has that instead.
    """
    origin = source(data)
    found = origin.load(data, "train")
    if isinstance(found, Text):
        return found, load_text(data, "test").first(data.validation, data) if data.validation else None
    whole = take(found, data.limit)
    if data.validation == 0:
        return whole, None
    if origin.validates:
        own = origin.load(data, "validation")
        assert not isinstance(own, Text)
        if data.validation > len(own):
            raise ValueError(
                f"data.validation is {data.validation}, but {data.name} has only {len(own)} recordings for validation."
            )
        return whole, take(own, data.validation if data.limit is None else min(data.validation, data.limit))
    if data.validation >= len(whole):
        raise ValueError(f"data.validation is {data.validation}, but there are only {len(whole)} training recordings.")
    held = held_out(labels_of(whole), data.validation)
    return whole.select((~held).nonzero().squeeze(1)), whole.select(held.nonzero().squeeze(1))


def load_test(data: Data) -> Part:
    """The test part."""
    found = source(data).load(data, "test")
    return found.first(data.limit, data) if isinstance(found, Text) else take(found, data.limit)


def sample_of(part: Part, data: Data, number: int = 0) -> Part:
    """One recording, or a text of hardly more than one window."""
    return part.first(1, data) if isinstance(part, Text) else part.select(torch.tensor([number]))


def evaluated(data: Data) -> Data:
    """The same for an evaluation, which stops at what cannot be read: its figures are of all recordings."""
    return replace(data, unreadable="stop")


def outputs_of(data: Data) -> int:
    """What a network for the data tells apart: classes, or token ids."""
    found = source(data)
    return vocabulary_of(data) if found.of_text else found.num_classes


def labels_of(recordings: Recordings) -> Tensor:
    """Labels `[N]` int64 of recordings that have them."""
    if recordings.labels is None:
        raise ValueError("The recordings have no labels; pack them with labels to train on them.")
    return recordings.labels


def check_labels(labels: Tensor, classes: int, name: str) -> Tensor:
    """Labels `[N]` of a data set as they are; checked once, since a wrong one would be a target without a class.

    Raises:
        ValueError: one is not from 0 to classes - 1.
    """
    if len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"{name} has labels from {low} to {high}; expected 0 to {classes - 1}. Check the data set's files."
            )
    return labels


def held_out(labels: Tensor, count: int) -> Tensor:
    """Mask `[N]` of `count` recordings, as equally many of each class as `count` allows; always the same ones."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    # rank of each recording within its class, in the random order; the lowest ranks of all classes are held out
    by_class = order[torch.argsort(labels[order], stable=True)]
    sizes = labels.bincount()
    rank = torch.empty_like(order)
    rank[by_class] = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order[torch.argsort(rank[order], stable=True)][:count]] = True
    return mask


def generator_for(seed: int, stream: int, epoch: int, batch: int = 0, part: int | None = None) -> torch.Generator:
    """A generator that depends on these numbers alone; part: of a batch that is divided."""
    numbers = (seed, stream, epoch, batch) if part is None else (seed, stream, epoch, batch, part)
    mixed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]))


def batches_of(
    part: Part,
    data: Data,
    batch_size: int,
    device: torch.device,
    augment: Augment | None = None,
    split: Split = WHOLE,
) -> AnyBatches:
    """The batches of recordings, images or a text; split: how those of a training are divided.

    Raises:
        ValueError: as `Batches` and `TextBatches`.
    """
    if isinstance(part, Text):
        check_augment(Augment() if augment is None else augment, data)
        return TextBatches(part, data, batch_size, device, split)
    return Batches(part, data, batch_size, device, augment, split)


class Batches:
    """Inputs and targets of recordings, batch by batch.

    Inputs: frames `[T, B, 2, H, W]` of events, or images `[B, C, H, W]`, channels-last in memory, or sequences
    `[T, B, N]`; float32. Targets: labels `[B]`, or shares of the classes `[B, K]` where samples may be mixed.

    Raises:
        ValueError: an augmentation that the data cannot have, such as RandAugment of events; a label that is no class.
    """

    def __init__(
        self,
        recordings: Recordings,
        data: Data,
        batch_size: int,
        device: torch.device,
        augment: Augment | None = None,
        split: Split = WHOLE,
    ) -> None:
        self.augment = Augment() if augment is None else augment
        self.split = split
        check_augment(self.augment, data)
        self.data = data
        self.batch_size = batch_size
        self._classes = source(data).num_classes
        self.labels = check_labels(labels_of(recordings), self._classes, data.name).to(device)
        self.inputs: EventFrames | NormalImages | StreamedImages | SequenceInputs
        if isinstance(recordings, Images):
            self.inputs = NormalImages(recordings, source(data), device, self.augment)
        elif isinstance(recordings, ImageFiles):
            self.inputs = StreamedImages(recordings, data, source(data), device, self.augment)
        elif isinstance(recordings, Sequences):
            self.inputs = SequenceInputs(recordings, data, device, self.augment)
        else:
            self.inputs = EventFrames(recordings, data, device, self.augment)

    @property
    def recordings(self) -> int:
        """The number of recordings (or images)."""
        return len(self.labels)

    @property
    def steps(self) -> int:
        """Time steps; of sequences at most so many."""
        return self.inputs.longest if isinstance(self.inputs, SequenceInputs) else self.data.T

    @property
    def tokenizer(self) -> None:
        """None: no text."""
        return None

    @property
    def tokens_per_character(self) -> None:
        """None: no text."""
        return None

    def __len__(self) -> int:
        """The number of batches of an epoch of training; without `drop_last` the last one may be smaller."""
        whole = self.recordings // self.batch_size
        return whole if self.data.drop_last else -(-self.recordings // self.batch_size)

    def samples(self, batch: int) -> int:
        """Recordings in a batch of training."""
        return min(self.batch_size, self.recordings - batch * self.batch_size)

    def count(self, batch: int) -> int:
        """What a batch of training is divided by rows of: its recordings."""
        return self.samples(batch)

    def in_order(self, first: int = 0, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """All recordings as they are, with their labels; or of every so many batches one, from `first` on."""
        parts = torch.arange(self.recordings).split(self.batch_size)[first::step]
        if isinstance(self.inputs, EventFrames):
            yield from self.inputs.beside(self._events_in_order(self.inputs, parts))
            return
        plain = self.inputs.plain(parts) if isinstance(self.inputs, StreamedImages) else map(self.inputs.plain, parts)
        for indices, inputs in zip(parts, plain, strict=True):
            yield inputs, self._labels(indices)

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The augmented batches of an epoch from batch `start` on, in the random order of that epoch.

        Where batches are divided, each comes in this process's parts, one after the other.
        Making a batch of images does not wait for the device, so it is made while the step before is computed; batches
        of events are made by another thread.

        Raises:
            ValueError: `drop_last` leaves none.
        """
        if len(self) == 0:
            raise ValueError(
                f"{self.data.name} has {self.recordings} recordings to train on, and Data.drop_last leaves no batch of "
                f"{self.batch_size}. Lower --batch-size, or pass --data.no-drop-last."
            )
        members = torch.randperm(self.recordings, generator=generator_for(seed, _ORDER, epoch)).split(self.batch_size)

        def drawn(batch: int) -> tuple[Tensor, torch.Generator]:
            return members[batch], generator_for(seed, _AUGMENT, epoch, batch)

        batches = range(start, len(self))
        if isinstance(self.inputs, StreamedImages):
            parts = ((*drawn(batch), rows) for batch in batches for rows in self._rows(batch))
            yield from self.inputs.batches(parts, self.labels, epoch)
            return
        if isinstance(self.inputs, EventFrames):
            with closing(self.inputs.beside(self._events_shuffled(self.inputs, batches, drawn, epoch))) as coming:
                for number, made in enumerate(coming):
                    place, part = divmod(number, len(self.split.own))
                    if part == 0:  # told when a batch is taken, not when it is made ahead
                        self.inputs.tell(members[batches[place]])
                    yield made
            return
        for batch in batches:
            if isinstance(self.inputs, NormalImages):
                for rows in self._rows(batch):  # each draws the numbers of the whole batch
                    indices, generator = drawn(batch)
                    yield self.inputs.batch(indices, self.labels, epoch, generator, rows)
            else:
                indices, generator = drawn(batch)
                changed = self.inputs.batch(indices, self._labels(indices), self._classes, generator)
                yield from self._divided(batch, *changed)

    def _events_in_order(self, inputs: EventFrames, parts: Sequence[Tensor]) -> Generator[tuple[Tensor, Tensor]]:
        with closing(inputs.reads(parts)) as reads:
            for indices, read in zip(parts, reads, strict=True):
                yield inputs.plain(read), self._labels(indices)

    def _events_shuffled(
        self, inputs: EventFrames, batches: range, drawn: Callable[[int], tuple[Tensor, torch.Generator]], epoch: int
    ) -> Generator[tuple[Tensor, Tensor]]:
        """drawn: the recordings of a batch, and its generator."""
        skips = self.data.unreadable == "skip"
        with closing(inputs.reads((drawn(batch)[0] for batch in batches), skips)) as reads:
            for batch, read in zip(batches, reads, strict=True):
                indices, generator = drawn(batch)
                frames, labels = inputs.augmented(read, generator), self._labels(inputs.shown(indices))
                yield from self._divided(batch, *mix(frames, labels, self._classes, self.augment, epoch, generator))

    def _rows(self, batch: int) -> list[Tensor | None]:
        """This process's parts of a batch; None: all of it."""
        if self.split.whole:
            return [None]
        return [self.split.rows(self.count(batch), part) for part in self.split.own]

    def _divided(self, batch: int, inputs: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs `[T, B, ...]` and their targets in this process's parts."""
        for rows in self._rows(batch):
            if rows is None:
                yield inputs, targets
                continue
            (place,) = sent([rows], inputs.device)
            yield _rows_of(inputs, place), targets.index_select(0, place)

    def _labels(self, indices: Tensor) -> Tensor:
        """Those of recordings `[B]`, numbers on the host."""
        (place,) = sent([indices], self.labels.device)
        return self.labels.index_select(0, place)


def _rows_of(inputs: Tensor, rows: Tensor) -> Tensor:
    """Some recordings of `[T, B, ...]`; frames stay channels-last, step by step."""
    part = inputs.index_select(1, rows)
    if inputs.ndim != 5:
        return part
    folded = part.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    return folded.unflatten(0, part.shape[:2])


AnyBatches = Batches | TextBatches
"""Of recordings, images and sequences, or of a text."""
