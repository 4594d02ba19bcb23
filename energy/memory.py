"""What a memory word costs: SRAM by its size, DRAM, or a flat price per byte.

Estimates of M. Horowitz, "Computing's energy problem", ISSCC 2014 (45 nm): a 64-bit access to 8 KiB, 32 KiB and 1 MiB
of SRAM takes 10, 20 and 100 pJ. In between, and down to (0, 0), the cost is interpolated linearly; above, it is
constant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

KINDS = ("sram", "dram", "flat")
SRAM: tuple[tuple[float, float], ...] = ((8192, 10.0), (32768, 20.0), (1048576, 100.0))
"""(bytes, pJ per access), estimated: Horowitz, ISSCC 2014."""


@dataclass(frozen=True)
class Memory:
    """Memories of a machine.

    Attributes:
        kind: "sram" (cost by size), "dram" or "flat" (cost per byte, whatever the size).
        sram: (bytes, pJ per access), sizes ascending.
        access_bits: width of the access that `sram` and `dram_pj` price; a word costs its share.
        word_bytes: bytes of a word: a weight, an accumulator, a state, an event.
        fifo_words: size of the memory that holds events on their way.
        size_bytes: one size for all memories; None: each layer has memories of its own size.
        flat_pj_per_byte: 3.12 pJ/bit, as STEP and SpikingJelly's simple model use it.
        dram_pj: pJ per access, the lower end of 1.3-2.6 nJ (Horowitz, ISSCC 2014, quoted from the literature).

    Raises:
        ValueError: a value is negative, not finite or zero where it must not be, or sizes do not ascend.
    """

    kind: str = "sram"
    sram: Sequence[Sequence[float]] = SRAM
    access_bits: int = 64
    word_bytes: float = 4
    fifo_words: int = 1000
    size_bytes: float | None = None
    flat_pj_per_byte: float = 24.96
    dram_pj: float = 1300.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"memory: kind is {self.kind!r}; expected one of {', '.join(KINDS)}")
        for name in ("access_bits", "word_bytes", "fifo_words", "size_bytes"):
            value = getattr(self, name)
            if value is not None and not (_finite(value) and value > 0):
                raise ValueError(f"memory: {name} is {value!r}; expected a finite number above zero")
        for name in ("flat_pj_per_byte", "dram_pj"):
            if not (_finite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"memory: {name} is {getattr(self, name)!r}; expected a finite number, zero or larger")
        rows = [list(row) for row in self.sram]
        if not rows or any(len(row) != 2 or not all(map(_finite, row)) or min(row) < 0 for row in rows):
            raise ValueError(f"memory: sram is {self.sram!r}; expected pairs [bytes, pJ per access] of finite numbers")
        sizes = [row[0] for row in rows]
        if sizes[0] <= 0 or any(b <= a for a, b in pairwise(sizes)):
            raise ValueError(f"memory: the sizes of sram, {sizes}, do not ascend from above zero")

    def word_pj(self, words: float) -> float:
        """pJ to read or write one word of a memory of that many words."""
        if self.kind == "flat":
            return self.word_bytes * self.flat_pj_per_byte
        share = self.word_bytes * 8 / self.access_bits
        if self.kind == "dram":
            return share * self.dram_pj
        size = words * self.word_bytes if self.size_bytes is None else self.size_bytes
        sizes, costs = zip(*self.sram, strict=True)
        return share * float(np.interp(size, (0.0, *sizes), (0.0, *costs)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `sram` as lists."""
        return {**asdict(self), "sram": [list(row) for row in self.sram]}


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
