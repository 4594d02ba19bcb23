"""How a map is cut into the tiles of depthwise.cu."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

LANES = 32
COLUMNS = 4
_SHARED = 48 * 1024
_WARPS = 8


class Tile(NamedTuple):
    """Work of a block: `down` x `across` strips of `rows` x COLUMNS places, shared by `warps` warps."""

    rows: int
    down: int
    across: int
    warps: int

    @property
    def size(self) -> tuple[int, int]:
        """Places, down and across."""
        return self.rows * self.down, COLUMNS * self.across

    def counts(self, height: int, width: int) -> tuple[int, int]:
        """Tiles of a map, down and across."""
        tall, wide = self.size
        return -(-height // tall), -(-width // wide)

    def staged(self, kernel: int) -> int:
        """Places that are copied to shared memory: the tile with the edge that the kernel reaches."""
        tall, wide = self.size
        return (tall + kernel - 1) * (wide + kernel - 1)


@lru_cache(maxsize=1024)
def choose(kernel: int, height: int, width: int, itemsize: int) -> Tile:
    """The tile of least estimated work for maps [height, width].

    Counted are instructions of a warp: per place computed, the products and what goes with them, also for places
    outside the map; per place copied, its share of loads and of the bandwidth of the second-level cache.

    Args:
        kernel: side of the kernel.
        itemsize: bytes of an element.
    """

    def work(tile: Tile) -> float:
        down, across = tile.counts(height, width)
        tall, wide = tile.size
        return down * across * (tall * wide * (1.2 * kernel * kernel + 4) + 2 * itemsize * 2 * tile.staged(kernel))

    def fits(tile: Tile) -> bool:
        return (tile.staged(kernel) + kernel * kernel) * LANES * itemsize <= _SHARED

    sizes = ((r, d, a) for r, d, a in product((7, 8), range(1, 5), range(1, 9)) if d * a <= 2 * _WARPS)
    shared = (
        Tile(r, d, a, d * a if d * a <= _WARPS else d * a // 2) for r, d, a in sizes if d * a <= 8 or d * a % 2 == 0
    )
    return min((tile for tile in shared if fits(tile)), key=work)
