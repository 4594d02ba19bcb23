"""The values an operand took, as slots: small integers by themselves, other values hashed into a fixed table.

A slot number stands for a magnitude. Slots 1 ... 64 are the integers 1 ... 64; slots 65 ... 511 hold other magnitudes,
found by their float64 bits; slot 0 is not used. The table keeps its values from call to call, so a run over many
batches counts levels without asking the device for anything in between. All backends search alike and can share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SLOTS = 512
SMALL = 64
"""Integers up to this one are their own slots."""
FIRST, ROOM = SMALL + 1, SLOTS - SMALL - 1
"""First hashed slot, and how many there are."""
OVERFLOW, NON_FINITE, NEGATIVE, BEYOND_ONE = range(4)
"""Entries of `Table.flags`."""
MULTIPLIER = 0x9E3779B97F4A7C15
"""2^64 / golden ratio (Knuth, TAOCP 3, 6.4): the high bits of the product spread neighbouring bit patterns."""


@dataclass(eq=False)
class Table:
    """Distinct magnitudes that one layer's operand took so far.

    Attributes:
        keys: int64 [SLOTS], float64 bits of the magnitude in a hashed slot; 0 is an empty slot.
        flags: int32 [4], 1 where it happened: more distinct values than slots (OVERFLOW), a value that is not finite,
            a value below zero, a value other than 0 and +1.
    """

    keys: Tensor
    flags: Tensor

    @classmethod
    def new(cls, device: torch.device | str) -> Table:
        """An empty table on a device."""
        return cls(
            torch.zeros(SLOTS, dtype=torch.int64, device=device), torch.zeros(4, dtype=torch.int32, device=device)
        )

    def values(self) -> list[tuple[int, float]]:
        """Used hashed slots and their magnitudes, by slot. Waits for the device."""
        keys = self.keys.cpu()
        used = keys.nonzero().flatten()
        return list(zip(used.tolist(), keys[used].view(torch.float64).tolist(), strict=True))

    def magnitudes(self) -> Tensor:
        """The magnitude of every slot, float64 [SLOTS] on the CPU; 0 for slots without one. Waits for the device."""
        found = self.keys.cpu().view(torch.float64).clone()
        found[1:FIRST] = torch.arange(1, FIRST, dtype=torch.float64)
        return found


def home(bits: int) -> int:
    """The slot where the search for a magnitude starts; it goes on upwards, from the last slot to the first hashed one.

    Args:
        bits: float64 bit pattern of the magnitude.
    """
    return FIRST + ((bits * MULTIPLIER % 2**64 >> 32) * ROOM >> 32)


def insert(keys: list[int], bits: int) -> int:
    """The slot of a magnitude in `keys` [SLOTS], which takes it in if it is new; 0 if there is no room."""
    start = home(bits) - FIRST
    for probe in range(ROOM):
        slot = FIRST + (start + probe) % ROOM
        if keys[slot] in (0, bits):
            keys[slot] = bits
            return slot
    return 0
