"""Ctrl-C and SIGTERM end a training between two steps, after a checkpoint; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """The training was interrupted and its state saved; `code` is the exit status for it (128 + signal number)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Interruption:
    """Which signal has asked the training to stop, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None


@contextmanager
def watch(several: bool = False) -> Iterator[Interruption]:
    """Turn the first SIGINT or SIGTERM inside the block into a note; the next one acts as usual.

    several: of several processes, torchrun sends a SIGTERM of its own after a signal from elsewhere (and ends what does
    not end in half a minute), so that one is a note as well.
    Outside the main thread Python cannot handle signals, and nothing is watched.
    """
    found = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        found.signal = found.signal or number
        for each, handler in before.items():
            if not (several and each == signal.SIGTERM):
                signal.signal(each, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
