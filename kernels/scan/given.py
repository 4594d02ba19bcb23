"""One call of the selective scan as the kernels see it: its tensors, their sizes, and the gradients it is to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeloom.kernels.scan.reference import real_of

INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
"""The tensors of the operator, in its order."""


@dataclass(frozen=True)
class Scan:
    """u, delta and z `[b, d, L]`; A `[d, n]`; B and C `[d, n]` or `[b, G, n, L]`, of one G; D and bias `[d]`; start
    `[b, d, n]`. All but u, delta, z, B and C are of the type `real`."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    start: Tensor | None
    softplus: bool
    reversed_channels: int

    @property
    def real(self) -> torch.dtype:
        """Type of the arithmetic."""
        return real_of(self.u)

    @property
    def batch(self) -> int:
        return self.u.shape[0]

    @property
    def channels(self) -> int:
        return self.u.shape[1]

    @property
    def length(self) -> int:
        return self.u.shape[2]

    @property
    def d_state(self) -> int:
        return self.A.shape[1]

    @property
    def groups(self) -> int:
        """Groups of channels that share a B or a C."""
        return next((t.shape[1] for t in (self.B, self.C) if t.ndim == 4), 1)

    @property
    def tensors(self) -> dict[str, Tensor | None]:
        """By the names of the operator."""
        given = (self.u, self.delta, self.A, self.B, self.C, self.D, self.z, self.bias, self.start)
        return dict(zip(INPUTS, given, strict=True))

    def states(self) -> Tensor:
        """Uninitialised `[b, d, n]`."""
        return self.u.new_empty((self.batch, self.channels, self.d_state), dtype=self.real)

    def sequence(self) -> Tensor:
        """Uninitialised `[b, d, L]`, contiguous however u lies."""
        return self.u.new_empty(self.u.shape)

    def rows(self, matrix: Tensor, order: Callable[[Tensor], Tensor]) -> Tensor:
        """B or C in the type of the arithmetic; one that changes from token to token with its axes in another order."""
        return (order(matrix) if matrix.ndim == 4 else matrix).to(self.real)


class Gradients:
    """Where a kernel writes gradients: of each wanted input, or parts of it along the first axis that are to be added.

    Args:
        scan: the call.
        wanted: "1" or "0" for each of `INPUTS`.
    """

    def __init__(self, scan: Scan, wanted: str) -> None:
        self._scan = scan
        self._names = [name for name, w in zip(INPUTS, wanted, strict=True) if w == "1"]
        self._kept: dict[str, Tensor] = {}

    def keep(self, name: str, make: Callable[[], Tensor]) -> Tensor | None:
        """A tensor for the gradient of an input, or None if nobody wants it."""
        if name in self._names:
            self._kept[name] = make()
        return self._kept.get(name)

    def finished(self, order: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The gradients; `order` gives those of B and C `[b, G, n, L]` their order of axes."""
        found = []
        for name in self._names:
            part, like = self._kept[name], self._scan.tensors[name]
            assert like is not None
            if name not in ("u", "delta", "z", "initial_state"):
                part = part.sum(0)
            if name in ("B", "C") and like.ndim == 4:
                part = order(part)
            found.append(part.to(like.dtype).contiguous())
        return found
