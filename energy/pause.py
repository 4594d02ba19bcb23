"""`Paused`: work of the counter itself, which is not counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from spikeloom.energy.run import Run


class Paused:
    """`Run.paused`. The guards switch both modes off in C++, which is far cheaper than to be called and decline."""

    __slots__ = ("_function", "_guard", "_run")

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._run.pauses += 1
        self._function = torch._C.DisableTorchFunction()
        self._function.__enter__()
        self._guard = torch._C._DisableTorchDispatch()

    def __exit__(self, *_: object) -> None:
        del self._guard
        self._function.__exit__(None, None, None)
        self._run.pauses -= 1
