"""Watchers of neurons: told of every program that runs, on any backend, with its inputs and outputs.

A fused kernel shows an operator watcher nothing of what it computed, and the reference shows it every scalar step. The
energy counter needs neither but the layer of neurons itself, so `weave` and `norm_weave` report here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from torch import Tensor

from spikeloom.kernels.program import Program


class Watcher(Protocol):
    """What a watcher offers."""

    def paused(self) -> AbstractContextManager[None]:
        """While a program runs, its own operations are not for the watcher."""

    def saw_neurons(
        self,
        program: Program,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        affine: tuple[Tensor, Tensor] | None,
    ) -> None:
        """A program ran over inputs and outputs [T, *neurons].

        `affine`: with a fused normalisation, the scale and shift that turned the first input into the neuron's.
        """


WATCHERS: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of every program that runs inside."""
    WATCHERS.append(watcher)
    try:
        yield
    finally:
        WATCHERS.remove(watcher)
