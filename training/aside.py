"""Batches made beside the training step: on a stream of their own, on which the host may wait.

A copy of small tensors from the host, or a histogram, makes the host wait for what the stream was given before. On the
stream of the training that is the step before, and the GPU has nothing to do once it is done; here it is the batch
alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Aside:
    """A stream of a GPU beside the current one; on other devices nothing.

    Tensors that were made before on the device can be read on it.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device, priority=-1)  # short work, for which the host waits
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def made(self, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returns; what the current stream is given from now on finds it there."""
        if self._stream is None:
            return make()
        main = torch.cuda.current_stream(self._stream.device)
        with torch.cuda.stream(self._stream):
            value = make()
        main.wait_stream(self._stream)
        value.record_stream(main)  # its memory is not given to the next batch while the step still reads it
        return value
