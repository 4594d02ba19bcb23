"""What must hold around the capture of a CUDA graph."""

from __future__ import annotations

import gc
from types import TracebackType

import torch


class Guarded:
    """`with Guarded(device), torch.cuda.graph(graph):` nothing spoils the capture, and a failed one spoils nothing.

    Garbage is collected before and not inside: another graph that the collector destroys in the midst of a capture
    makes it invalid. A capture that fails leaves torch's generator of random numbers in the midst of it, and every
    later draw is an error; so the generator gets the state from before, and the thread its stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = torch.cuda.current_device() if device.index is None else device.index

    def __enter__(self) -> None:
        self._generator = torch.cuda.default_generators[self._device]
        self._before, self._main = self._generator.clone_state(), torch.cuda.current_stream(self._device)
        self._collecting = gc.isenabled()
        gc.collect()
        gc.disable()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._collecting:
            gc.enable()
        if kind is not None:
            torch.cuda.set_stream(self._main)
            self._generator.graphsafe_set_state(self._before)
