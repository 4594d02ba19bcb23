"""Fan-out: how many terms (input element, tap, output element) an input element of a linear operation takes part in.

Per dimension a table says which input position meets which tap at an output that exists; padding makes no terms. The
fan-out of a position is the product over dimensions of its admissible taps, times the outputs per group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Table = NDArray[np.int64]


@lru_cache(maxsize=4096)
def conv_table(size: int, kernel: int, stride: int, pad: int, dilation: int, out: int) -> Table:
    """[size, kernel]: 1 where input position p meets tap k of a convolution, output (p + pad - k dilation) / stride."""
    n = np.arange(size)[:, None] + pad - np.arange(kernel)[None] * dilation
    return ((n >= 0) & (n % stride == 0) & (n // stride < out)).astype(np.int64)


@lru_cache(maxsize=4096)
def transposed_table(size: int, kernel: int, stride: int, pad: int, dilation: int, out: int) -> Table:
    """[size, kernel] of a transposed convolution: output p stride - pad + k dilation."""
    o = np.arange(size)[:, None] * stride - pad + np.arange(kernel)[None] * dilation
    return ((o >= 0) & (o < out)).astype(np.int64)


@lru_cache(maxsize=4096)
def adaptive_table(size: int, out: int) -> Table:
    """[size, out]: 1 where input position p lies in window i of an adaptive pool."""
    p, i = np.arange(size)[:, None], np.arange(out)[None]
    return ((p >= i * size // out) & (p < -(-(i + 1) * size // out))).astype(np.int64)


@dataclass(frozen=True)
class Space:
    """The spatial part of a convolution or pool.

    Attributes:
        tables: [size, taps] per dimension, over the tensor that the operation reads.
        live: [size] per dimension: 0 where the tensor it reads is explicit zero padding.
    """

    tables: tuple[Table, ...]
    live: tuple[Table, ...]

    def fan(self) -> NDArray[np.int32]:
        """Admissible taps of every position, flat [prod(size)]."""
        total = np.ones(1, np.int64)
        for table in self.tables:
            total = np.multiply.outer(total, table.sum(1)).reshape(-1)
        return total.astype(np.int32)

    def dense(self) -> int:
        """Sum of the fan-out over the positions that are not padding."""
        return math.prod(int(t[m.astype(bool)].sum()) for t, m in zip(self.tables, self.live, strict=True))

    def numel(self) -> int:
        """Positions that are not padding."""
        return math.prod(int(m.sum()) for m in self.live)

    def weighted(self, taps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Fan-out with a weight per channel and tap, [C, *kernel] -> [C, prod(size)]."""
        result = taps
        for table in self.tables:  # contracts the first remaining tap axis, appends its position axis
            result = np.tensordot(result, table, axes=([1], [1]))
        return result.reshape(taps.shape[0], -1)


def live(size: int, pads: tuple[int, int] = (0, 0)) -> Table:
    """1 for every position but the explicit zero padding on either side."""
    mask = np.ones(size, np.int64)
    mask[: pads[0]] = 0
    mask[size - pads[1] :] = 0
    return mask


def nonzero_per_input(weight: Tensor, groups: int, transposed: bool) -> NDArray[np.int64]:
    """Non-zero weights of every (input channel, tap): [C_in, *kernel] of a convolution's weight."""
    present = (weight != 0).cpu().numpy()
    if transposed:  # [C_in, C_out / groups, *kernel]
        return np.asarray(present.sum(1, dtype=np.int64))
    out, inner, *kernel = present.shape  # [C_out, C_in / groups, *kernel]
    grouped = present.reshape(groups, out // groups, inner, *kernel).sum(1, dtype=np.int64)
    return np.asarray(grouped.reshape(groups * inner, *kernel))


def all_present(weight: Tensor) -> bool:
    """Is no weight zero?"""
    return int(torch.count_nonzero(weight)) == weight.numel()


def spread(values: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """One number per dimension, as torch's arguments of length 1 or `dims` mean it."""
    given = (values,) if isinstance(values, int) else tuple(values)
    return given * dims if len(given) == 1 else given
