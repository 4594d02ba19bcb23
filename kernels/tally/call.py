"""What every backend gets: a checked call, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from spikeloom.kernels.tally.table import Table


@dataclass(slots=True, eq=False)
class Tally:
    """Exact counts per row.

    Attributes:
        events: non-zero elements, int64 [rows].
        terms: sum of their fan-out, int64 [rows]; the tensor `events` itself where no fan-out was given.
        pruned: sum of their weights in the second map, int64 [rows]; None without one.
        levels: sum of the fan-out per slot of the table, int64 [rows, SLOTS]; None without a table.
    """

    events: Tensor
    terms: Tensor
    pruned: Tensor | None
    levels: Tensor | None


class Call(NamedTuple):
    """A checked call. x is contiguous [rows, outer, inner] of a float type; all tensors are contiguous on its device.

    Attributes:
        fan: int32 [outer] if `fan_outer`, else [inner].
        pruned: int32 [outer, inner] if `pruned_full`, else [inner].
        scale, shift: [outer] if `affine_outer`, else [inner]; float64 for float64 x, else float32.
    """

    x: Tensor
    rows: int
    outer: int
    inner: int
    table: Table | None
    fan: Tensor | None
    fan_outer: bool
    pruned: Tensor | None
    pruned_full: bool
    scale: Tensor | None
    shift: Tensor | None
    affine_outer: bool
