"""Recordings of N channels over time, of different lengths, in one array: a batch is one gather, whatever its size.

Padding is added when a batch is drawn, so an hour of speech takes the memory of its own steps alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

KINDS = (torch.uint8, torch.int16, torch.float16, torch.float32)


@dataclass(frozen=True, eq=False)
class Sequences:
    """R recordings; recording i is the steps `offsets[i]` to `offsets[i + 1]` of `values`, at least one.

    values: `[S, N]`, S = steps of all recordings, N = channels; uint8 or int16 (counts), float16 or float32.
    offsets: `[R + 1]` int64, rising from 0 to S, on the device of values.
    labels: `[R]` int64, the class of each, or None.
    groups: `[R]` int64, what a split may hold out as a whole, such as the speaker, or None.
    names: of the classes; may be empty.
    """

    values: Tensor
    offsets: Tensor
    labels: Tensor | None = None
    groups: Tensor | None = None
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values, offsets = self.values, self.offsets
        if values.dtype not in KINDS or values.ndim != 2 or not values.shape[1]:
            raise ValueError(
                f"values is {values.dtype} {list(values.shape)}; expected [S, N] with N of 1 or more, in uint8, int16, "
                "float16 or float32."
            )
        if offsets.dtype != torch.int64 or offsets.ndim != 1 or len(offsets) < 2 or offsets.device != values.device:
            raise ValueError(
                f"offsets is {offsets.dtype} {list(offsets.shape)} on {offsets.device}; expected int64 [R + 1] with "
                f"one recording or more, on {values.device} as the values."
            )
        if int(offsets[0]) != 0 or int(offsets[-1]) != len(values) or bool((offsets.diff() < 1).any()):
            raise ValueError(
                f"offsets are {offsets[:6].tolist()} ... {int(offsets[-1])}; expected numbers that rise from 0 to the "
                f"{len(values)} steps of values, a step or more per recording."
            )
        self._check_labels()

    def _check_labels(self) -> None:
        for name, column in (("labels", self.labels), ("groups", self.groups)):
            if column is not None and (column.dtype != torch.int64 or column.shape != (len(self),)):
                raise ValueError(f"{name} is {column.dtype} {list(column.shape)}; expected int64 [{len(self)}].")
        if self.labels is None:
            return
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or (self.names and high >= len(self.names)):
            below = f" to {len(self.names) - 1}, one for each of the names" if self.names else " upwards"
            raise ValueError(f"labels are from {low} to {high}; expected numbers from 0{below}.")

    @classmethod
    def from_list(
        cls,
        recordings: Sequence[Tensor],
        labels: Sequence[int] | Tensor | None = None,
        groups: Sequence[int] | Tensor | None = None,
        names: Sequence[str] = (),
    ) -> Self:
        """Join recordings, each `[T_i, N]` of one dtype; labels and groups, if given, one per recording."""
        kinds = {f"{list(recording.shape[1:])} {recording.dtype}" for recording in recordings}
        if len(kinds) != 1:
            raise ValueError(
                f"from_list got {len(recordings)} recordings, of {sorted(kinds)} per step; expected one recording or "
                "more, all [T, N] of one N and one type."
            )
        values = torch.cat(list(recordings))
        ends = torch.tensor([0, *(len(recording) for recording in recordings)], device=values.device).cumsum(0)
        first, second = (None if column is None else _whole(torch.as_tensor(column)) for column in (labels, groups))
        return cls(values, ends, first, second, tuple(names))

    def __len__(self) -> int:
        """Number of recordings R."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Tensor:
        """Values of a recording `[T_i, N]`, a view."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"Recording {index} of {len(self)}.")
        index %= len(self)
        return self.values[int(self.offsets[index]) : int(self.offsets[index + 1])]

    @property
    def lengths(self) -> Tensor:
        """Steps of each recording, `[R]` int64."""
        return self.offsets.diff()

    @property
    def channels(self) -> int:
        """Number of channels N."""
        return self.values.shape[1]

    def select(self, indices: Sequence[int] | Tensor) -> Self:
        """The recordings `indices` `[K]` in that order (repeats allowed), labels and groups included; a copy."""
        chosen = self._chosen(indices)
        lengths = self.lengths[chosen]
        offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        moved = torch.repeat_interleave(self.offsets[chosen] - offsets[:-1], lengths)
        source = torch.arange(len(moved), device=moved.device) + moved
        labels, groups = (
            None if column is None else column[chosen.to(column.device)] for column in (self.labels, self.groups)
        )
        return replace(self, values=self.values[source], offsets=offsets, labels=labels, groups=groups)

    def batch(self, indices: Sequence[int] | Tensor, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """The recordings `indices` as `(x [T, B, N] float32, lengths [B] int64)`, zeros behind the end of shorter ones.

        T is the longest of the batch, or `steps`: longer recordings are then cut, and their lengths with them.

        Raises:
            ValueError: no indices, or steps below 1. IndexError: an index out of range.
        """
        chosen = self._chosen(indices)
        if steps is not None and steps < 1:
            raise ValueError(f"steps is {steps}; expected 1 or more, or None for the longest recording of the batch.")
        lengths = self.lengths[chosen]
        T = int(lengths.max()) if steps is None else steps
        lengths = lengths.clamp(max=T)
        step = torch.arange(T, device=chosen.device)[:, None]
        places = (self.offsets[chosen] + step).clamp(max=len(self.values) - 1)  # [T, B]
        x = self.values[places].float().masked_fill_((step >= lengths)[..., None], 0.0)
        return x, lengths

    def to(self, device: torch.device | str) -> Self:
        """The same recordings, labels and groups included, on another device."""
        labels, groups = (None if column is None else column.to(device) for column in (self.labels, self.groups))
        return replace(
            self, values=self.values.to(device), offsets=self.offsets.to(device), labels=labels, groups=groups
        )

    def _chosen(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Indices `[K]` on the device of the values; a tensor that lies there already is not looked at (no wait)."""
        given = torch.as_tensor(indices)
        if given.ndim != 1 or not len(given) or given.dtype == torch.bool or given.is_floating_point():
            raise ValueError(
                f"indices are {given.dtype} {list(given.shape)}; expected whole numbers [K] of one recording or more "
                "(of a mask, mask.nonzero()[:, 0])."
            )
        if given.device.type == "cpu" and bool(((given < 0) | (given >= len(self))).any()):
            raise IndexError(
                f"Recordings {int(given.min())} to {int(given.max())} were asked for; expected numbers from 0 to "
                f"{len(self) - 1}."
            )
        return given.to(self.values.device, torch.int64)


def _whole(column: Tensor) -> Tensor:
    """Whole numbers as int64; others as they are, to be refused rather than cut."""
    return column if column.is_floating_point() or column.dtype == torch.bool else column.long()
