"""The packed event store: all recordings of a data set in one memory-mapped file, 8 bytes an event, no frames.

    pack_store("train.events", NMNIST(root, "train"), 34, 34)
    store = EventStore("train.events")
    frames = store.frames(range(64), T=8, end_us=300_000)      # [T, B, 2, H, W], straight from the file

The operating system keeps what is read often in memory, for all worker processes together. The format is described in
`store_format`, writing in `store_writer`.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spikeloom.datasets.events import Events
from spikeloom.datasets.frames import frames_by_count, frames_by_time, number_edges, time_edges
from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.store_format import (
    EVENT_BYTES,
    HEADER_BYTES,
    MAX_SPAN_US,
    from_words,
    read_header,
    read_tables,
    split_words,
)
from spikeloom.kernels.backends import choose
from spikeloom.kernels.events import cpu

_LONGEST_US = 2**40
_AGAIN = "Pack it again: `spikeloom data pack`."


class EventStore(Dataset[tuple[Events, int]]):
    """A store as a data set of (Events, label); it opens the file anew in every worker process.

    labels: `[B]` int64. classes: names of the labels, perhaps none. height, width: of the sensor. parts: of the split
    that was recorded, `[B]` uint8, numbers in `store_format.PARTS`; None: none was.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a store; header and tables are checked, the events are not read (see `verify`).

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not a store, or a damaged or cut-off one.
        """
        self.path = Path(path)
        if not self.path.is_file():
            begun = self.path.with_name(self.path.name + ".part").is_file()
            raise FileNotFoundError(
                f"There is no file {self.path}{'; its packing was begun but not finished' if begun else ''}. "
                f"{_AGAIN if begun else 'Pack one: `spikeloom data pack`.'}"
            )
        with self.path.open("rb") as file:
            try:
                head = file.read(HEADER_BYTES)
                header = read_header(head, os.fstat(file.fileno()).st_size)
                file.seek(header.tables)
                tables = file.read(header.tables_bytes)
                self._tables = read_tables(tables, header)
            except ValueError as error:
                raise ValueError(f"{self.path} is not a whole event store: {error}. {_AGAIN}") from error
        self.height, self.width, self._count = header.height, header.width, header.events
        self.classes = self._tables.classes
        self.labels = torch.from_numpy(self._tables.labels)
        self.starts = torch.from_numpy(self._tables.starts)
        self.parts = None if self._tables.parts is None else torch.from_numpy(self._tables.parts)
        self._mark = head + tables[-4:]  # with the tables' checksum
        self._maps: list[tuple[mmap.mmap | None, Any]] = []
        self._sound = np.zeros(len(self), bool)  # compared with their checksums

    def __len__(self) -> int:
        return len(self._tables.labels)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Recording {index} of {len(self)}.")
        index %= len(self)
        return self.select([index])[0], int(self.labels[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_maps": []}  # the mapping is not sent to workers

    @property
    def event_counts(self) -> Tensor:
        """Events of each recording, `[B]` int64."""
        return torch.from_numpy(np.diff(self._tables.offsets))

    def marks(self, indices: Sequence[int] | Tensor) -> Tensor:
        """What those of the recordings `[K]` that have events are known by: number and checksum of their events."""
        chosen = self._chosen(indices)
        counts, checksums = np.diff(self._tables.offsets)[chosen], self._tables.checksums[chosen].astype(np.int64)
        return torch.from_numpy((counts << 32 | checksums)[counts > 0])

    def later_than(self, indices: Sequence[int] | Tensor, end_us: int) -> Tensor:
        """How many events of the recordings `[K]` come behind a time of their own clocks, `[K]` int64."""
        words, offsets = self._map(), self._tables.offsets
        found = []
        for number in self._chosen(indices):
            begin, end = int(offsets[number]), int(offsets[number + 1])
            time = max(0, end_us + 1 - int(self._tables.starts[number]))  # the first that is too late
            found.append(0 if time > MAX_SPAN_US else end - begin - int(np.searchsorted(words[begin:end], time << 31)))
        return torch.tensor(found, dtype=torch.int64)

    def words(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What to send to a GPU: words `[N]` int64 of the recordings `[K]`, their offsets `[K + 1]` and starts `[K]`.

        `from_words` turns them into `PackedEvents` on their device.
        """
        chosen = self._chosen(indices)
        return split_words(self.gathered(chosen), len(chosen))

    def gathered(self, indices: Sequence[int] | Tensor, *, pin: bool = False) -> Tensor:
        """`words`, one after the other in one tensor `[N + 2 K + 1]` int64 (`split_words`), which one copy sends.

        pin: in memory from which a GPU copies while the host does something else.
        """
        chosen = self._chosen(indices)
        mapped, first, last = self._map(), self._tables.offsets[chosen], self._tables.offsets[chosen + 1]
        lengths = last - first
        size = int(lengths.sum()) + 2 * len(chosen) + 1
        if pin:
            found = torch.empty(size, dtype=torch.int64, pin_memory=True)
        else:
            found = torch.from_numpy(np.empty(size, np.int64))  # NumPy asks for large pages
        words, offsets, starts = (part.numpy() for part in split_words(found, len(chosen)))
        parts = [mapped[begin:end] for begin, end in zip(first, last, strict=True)]
        np.concatenate([np.zeros(0, np.int64), *parts], out=words)
        offsets[0], starts[:] = 0, self._tables.starts[chosen]
        np.cumsum(lengths, out=offsets[1:])
        return found

    def select(self, indices: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> PackedEvents:
        """The recordings `indices` in that order with their labels, unpacked on `device`.

        Raises:
            ValueError: events off the sensor or out of order; the file is damaged.
        """
        chosen = self._chosen(indices)
        labels = self.labels[torch.from_numpy(chosen)].to(device)
        if torch.device(device).type == "cpu" and choose("auto", "cpu") == "cpu":
            begin, end = (torch.from_numpy(self._tables.offsets[numbers]) for numbers in (chosen, chosen + 1))
            where, size = self._map().ctypes.data, (self.height, self.width)
            columns, wrong = cpu.unpack(where, begin, end, torch.from_numpy(self._tables.starts[chosen]), *size)
            if not wrong:  # what is wrong is said below
                offsets = torch.cat((begin.new_zeros(1), (end - begin).cumsum(0)))
                return PackedEvents.trusted(*columns, offsets, *size, labels)
        words, offsets, starts = (column.to(device) for column in self.words(chosen))
        try:
            return from_words(words, offsets, starts, self.height, self.width, labels)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error} The file is damaged. {_AGAIN}") from error

    def frames(self, indices: Sequence[int] | Tensor, T: int, *, end_us: int | None = None) -> Tensor:
        """`frames_by_time` of recordings counted from their first event: `[T, B, 2, H, W]` int32.

        On a machine with a C++ compiler the words are counted where they lie in the file, without a copy.
        """
        chosen = self._chosen(indices)
        if not 1 <= T < 2**20 or (end_us is not None and not 1 <= end_us <= _LONGEST_US):
            raise ValueError(f"T is {T} and end_us {end_us}; expected 1 to 2**20 - 1, and 1 to {_LONGEST_US:,}.")
        if choose("auto", "cpu") != "cpu":
            words, offsets, starts = self.words(chosen)
            packed = from_words(words, offsets, torch.zeros_like(starts), self.height, self.width, None)
            return frames_by_time(packed, T, end_us=end_us)
        first, last = self._tables.offsets[chosen], self._tables.offsets[chosen + 1]
        if end_us is None:
            mapped = self._map()
            ends = [int(mapped[stop - 1]) >> 31 if stop > begin else 1 for begin, stop in zip(first, last, strict=True)]
            spans = torch.tensor(ends, dtype=torch.int64).clamp(min=1)
        else:
            spans = torch.full((len(chosen),), end_us, dtype=torch.int64)
        return self._counted(self._edges(chosen, time_edges(spans, T)))

    def clock_frames(self, indices: Sequence[int] | Tensor, T: int, end_us: int) -> Tensor:
        """`frames_by_time` with `end_us` of recordings by their own clock, as `select` gives them; counted as there."""
        chosen = self._chosen(indices)
        if choose("auto", "cpu") != "cpu":
            return frames_by_time(self.select(chosen), T, end_us=end_us)
        times = time_edges(torch.full((len(chosen),), end_us, dtype=torch.int64), T)
        return self._counted(self._edges(chosen, times - torch.from_numpy(self._tables.starts[chosen])[:, None]))

    def number_frames(self, indices: Sequence[int] | Tensor, T: int) -> Tensor:
        """`frames_by_count` of recordings, the last frame taking the remainder; counted as in `frames`."""
        chosen = self._chosen(indices)
        if choose("auto", "cpu") != "cpu":
            return frames_by_count(self.select(chosen), T, remainder="last")
        first, last = (torch.from_numpy(self._tables.offsets[numbers]) for numbers in (chosen, chosen + 1))
        return self._counted(first[:, None] + number_edges((last - first)[:, None], T, None, "last"))

    def _edges(self, chosen: Any, times: Tensor) -> Tensor:
        """Numbers `[B, K]` of the first words at or after times `[B, K]`, from the first event of each recording."""
        begin, end = (torch.from_numpy(self._tables.offsets[numbers]) for numbers in (chosen, chosen + 1))
        return cpu.word_edges(self._map().ctypes.data, begin, end, times.contiguous())

    def _counted(self, edges: Tensor) -> Tensor:
        """Counts `[T, B, 2, H, W]` of the words between edges `[B, T + 1]`."""
        frames, strays = cpu.count_words(self._map().ctypes.data, edges, self.height, self.width)
        if strays:
            raise ValueError(f"{self.path}: {strays} events are off the sensor; the file is damaged. {_AGAIN}")
        return frames

    def check(self, indices: Sequence[int] | Tensor) -> None:
        """Compare recordings with their checksums, each once.

        Raises:
            ValueError: one is damaged; says which.
        """
        wrong = [*self.damaged(indices).values()]
        if wrong:
            raise ValueError(f"{self.path}: {wrong[0]}. The file is damaged. {_AGAIN}")

    def damaged(self, indices: Sequence[int] | Tensor) -> dict[int, str]:
        """What is wrong with which of the recordings `[K]`, by their places there; a sound one is read for it once.

        Raises:
            ValueError: the file is another one than was opened, or was cut off since.
        """
        chosen, wrong = self._chosen(indices), {}
        for place in np.flatnonzero(~self._sound[chosen]).tolist():
            index = int(chosen[place])
            if line := self._compared(index):
                wrong[place] = line
            else:
                self._sound[index] = True
        return wrong

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Read everything and compare with the checksums; what is wrong, a line a recording, or nothing."""
        wrong = []
        for index in range(len(self)):
            if line := self._compared(index):
                wrong.append(line)
            if progress is not None:
                progress(index + 1, len(self))
        return wrong

    def _compared(self, index: int) -> str:
        """What is wrong with a recording's events, or nothing."""
        first, last = (int(place) for place in self._tables.offsets[index : index + 2])
        place = f"bytes {HEADER_BYTES + first * EVENT_BYTES:,} to {HEADER_BYTES + last * EVENT_BYTES:,}"
        if zlib.crc32(self._map()[first:last]) != int(self._tables.checksums[index]):
            return f"recording {index} ({place}): its events do not agree with their checksum"
        if self._misplaced(first, last):
            return f"recording {index} ({place}): it has events off the sensor or out of order"
        return ""

    def _misplaced(self, first: int, last: int) -> bool:
        """Whether a word of a recording could not have been packed, whatever its checksum."""
        if choose("auto", "cpu") == "cpu":
            return cpu.misplaced(self._map().ctypes.data, first, last, self.height, self.width) > 0
        words = np.asarray(self._map()[first:last])
        off = ((words >> 1 & 0x7FFF) >= self.width) | ((words >> 16 & 0x7FFF) >= self.height)
        return bool(off.any()) or bool((np.diff(words >> 31, prepend=0) < 0).any())

    def _chosen(self, indices: Sequence[int] | Tensor) -> Any:
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and (int(chosen.min()) < 0 or int(chosen.max()) >= len(self)):
            raise IndexError(f"Recordings {chosen.tolist()[:8]} were asked for; expected 0 to {len(self) - 1}.")
        return chosen

    def _map(self) -> Any:
        """All words `[N]`, mapped; read-only.

        Raises:
            ValueError: the file is another one than was opened, or was cut off since.
        """
        if not self._maps:
            # Threads may come here at once: the first map counts for all, and none is taken away, since kernels read
            # where it lies.
            file = self._mapped() if self._count else None  # nothing cannot be mapped
            self._maps.append((file, np.frombuffer(file or b"", "<i8", self._count, HEADER_BYTES if file else 0)))
        file, words = self._maps[0]
        if file is not None and file.size() < len(file):  # to read on would end the process
            raise ValueError(f"{self.path} was cut off while it was in use. {_AGAIN}")
        return words

    def _mapped(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            head, size = file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
            file.seek(max(0, size - 4))
            if head + file.read(4) != self._mark:
                raise ValueError(f"{self.path} is another file than the store that was opened. Open it again.")
            return mmap.mmap(file.fileno(), HEADER_BYTES + self._count * EVENT_BYTES, access=mmap.ACCESS_READ)
