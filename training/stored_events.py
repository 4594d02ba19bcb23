"""Event stores as batches: words are read from the mapped file, and binned there or on the GPU.

On a CPU the words are counted where they lie. For a GPU threads gather those of the next batches while a step is
computed; they are sent as they are, a third of the bytes of events, and become frames there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.store_parts import StorePart, open_parts
from spikeloom.training.faults import DataFaultError
from spikeloom.training.frame_store import bin_events
from spikeloom.training.one_copy import sent
from spikeloom.training.recipe import Data

Words = tuple[Tensor, Tensor, Tensor]
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")

STORES = (
    "train.events and test.events, and perhaps validation.events, each packed by `spikeloom data pack`; or --root "
    "FILE, one .events file that was packed with --test."
)
"""What a root of event stores holds."""
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
    return found


class StoredEvents:
    """The recordings of a part of a store, on request, on a device."""

    def __init__(self, part: StorePart, data: Data, device: torch.device) -> None:
        self.part, self.data, self.device = part, data, device

    def reads(self, batches: Iterable[Tensor]) -> Iterator[Tensor | Words]:
        """What `frames` and `events` take, for the recordings `[B]` of each batch: for a GPU, read batches ahead."""
        return iter(batches) if self.device.type == "cpu" else ahead(self._words, batches, _READERS)

    def frames(self, given: Tensor | Words) -> Tensor:
        """Counts (or 0 and 1) `[T, B, 2, H, W]` of recordings, as `bin_events` of them.

        Raises:
            DataFaultError: the file is damaged.
        """
        if self.device.type != "cpu" or not isinstance(given, Tensor):
            return bin_events(self.events(given), self.data)
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
        words = self._words(given) if isinstance(given, Tensor) else given
        return self.part.unpack(*sent(words, self.device))

    def _words(self, indices: Tensor) -> Words:
        return _read(lambda: self.part.words(indices))


def ahead(make: Callable[[_Item], _Made], items: Iterable[_Item], count: int) -> Iterator[_Made]:
    """`map`, where as many threads make the next `count` while the caller is busy with the last."""
    waiting: deque[Future[_Made]] = deque()
    threads = ThreadPoolExecutor(count, thread_name_prefix="read")
    try:
        for item in items:
            waiting.append(threads.submit(make, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def _read(read: Callable[[], _Made]) -> _Made:
    try:
        return read()
    except ValueError as error:
        raise DataFaultError(f"{error} A run goes on with --resume, with a whole file in its place.") from error
