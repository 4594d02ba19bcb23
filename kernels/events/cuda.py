"""Events into bins on a GPU (events.cu): one launch for the bins' edges and zeros, one that counts; none waits.

A thread reads 5 bytes for each of eight events (13 for voxels) and adds 1 to the frames, which lie in the L2 cache or
close to it, by integer atomics: results do not depend on their order. Times are read at the edges alone, by a warp for
each. Voxels are sums of whole multiples of 1 / 2^20 in int64, which 2^43 events in one voxel would have to overflow; a
third launch makes them float32.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from spikeloom.kernels.cuda.launch import Kernel

UNIT_BITS = 20
"""Voxel weights are whole multiples of 2^-20."""
_THREADS = 256
_EACH = 8
_MOST_BLOCKS = 2048
"""Of the launch that writes zeros, whose threads go on to the next ones."""
_LAYOUT = "9Q5q7i"
_RULES = ("time", "window", "share", "slice", "number")
_NAMES = ("BY_TIME", "BY_WINDOW", "BY_SHARE", "BY_SLICE", "BY_NUMBER")


class Rule(NamedTuple):
    """How recordings are divided into T bins.

    kind: "time", equal parts of start ... end, both included (end None: each recording's last event, or one microsecond
        behind start if that is later); "window", size microseconds each, from 0; "share", equal counts; "slice", equal
        counts with the remainder in the last; "number", size events each.
    """

    kind: str
    start: int = 0
    end: int | None = None
    size: int = 0


class Columns(NamedTuple):
    """Recordings on a GPU: t `[N]` int64, x, y `[N]` int16, p `[N]` uint8, offsets `[B + 1]` int64, of one sensor."""

    t: Tensor
    x: Tensor
    y: Tensor
    p: Tensor
    offsets: Tensor
    height: int
    width: int


def count(given: Columns, T: int, rule: Rule) -> Tensor:
    """Counts `[T, B, 2, H, W]` int32.

    Raises:
        ValueError: 2^31 edges of bins or more.
    """
    call = _Call(given, T, rule, T)
    counts = torch.empty((T, call.B, 2, given.height, given.width), dtype=torch.int32, device=given.t.device)
    call.edges(counts)
    call.each("events_count")
    return counts


def voxels(given: Columns, T: int, start: int, end: int | None) -> Tensor:
    """Voxels `[T, B, H, W]` float32 at T instants from start to end (None: as in `Rule`).

    Raises:
        ValueError: 2^31 instants or more.
    """
    call = _Call(given, T, Rule("time", start, end), max(T - 1, 1))
    size = (T, call.B, given.height, given.width)
    sums = torch.empty(size, dtype=torch.int64, device=given.t.device)
    grid = torch.empty(size, dtype=torch.float32, device=given.t.device)
    call.edges(sums, grid)
    call.each("events_voxels")
    call.launch("events_grid", -(-sums.numel() // _THREADS))
    return grid


class _Call:
    """Columns without gaps, the edges of their bins, and the kernels' argument."""

    def __init__(self, given: Columns, T: int, rule: Rule, parts: int) -> None:
        self.B = len(given.offsets) - 1
        self.count = self.B * (T + 1)
        if self.count >= 2**31:
            raise ValueError(
                f"{self.B} recordings in T={T} bins have {self.count:,} edges; on a GPU expected fewer than 2^31: bin "
                "fewer recordings at once."
            )
        self.columns = [column.contiguous() for column in given[:5]]
        t, x, y, p, _ = self.columns
        self.found = torch.empty(self.count + self.B, dtype=torch.int64, device=t.device)  # edges and spans
        self.wide = not ((t.data_ptr() | x.data_ptr() | y.data_ptr()) % 16 or p.data_ptr() % _EACH)
        self.numbers = (rule.start, rule.end or 0, rule.size)
        self.sizes = (self.B, T, given.height, given.width, _RULES.index(rule.kind), int(rule.end is not None), parts)

    def edges(self, cells: Tensor, grid: Tensor | None = None) -> None:
        """Find the edges, and set the cells to 0."""
        t, offsets, x, y, p = (self.columns[i].data_ptr() for i in (0, 4, 1, 2, 3))
        edges = self.found.data_ptr()
        made = (edges, edges + 8 * self.count, cells.data_ptr(), 0 if grid is None else grid.data_ptr())
        words = cells.numel() * cells.element_size() // 4
        self.argument = (t, offsets, x, y, p, *made, len(self.columns[0]), words, *self.numbers, *self.sizes)
        zeros, searched = -(-words // (4 * _THREADS)), -(-32 * self.count // _THREADS)
        self.launch("events_edges", min(max(zeros, searched), _MOST_BLOCKS))

    def each(self, name: str) -> None:
        """A thread for `_EACH` events."""
        self.launch(name, -(-len(self.columns[0]) // (_EACH * _THREADS)))

    def launch(self, name: str, blocks: int) -> None:
        """Nothing without a block: no events, or no recordings."""
        if blocks and self.B:
            _kernel(name, self.wide, self.found.device.index, blocks)(self.argument)


@lru_cache(maxsize=1024)
def _kernel(name: str, wide: bool, device: int, blocks: int) -> Kernel:
    return Kernel(source(wide), name, device, blocks, _THREADS, _LAYOUT)


@lru_cache(maxsize=2)
def source(wide: bool) -> str:
    """CUDA source. wide: the columns lie where eight events can be loaded at once."""
    values = {"THREADS": _THREADS, "EACH": _EACH, "UNIT_BITS": UNIT_BITS, "WIDE": int(wide)}
    values |= {name: number for number, name in enumerate(_NAMES)}
    defined = "".join(f"#define {name} {value}\n" for name, value in values.items())
    return defined + Path(__file__).with_name("events.cu").read_text()
