"""Many recordings in flat columns plus offsets: a whole batch is binned or augmented by a few tensor operations.

A list of B `Events` costs B times the Python overhead of every step; here the overhead does not depend on B.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from spikeloom.datasets.events import Events, check_columns, check_order
from spikeloom.datasets.npy_headers import check_members

_COLUMNS = ("t", "x", "y", "p", "offsets")


@dataclass(frozen=True, eq=False)
class PackedEvents:
    """B recordings of one sensor; recording i is the events `offsets[i]` to `offsets[i + 1]`.

    t, x, y, p: `[N]`, dtypes and units of `Events`, time non-decreasing within each recording.
    offsets: `[B + 1]` int64, from 0 to N.
    labels: `[B]` int64, or None.
    """

    t: Tensor
    x: Tensor
    y: Tensor
    p: Tensor
    offsets: Tensor
    height: int
    width: int
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        offsets, labels = self.offsets, self.labels
        if offsets.dtype != torch.int64 or offsets.ndim != 1 or len(offsets) == 0:
            raise ValueError(f"offsets is {offsets.dtype} {tuple(offsets.shape)}; expected int64 [B + 1].")
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(self.t) or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(f"offsets must rise from 0 to the number of events, {len(self.t)}; given {offsets[:8]}...")
        if labels is not None and (labels.dtype != torch.int64 or labels.shape != (len(self),)):
            raise ValueError(f"labels is {labels.dtype} {tuple(labels.shape)}; expected int64 [{len(self)}].")
        check_columns(self.t, self.x, self.y, self.p, self.height, self.width)
        fresh = torch.zeros(len(self.t) + 1, dtype=torch.bool, device=self.t.device)
        fresh[offsets] = True
        check_order(self.t, fresh=fresh[1:-1])

    @classmethod
    def from_events(cls, recordings: Sequence[Events], labels: Sequence[int] | Tensor | None = None) -> Self:
        """Pack recordings of one sensor size; labels, if given, one per recording."""
        if not recordings:
            raise ValueError("No recordings were given; pack at least one (the sensor size is taken from it).")
        sizes = {(events.height, events.width) for events in recordings}
        if len(sizes) > 1:
            raise ValueError(
                f"The recordings come from sensors of sizes {sorted(sizes)}; expected one (height, width)."
            )
        lengths = torch.tensor([0, *(len(events) for events in recordings)], device=recordings[0].t.device)
        t, x, y, p = (_joined([getattr(events, name) for events in recordings]) for name in ("t", "x", "y", "p"))
        height, width = sizes.pop()
        packed = cls.trusted(t, x, y, p, lengths.cumsum(0), height, width)
        return packed if labels is None else packed.with_labels(labels)

    @classmethod
    def trusted(cls, *fields: Tensor | int | None) -> Self:
        """From columns that were checked before: to read each event again would cost more than to count it."""
        packed = object.__new__(cls)
        names = ("t", "x", "y", "p", "offsets", "height", "width", "labels")
        for name, value in zip(names, (*fields, None)[: len(names)], strict=True):
            object.__setattr__(packed, name, value)
        return packed

    def __len__(self) -> int:
        """The number of recordings B."""
        return self.offsets.shape[0] - 1

    def __getitem__(self, index: int) -> Events:
        if not -len(self) <= index < len(self):
            raise IndexError(f"Recording {index} of {len(self)}.")
        index %= len(self)
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Events(self.t[part], self.x[part], self.y[part], self.p[part], self.height, self.width)

    def __iter__(self) -> Iterator[Events]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> Tensor:
        """Events per recording, `[B]` int64."""
        return self.offsets.diff()

    def recording_index(self) -> Tensor:
        """For each event the number of its recording, `[N]` int64."""
        if self.t.is_cuda:  # repeat_interleave gives each recording to one warp, however long it is
            return torch.searchsorted(self.offsets[1:], torch.arange(len(self.t), device=self.t.device), right=True)
        numbers = torch.arange(len(self), device=self.t.device)
        return torch.repeat_interleave(numbers, self.lengths, output_size=len(self.t))

    def select(self, indices: Sequence[int] | Tensor) -> Self:
        """The recordings `indices` `[K]` in that order (repeats allowed), labels included: a training batch."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.t.device)
        if bool(((chosen < 0) | (chosen >= len(self))).any()):
            raise IndexError(f"Recordings {indices} were asked for; expected numbers from 0 to {len(self) - 1}.")
        lengths = self.lengths[chosen]
        offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        # event j of the result comes from j + (start there - start here)
        moved = torch.repeat_interleave(self.offsets[chosen] - offsets[:-1], lengths)
        source = torch.arange(len(moved), device=self.t.device) + moved
        labels = None if self.labels is None else self.labels[chosen.to(self.labels.device)]
        t, x, y, p = self.t[source], self.x[source], self.y[source], self.p[source]
        return self.trusted(t, x, y, p, offsets, self.height, self.width, labels)

    def with_labels(self, labels: Sequence[int] | Tensor) -> Self:
        """The same recordings with labels `[B]`."""
        labels = torch.as_tensor(labels, dtype=torch.int64)
        if labels.shape != (len(self),):
            raise ValueError(f"labels is {labels.dtype} {tuple(labels.shape)}; expected int64 [{len(self)}].")
        return self.trusted(*(getattr(self, name) for name in (*_COLUMNS, "height", "width")), labels)

    def keep(self, mask: Tensor) -> Self:
        """Only the events where `mask` `[N]` bool is true; all recordings stay, some perhaps empty."""
        offsets = torch.cat((self.offsets[:1], mask.cumsum(0)))[self.offsets]
        t, x, y, p = self.t[mask], self.x[mask], self.y[mask], self.p[mask]
        return self.trusted(t, x, y, p, offsets, self.height, self.width, self.labels)

    def to(self, device: torch.device | str) -> Self:
        """The same recordings, labels included, on another device."""
        t, x, y, p, offsets = (column.to(device) for column in (self.t, self.x, self.y, self.p, self.offsets))
        labels = None if self.labels is None else self.labels.to(device)
        return self.trusted(t, x, y, p, offsets, self.height, self.width, labels)

    def save(self, path: str | Path) -> None:
        """Write an uncompressed .npz; an interrupted write leaves the old file, never half of a new one."""
        path = _npz(path)
        arrays = {name: getattr(self, name).cpu().numpy() for name in _COLUMNS}
        arrays["size"] = np.array([self.height, self.width], dtype=np.int64)
        if self.labels is not None:
            arrays["labels"] = self.labels.cpu().numpy()
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as part:
            try:
                np.savez(part, **arrays)
                part.flush()
                os.fsync(part.fileno())  # the bytes must be on disk before the name points to them
                os.chmod(part.name, 0o644)  # files of tempfile are for their owner alone
                os.replace(part.name, path)
            except BaseException:
                Path(part.name).unlink(missing_ok=True)
                raise

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: a damaged file, or another one.
        """
        path = _npz(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            check_members(path)
            with path.open("rb") as raw, np.lib.npyio.NpzFile(raw, allow_pickle=False) as file:
                arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        except Exception as error:  # of a damaged file these libraries raise nearly anything
            raise ValueError(f"{path} is not a whole .npz file ({error}). Delete it and save it again.") from error
        missing = [name for name in (*_COLUMNS, "size") if name not in arrays]
        if missing:
            raise ValueError(f"{path} lacks {missing}; expected a file written by PackedEvents.save.")
        size = arrays["size"]
        if size.shape != (2,) or size.dtype != torch.int64:
            raise ValueError(f"{path}: size is {size.dtype} {list(size.shape)}; expected int64 [2], height and width.")
        height, width = size.tolist()
        t, x, y, p, offsets = (arrays[name] for name in _COLUMNS)
        try:
            return cls(t, x, y, p, offsets, height, width, arrays.get("labels"))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} holds no packed events: {error}") from error


def _joined(columns: list[Tensor]) -> Tensor:
    return columns[0] if len(columns) == 1 else torch.cat(columns)  # a single recording is not copied


def _npz(path: str | Path) -> Path:
    if Path(path).suffix != ".npz":
        raise ValueError(f"The path is {path}; packed events are stored in a file that ends in .npz.")
    return Path(path)
