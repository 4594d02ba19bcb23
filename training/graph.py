"""A function of tensors as CUDA graphs: one per signature of its inputs, captured once and then replayed.

The function works on tensors that stay where they are; its inputs alone are new in each call, and a replay finds them
in buffers of its own. The first calls of a signature run as they are: they are calls like all others, and they compile
kernels, choose algorithms and make an optimizer's state, none of which a capture may do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spikeloom.kernels.cuda.capture import Guarded

WARMUP = 3
"""Calls of a signature before it is captured."""

Call = Callable[[], None]
Signature = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
"""Shape, strides and dtype of each input; kernels are chosen by all three."""


class CaptureError(RuntimeError):
    """A call could not be captured; the message is the reason, without a full stop."""


class Recorder(Protocol):
    """Where calls run before they are captured, and what captures them."""

    def aside(self, call: Call) -> None:
        """Run a call now."""

    def record(self, call: Call) -> Call:
        """What does the same again, on the same tensors; the call itself takes no effect.

        Raises:
            CaptureError: it cannot be had.
        """


class CudaRecorder:
    """Graphs of one device, captured on a stream of their own.

    They share a pool of memory, so that together they need what the largest needs: nothing that a graph leaves in it is
    read after another graph ran, and no two run at a time.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self._device = torch.device("cuda", torch.cuda.current_device())
            self._stream = torch.cuda.Stream()
            self._pool = torch.cuda.graph_pool_handle()

    def aside(self, call: Call) -> None:
        """Run a call on the stream of the captures: autograd's nodes remember the stream that they first ran on."""
        main = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            call()
        main.wait_stream(self._stream)

    def record(self, call: Call) -> Call:
        """Capture a call.

        Other threads (loaders of data) may use the device meanwhile: capture_error_mode is "thread_local".
        """
        graph, first = torch.cuda.CUDAGraph(), None
        try:
            with (
                torch.cuda.device(self._device),
                Guarded(self._device),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                try:
                    call()
                except (RuntimeError, ValueError) as error:
                    first = error  # what ends the capture raises another one, which says less
                    raise
        except (RuntimeError, ValueError) as error:
            # an error that a local name holds would, by its traceback, keep this frame and the failed call's memory
            reason, first = _line(first or error), None
            raise CaptureError(reason) from error
        replay: Call = graph.replay
        return replay


@dataclass(frozen=True)
class _Recording:
    buffers: tuple[Tensor, ...]
    replay: Call

    def __call__(self, inputs: tuple[Tensor, ...]) -> None:
        for buffer, value in zip(self.buffers, inputs, strict=True):
            buffer.copy_(value)
        self.replay()


class Replayed:
    """`function(*inputs)`, replayed from a graph once a signature was seen `warmup` times.

    Args:
        function: of tensors; leaves its results in tensors made before, and keeps nothing else.
        recorder: makes a recorder, at the first call.
        failed: told once why a capture failed; what it raises is raised. From then on all calls run as they are.
        warmup: at least 1.

    Attributes:
        gave_up: whether a capture failed.
    """

    def __init__(
        self,
        function: Callable[..., None],
        recorder: Callable[[], Recorder],
        failed: Callable[[str], None],
        warmup: int = WARMUP,
    ) -> None:
        if warmup < 1:
            raise ValueError(
                f"Replayed got warmup={warmup}; expected at least 1: a first call may do more than others."
            )
        self._function, self._make, self._failed, self._warmup = function, recorder, failed, warmup
        self._recorder: Recorder | None = None
        self._seen: Counter[Signature] = Counter()
        self._recordings: dict[Signature, _Recording] = {}
        self.gave_up = False

    @property
    def recorded(self) -> int:
        """The number of graphs."""
        return len(self._recordings)

    def __call__(self, *inputs: Tensor) -> None:
        """Call the function, or replay it."""
        if self.gave_up:
            self._function(*inputs)
            return
        if self._recorder is None:
            self._recorder = self._make()
        key = signature(*inputs)
        if key not in self._recordings and self._seen[key] >= self._warmup:
            self._record(self._recorder, key, inputs)
        self._seen[key] += 1
        if key in self._recordings:
            self._recordings[key](inputs)
        else:
            self._recorder.aside(lambda: self._function(*inputs))

    def _record(self, recorder: Recorder, key: Signature, inputs: tuple[Tensor, ...]) -> None:
        function, buffers = self._function, tuple(value.clone() for value in inputs)
        try:
            replay = recorder.record(lambda: function(*buffers))
        except CaptureError as error:
            self._recordings.clear()
            self.gave_up = True
            self._failed(str(error))
        else:
            self._recordings[key] = _Recording(buffers, replay)


def signature(*inputs: Tensor) -> Signature:
    """What a graph is fixed to."""
    return tuple((value.shape, value.stride(), value.dtype) for value in inputs)


def _line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
