"""Counting by loops over input elements and kernel taps, straight from the definition of a term. Slow, on purpose.

A term is an (input element, output element, weight element) whose input lies inside the unpadded input. Nothing here
comes from the counter, and no convolution is computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """Geometry of a convolution: per dimension, but for the last three."""

    stride: Index
    pad: Index
    dilation: Index
    out: Index
    groups: int = 1
    transposed: bool = False

    def meets(self, p: Index, tap: Index) -> bool:
        """Does input position p meet this tap at an output that exists?"""
        for d in range(len(p)):
            if self.transposed:
                o = p[d] * self.stride[d] - self.pad[d] + tap[d] * self.dilation[d]
                if not 0 <= o < self.out[d]:
                    return False
                continue
            n = p[d] + self.pad[d] - tap[d] * self.dilation[d]
            if n < 0 or n % self.stride[d] or n // self.stride[d] >= self.out[d]:
                return False
        return True


@dataclass(frozen=True)
class Count:
    """What one operation did in one step of one sample."""

    sop: int
    sop_nonzero_weight: int
    sop_unit: int
    events: int
    dense_exact: int


def positions(sizes: Sequence[int]) -> Iterator[Index]:
    """All indices of an array."""
    return product(*(range(size) for size in sizes))


def conv_terms(shape: Index, weight: Array, geometry: Conv) -> dict[Index, list[float]]:
    """Input element (c, *p) -> the weights of its terms.

    The weight is [C_out, C_in / groups, *kernel], or [C_in, C_out / groups, *kernel] if transposed.
    """
    c_in, groups, kernel = shape[0], geometry.groups, weight.shape[2:]
    c_out = weight.shape[1] * groups if geometry.transposed else weight.shape[0]
    terms: dict[Index, list[float]] = {}
    for c in range(c_in):
        group = c // (c_in // groups)
        outputs = range(group * (c_out // groups), (group + 1) * (c_out // groups))
        for p in positions(shape[1:]):
            found = []
            for tap in positions(kernel):
                if geometry.meets(p, tap):
                    for o in outputs:
                        if geometry.transposed:
                            found.append(weight[(c, o - outputs[0], *tap)])
                        else:
                            found.append(weight[(o, c - group * (c_in // groups), *tap)])
            terms[(c, *p)] = found
    return terms


def linear_terms(shape: Index, weight: Array) -> dict[Index, list[float]]:
    """Input element (*rows, i) -> the weights of its terms; weight [out, in]."""
    return {p: [weight[o, p[-1]] for o in range(weight.shape[0])] for p in positions(shape)}


def count_terms(x: Array, terms: dict[Index, list[float]], quantum: float = 1.0) -> Count:
    """Count one step of one sample x; a value of k quanta is k unit spikes, rounded per element."""
    sop = nonzero = unit = events = dense = 0
    for index, weights in terms.items():
        dense += len(weights)
        if x[index] == 0:
            continue
        events += 1
        sop += len(weights)
        nonzero += sum(w != 0 for w in weights)
        unit += round(abs(float(x[index])) / quantum) * len(weights)
    return Count(sop, nonzero, unit, events, dense)


@dataclass(frozen=True)
class Product:
    """What one product of two activations did in one step of one sample."""

    sop: int
    sop_a: int
    sop_b: int
    events: int
    events_b: int
    dense_exact: int


def count_matmul(a: Array, b: Array) -> Product:
    """a [..., m, k] @ b [..., k, n] with broadcast leading axes; events are those of the broadcast operands."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    wide_a = np.broadcast_to(a, (*lead, *a.shape[-2:]))
    wide_b = np.broadcast_to(b, (*lead, *b.shape[-2:]))
    (m, k), n = a.shape[-2:], b.shape[-1]
    both = first = second = total = 0
    for index in positions(lead):
        for i, j, o in product(range(m), range(k), range(n)):
            left, right = wide_a[(*index, i, j)] != 0, wide_b[(*index, j, o)] != 0
            both += left and right
            first += left
            second += right
            total += 1
    return Product(int(both), int(first), int(second), int((wide_a != 0).sum()), int((wide_b != 0).sum()), total)


def windows(size: int, kernel: int, stride: int, pad: int, out: int, dilation: int = 1) -> list[list[int]]:
    """Input positions of each window of a pool; those on padding are left out."""
    return [[p for t in range(kernel) if 0 <= (p := o * stride - pad + t * dilation) < size] for o in range(out)]


def adaptive_windows(size: int, out: int) -> list[list[int]]:
    """Input positions of each window of an adaptive pool."""
    return [list(range(math.floor(o * size / out), math.ceil((o + 1) * size / out))) for o in range(out)]


def count_pool(x: Array, per_dimension: Sequence[list[list[int]]]) -> tuple[int, int]:
    """(non-zero input, window) incidences of x [C, *size], and all of them."""
    found = total = 0
    for c in range(x.shape[0]):
        for window in product(*per_dimension):
            for p in product(*window):
                total += 1
                found += int(x[(c, *p)] != 0)
    return found, total
