"""Event stores as batches: words are read from the mapped file, and binned there or on the GPU.

On a CPU the words are counted where they lie. For a GPU threads gather those of the next batches while a step is
computed, into pinned memory; they are sent as they are, a third of the bytes of events, in one copy, and become frames
there.

A recording that is damaged stops a batch; or, where such are skipped, another one of the batch is shown in its place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.store_format import split_words
from spikeloom.datasets.store_parts import StorePart, open_parts
from spikeloom.training.faults import DataFaultError, refuse, stand_ins
from spikeloom.training.frame_store import bin_events
from spikeloom.training.recipe import Data
from spikeloom.training.threads import ahead

_Made = TypeVar("_Made")

STORES = (
    "train.events and test.events, and perhaps validation.events, each packed by `spikeloom data pack`; or --root "
    "FILE, one .events file that was packed with --test."
)
"""What a root of event stores holds."""
RECORDINGS = "recordings that are read together"
"""What messages speak of."""
_THEN = (
    "Pack the file again (`spikeloom data pack`). A run goes on with --resume, with a whole file in its place, or with "
    "--data.unreadable skip, which trains on the next readable recording of the batch instead; an evaluation always "
    "stops."
)
_NONE_LEFT = (
    "None is left to show in their place. Pack the file again (`spikeloom data pack`); a run goes on with --resume."
)
_LOOKED_AT, _CUT = 64, 0.1  # recordings; the share of their events that may be cut off without a word
_READERS = 4  # threads, and batches read ahead: a disk, or checksums, may take longer for a batch than a step takes


def load_store(root: str, data: Data, part: str) -> StorePart:
    """A part of packed recordings, in the file.

    Raises:
        ValueError: as `open_parts`; or recordings that begin, by their own clock, behind data.duration_us, so that
            their frames would be empty.
    """
    found = open_parts(root)[part]
    starts, events = found.store.starts[found.numbers], found.store.event_counts[found.numbers]
    late = ((starts > data.duration_us) & (events > 0)).nonzero().squeeze(1)
    if data.split == "time" and len(late):
        first = int(late[0])
        raise ValueError(
            f"{len(late)} of {len(found)} recordings of {found.store.path} begin behind data.duration_us="
            f"{data.duration_us:,} us, the first of them (recording {int(found.numbers[first])}) at "
            f"{int(starts[first]):,} us: all their frames would be empty. Pack recordings whose times count from their "
            "start, or pass a longer --data.duration-us, or --data.split number."
        )
    if data.split == "time" and part == "train":
        _tell_cut(found, data.duration_us)
    return found


def _tell_cut(part: StorePart, end_us: int) -> None:
    """Warn where the frames lack a good part of the events, which end_us cuts off."""
    some = part.numbers[torch.linspace(0, len(part) - 1, min(len(part), _LOOKED_AT)).long()]
    late, events = int(part.store.later_than(some, end_us).sum()), int(part.store.event_counts[some].sum())
    if late > _CUT * events:
        warnings.warn(
            f"{late / events:.0%} of the events of {part.store.path} ({len(some)} recordings looked at) come behind "
            f"data.duration_us={end_us:,} us and are in no frame. Pass a longer --data.duration-us, or --data.split "
            "number.",
            UserWarning,
            stacklevel=3,
        )


class Words(NamedTuple):
    """What `StorePart.gathered` gave, on the host, of so many recordings."""

    values: Tensor
    recordings: int


class StoredEvents:
    """The recordings of a part of a store, on request, on a device."""

    def __init__(self, part: StorePart, data: Data, device: torch.device) -> None:
        self.part, self.data, self.device = part, data, device
        self._lost: dict[int, str] = {}  # recordings that were read and are damaged; threads only add to it

    def reads(self, batches: Iterable[Tensor], skips: bool = False) -> Iterator[Tensor | Words]:
        """What `frames` and `events` take, for the recordings `[B]` of each batch: for a GPU, read batches ahead.

        skips: other recordings in the places of damaged ones, as in `readable`, whose errors these are.
        """
        if self.device.type == "cpu":
            return (self.readable(indices, skips) for indices in batches)
        return ahead(lambda indices: self._words(indices, skips), batches, _READERS)

    def readable(self, indices: Tensor, skips: bool) -> Tensor:
        """The recordings `[B]`; skips: with the next readable one of these in the place of one that is damaged.

        Raises:
            DataFaultError: one is damaged and not to be skipped, or all are; nothing can be read of the file.
        """
        lost = self.learn(indices)
        if lost and (not skips or len(lost) == len(indices)):
            refuse([*lost.values()], len(indices), RECORDINGS, _NONE_LEFT if skips else _THEN)
        return self.shown(indices)

    def learn(self, indices: Tensor) -> dict[int, str]:
        """`known`, when recordings `[B]` have been compared with their checksums, of which each is read once.

        Raises:
            DataFaultError: nothing can be read of the file.
        """
        new = [index for index in indices.tolist() if index not in self._lost]
        wrong = _read(lambda: self.part.damaged(torch.tensor(new, dtype=torch.int64)))
        self._lost |= {new[place]: says for place, says in wrong.items()}
        return self.known(indices)

    def known(self, indices: Tensor) -> dict[int, str]:
        """Which of recordings `[B]` that were read are damaged, by their places there, and how."""
        lost = self._lost
        return {place: lost[index] for place, index in enumerate(indices.tolist()) if index in lost} if lost else {}

    def shown(self, indices: Tensor) -> Tensor:
        """Recordings `[B]` that were read, another one in the place of each that is damaged."""
        lost = self.known(indices)
        return indices[stand_ins(lost, len(indices))] if lost else indices

    def frames(self, given: Tensor | Words) -> Tensor:
        """Counts (or 0 and 1) `[T, B, 2, H, W]` of recordings, as `bin_events` of them.

        Raises:
            DataFaultError: the file is damaged.
        """
        if self.device.type != "cpu" or not isinstance(given, Tensor):
            words, offsets, starts = self._sent(given)
            if self.data.split == "time":
                return bin_events(self.part.unpack(words, offsets, starts), self.data)
            counts = self.part.number_frames(words, offsets, self.data.T)
            return counts > 0 if self.data.encoding == "binary" else counts
        T = self.data.T
        if self.data.split == "number":
            counts = _read(lambda: self.part.frames_by_number(given, T))
        else:
            counts = _read(lambda: self.part.frames_by_time(given, T, self.data.duration_us))
        return counts > 0 if self.data.encoding == "binary" else counts

    def events(self, given: Tensor | Words) -> PackedEvents:
        """The events of recordings.

        Raises:
            DataFaultError: the file is damaged.
        """
        if self.device.type == "cpu" and isinstance(given, Tensor):
            return _read(lambda: self.part.events(given))
        return self.part.unpack(*self._sent(given))

    def _sent(self, given: Tensor | Words) -> tuple[Tensor, Tensor, Tensor]:
        """Words, offsets and starts on the device, in one copy, for which the host does not wait."""
        values, count = self._words(given) if isinstance(given, Tensor) else given
        return split_words(values.to(self.device, non_blocking=True), count)

    def _words(self, indices: Tensor, skips: bool = False) -> Words:
        indices, pin = self.readable(indices, skips), self.device.type == "cuda"
        with torch.cuda.device(self.device) if pin else nullcontext():  # a thread begins on the first GPU
            return Words(_read(lambda: self.part.gathered(indices, pin=pin)), len(indices))


def _read(read: Callable[[], _Made]) -> _Made:
    try:
        return read()
    except (ValueError, OSError) as error:
        raise DataFaultError(f"{error} A run goes on with --resume, with a whole file in its place.") from error
