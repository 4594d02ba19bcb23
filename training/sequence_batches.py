"""Sequences as batches `[T, B, N]` on the device: T is that of the longest of a batch, or the same for all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spikeloom.datasets.sequence_augment import mask_and_mix
from spikeloom.datasets.sequence_warp import draw_warp
from spikeloom.datasets.sequences import Sequences
from spikeloom.training.one_copy import sent
from spikeloom.training.recipe import Augment, Data

FIELDS = ("steps", "speaker", "manifolds")
"""Fields of `Data` that are of sequences alone."""
SHARED = ("name", "root", "drop_last", "validation", "limit")
CHANGES = ("time_stretch", "channel_stretch", "channel_shift", "time_mask", "channel_mask", "sequence_mix")
"""Fields of `Augment` that are of sequences."""
_ONE_SET = {"speaker": "spoken_digits", "manifolds": "random_manifolds"}


class SequenceInputs:
    """Inputs `[T, B, N]` float32 of recordings, which lie on the device as they are, and what `Augment` does to them.

    Raises:
        ValueError: a channel_mask as wide as the recordings, or, mixed, a time_mask as long as the shortest.
    """

    def __init__(self, recordings: Sequences, data: Data, device: torch.device, augment: Augment) -> None:
        self.data, self.augment = data, augment
        self._lengths = recordings.lengths.cpu()
        self._recordings = recordings.to(device)
        if augment.channel_mask >= recordings.channels:
            raise ValueError(
                f"Augment.channel_mask is {augment.channel_mask}, and {data.name} has {recordings.channels} channels; "
                "expected less."
            )
        shortest = int(self._lengths.min()) if data.steps is None else data.steps  # of a batch, which may be one
        if augment.sequence_mix and augment.time_mask >= shortest:
            raise ValueError(
                f"Augment.time_mask is {augment.time_mask}, and a batch of {data.name} can have {shortest} steps; with "
                "sequence_mix expected less. Lower it, or pass Data.steps for one length."
            )
        own = ("time_stretch", "channel_stretch", "channel_shift")
        masks = () if augment.sequence_mix else ("time_mask", "channel_mask")
        self._changes = {name: getattr(augment, name) for name in (*own, *masks) if getattr(augment, name)}

    @property
    def longest(self) -> int:
        """Most time steps of a batch."""
        return int(self._lengths.max()) if self.data.steps is None else self.data.steps

    def plain(self, indices: Tensor) -> Tensor:
        """The recordings `[B]`, numbers on the host, as they are, with zeros behind their ends."""
        (place,) = sent([indices], self._recordings.values.device)
        return self._recordings.batch(place, self._steps(indices))[0]

    def batch(self, indices: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The recordings `[B]`, changed at random, and their labels `[B]`, or, mixed, shares `[B, classes]`."""
        x = self.plain(indices)
        if self._changes:
            lengths = self._lengths[indices].clamp(max=len(x))
            x = draw_warp(lengths, len(x), x.shape[2], generator, **self._changes).apply(x)
        if not self.augment.sequence_mix:
            return x, labels
        shares = (labels[:, None] == torch.arange(classes, device=labels.device)).to(torch.float32)
        draws = np.random.RandomState(int(torch.randint(2**31, (1,), generator=generator)))
        masks = self.augment.time_mask, self.augment.channel_mask
        mixed, shares = mask_and_mix(x.transpose(0, 1), shares, *masks, draws)
        return mixed.transpose(0, 1).contiguous(), shares

    def _steps(self, indices: Tensor) -> int:
        return int(self._lengths[indices].max()) if self.data.steps is None else self.data.steps


def check_sequences(augment: Augment, data: Data, of_sequences: bool) -> None:
    """Refuse settings of sequences for other data, and the other way round.

    Raises:
        ValueError: they would change nothing.
    """
    plain, unchanged = Data(), Augment()
    foreign = [name for name in vars(plain) if name not in (*FIELDS, *SHARED)] if of_sequences else list(FIELDS)
    if of_sequences:
        foreign += [name for name, only in _ONE_SET.items() if only != data.name]
    idle = [name for name in foreign if getattr(data, name) != getattr(plain, name)]
    if idle:
        what = "sequences" if of_sequences else "no sequences"
        raise ValueError(
            f"{data.name} has {what}, and Data.{', '.join(idle)} changes nothing there; expected the defaults: "
            f"{', '.join(f'{name}={getattr(plain, name)!r}' for name in idle)}. Sequences have {', '.join(FIELDS)}."
        )
    others = [name for name in vars(unchanged) if (name in CHANGES) != of_sequences]
    given = [name for name in others if getattr(augment, name) != getattr(unchanged, name)]
    if given:
        fitting = f"Sequences have {', '.join(CHANGES)}." if of_sequences else "It is of sequences."
        raise ValueError(f"Augment.{', '.join(given)} cannot change {data.name}. {fitting} Switch it off.")
