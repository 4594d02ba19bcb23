"""The packed event store: all recordings of a data set in one memory-mapped file, 8 bytes an event, no frames.

    pack_store("train.events", NMNIST(root, "train"), 34, 34)
    store = EventStore("train.events")
    frames = store.frames(range(64), T=8, end_us=300_000)      # [T, B, 2, H, W], straight from the file

The operating system keeps what is read often in memory, for all worker processes together. The format is described in
`store_format`, writing in `store_writer`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spikeloom.datasets.events import Events
from spikeloom.datasets.frames import frames_by_time
from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.store_format import EVENT_BYTES, HEADER_BYTES, from_words, read_header, read_tables
from spikeloom.kernels.backends import choose
from spikeloom.kernels.events import cpu

_LONGEST_US = 2**40
_AGAIN = "Pack it again: `spikeloom data pack`."


class EventStore(Dataset[tuple[Events, int]]):
    """A store as a data set of (Events, label); it opens the file anew in every worker process.

    labels: `[B]` int64. classes: names of the labels, perhaps none. height, width: of the sensor.
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
                f"There is no file {self.path}{'; its packing was begun but not finished' if begun else ''}. {_AGAIN}"
            )
        with self.path.open("rb") as file:
            try:
                header = read_header(file.read(HEADER_BYTES), self.path.stat().st_size)
                file.seek(header.tables)
                self._tables = read_tables(file.read(header.tables_bytes), header)
            except ValueError as error:
                raise ValueError(f"{self.path} is not a whole event store: {error}. {_AGAIN}") from error
        self.height, self.width, self._count = header.height, header.width, header.events
        self.classes = self._tables.classes
        self.labels = torch.from_numpy(self._tables.labels)
        self._words: Any = None

    def __len__(self) -> int:
        return len(self._tables.labels)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Recording {index} of {len(self)}.")
        index %= len(self)
        return self.select([index])[0], int(self.labels[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_words": None}  # the mapping is not sent to workers

    @property
    def event_counts(self) -> Tensor:
        """Events of each recording, `[B]` int64."""
        return torch.from_numpy(np.diff(self._tables.offsets))

    def words(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What to send to a GPU: words `[N]` int64 of the recordings `[K]`, their offsets `[K + 1]` and starts `[K]`.

        `from_words` turns them into `PackedEvents` on their device.
        """
        chosen = self._chosen(indices)
        offsets = self._tables.offsets
        parts = [np.asarray(self._map()[offsets[i] : offsets[i + 1]]) for i in chosen]
        words = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64, copy=False))
        lengths = torch.tensor([0, *(len(part) for part in parts)])
        return words, lengths.cumsum(0), torch.from_numpy(self._tables.starts[chosen])

    def select(self, indices: Sequence[int] | Tensor, device: torch.device | str = "cpu") -> PackedEvents:
        """The recordings `indices` in that order with their labels, unpacked on `device`.

        Raises:
            ValueError: events off the sensor or out of order; the file is damaged.
        """
        chosen = self._chosen(indices)
        words, offsets, starts = (column.to(device) for column in self.words(chosen))
        labels = self.labels[torch.from_numpy(chosen)].to(device)
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
        begin, end = self._tables.offsets[chosen], self._tables.offsets[chosen + 1]
        mapped = self._map()
        if end_us is None:
            last = [int(mapped[stop - 1]) >> 31 if stop > first else 1 for first, stop in zip(begin, end, strict=True)]
            spans = torch.tensor(last, dtype=torch.int64).clamp(min=1)
        else:
            spans = torch.full((len(chosen),), end_us, dtype=torch.int64)
        bounds = torch.from_numpy(begin), torch.from_numpy(end)
        frames, strays = cpu.count_words(mapped.ctypes.data, *bounds, 0, spans, T, self.height, self.width)
        if strays:
            raise ValueError(f"{self.path}: {strays} events are off the sensor; the file is damaged. {_AGAIN}")
        return frames

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[str]:
        """Read everything and compare with the checksums; what is wrong, a line a recording, or nothing."""
        wrong = []
        words, offsets = self._map(), self._tables.offsets
        for index in range(len(self)):
            part = words[offsets[index] : offsets[index + 1]]
            if zlib.crc32(part.tobytes()) != int(self._tables.checksums[index]):
                wrong.append(
                    f"recording {index} (bytes {HEADER_BYTES + offsets[index] * EVENT_BYTES:,} to "
                    f"{HEADER_BYTES + offsets[index + 1] * EVENT_BYTES:,}): its events do not agree with their checksum"
                )
            if progress is not None:
                progress(index + 1, len(self))
        return wrong

    def _chosen(self, indices: Sequence[int] | Tensor) -> Any:
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(chosen) and (int(chosen.min()) < 0 or int(chosen.max()) >= len(self)):
            raise IndexError(f"Recordings {chosen.tolist()[:8]} were asked for; expected 0 to {len(self) - 1}.")
        return chosen

    def _map(self) -> Any:
        """All words `[N]`, mapped; read-only."""
        if self._words is None:
            if self._count:
                shape = (self._count,)
                self._words = np.memmap(self.path, dtype="<i8", mode="r", offset=HEADER_BYTES, shape=shape)
            else:
                self._words = np.zeros(0, np.int64)  # nothing cannot be mapped
        return self._words
