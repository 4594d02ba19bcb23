"""Batches made beside the training step: by a thread of their own, on a stream of their own.

A batch takes some fifty launches and copies from the host, which take Python longer than a short step takes a GPU. The
thread that sends steps has time for neither: it replays a graph, and waits for the step before. So another one makes
the next batches meanwhile, on another stream, on which it may wait without waiting for a step.

A graph may be captured meanwhile in the mode "thread_local" (`CudaRecorder.record`), which forbids nothing to other
threads. Memory is taken from a capture's pool for the streams of that capture alone, of which this is none.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from inspect import GEN_RUNNING, getgeneratorstate

import torch
from torch import Tensor

from spikeloom.training.threads import beside

Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""
BATCHES = 2
"""Made ahead of the one that is asked for: one that takes longer than a step is made up for by the next."""


class Aside:
    """A thread, and a stream of a GPU, beside the current ones; on other devices nothing.

    Tensors that were made before on the device can be read on it.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device, priority=-1)  # short work, for which the host waits
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def made(self, batches: Generator[Batch]) -> Generator[Batch]:
        """The batches, in their order; what the current stream is given after one finds it there.

        Where the caller stops, the thread ends with what it is making. Its errors are raised here.
        """
        stream = self._stream
        if stream is None:
            yield from batches
            return
        try:
            with closing(beside(lambda: _next(batches, stream), BATCHES)) as coming:
                for batch, done in coming:
                    main = torch.cuda.current_stream(stream.device)
                    main.wait_event(done)  # for this batch; `wait_stream` would wait for those after it, too
                    for tensor in batch:
                        tensor.record_stream(main)  # a later batch does not get its memory before the step has read it
                    yield batch
        finally:
            if getgeneratorstate(batches) != GEN_RUNNING:  # Ctrl-C, pressed again, ends the wait for the thread
                batches.close()
            # what they are made of may be freed now, and batches that nobody takes may still be read from it
            torch.cuda.current_stream(stream.device).wait_stream(stream)


def _next(batches: Iterator[Batch], stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event] | None:
    """In the thread, which begins on the default stream of the first GPU: a batch and when it is done."""
    torch.cuda.set_stream(stream)  # to go back behind it, as `stream` does, would take memory of the first GPU
    batch = next(batches, None)
    if batch is None:
        return None
    done = torch.cuda.Event()
    done.record()
    return batch, done
