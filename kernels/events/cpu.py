"""The CPU kernels of events (events.cpp), compiled at first use. Columns are contiguous and on the CPU."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikeloom.kernels.cpu import build
from spikeloom.kernels.cpu import run as weave

_PER_THREAD = 2**18  # events that are worth a thread
_NUMBER = ctypes.c_int64


def edges(t: Tensor, offsets: Tensor, times: Tensor) -> Tensor:
    """Numbers `[B, K]` of the first event of recording b at or after times `[B, K]`."""
    found = torch.empty_like(times)
    _call("loom_edges", t, offsets, times, *times.shape, found)
    return found


def count(x: Tensor, y: Tensor, p: Tensor, edges: Tensor, height: int, width: int) -> Tensor:
    """Counts `[T, B, 2, H, W]` int32: bin k of recording b is the events edges[b, k] ... edges[b, k + 1] - 1."""
    B, T = edges.shape[0], edges.shape[1] - 1
    counts = _zeros(T, B, 2, height, width)
    planes = (torch.arange(T)[None] * B + torch.arange(B)[:, None]).contiguous()
    begin, end = edges[:, :-1].contiguous(), edges[:, 1:].contiguous()
    _call("loom_count", x, y, p, begin, end, planes, B * T, height, width, _threads(len(x)), counts)
    return counts


def count_words(
    words: int, begin: Tensor, end: Tensor, start: int, spans: Tensor, T: int, height: int, width: int
) -> tuple[Tensor, int]:
    """Counts `[T, B, 2, H, W]` int32 of stored words, and how many events lie off the sensor.

    `words` is the address of the first, which may be mapped read-only, as no tensor can be. Recording b is words
    begin[b] ... end[b] - 1; its bins are over spans[b] microseconds from `start`.
    """
    B = len(begin)
    counts = _zeros(T, B, 2, height, width)
    threads = min(B, _threads(int((end - begin).sum())))
    given = (words, begin, end, B, start, spans, T, height, width, max(1, threads), counts)
    return counts, _call("loom_count_words", *given)


def refractory(t: Tensor, x: Tensor, y: Tensor, offsets: Tensor, period: int, height: int, width: int) -> Tensor:
    """Mask `[N]` bool."""
    return _filter("loom_refractory", t, x, y, offsets, period, height, width, border=0)


def background(t: Tensor, x: Tensor, y: Tensor, offsets: Tensor, window: int, height: int, width: int) -> Tensor:
    """Mask `[N]` bool."""
    return _filter("loom_background", t, x, y, offsets, window, height, width, border=2)


def _filter(
    name: str, t: Tensor, x: Tensor, y: Tensor, offsets: Tensor, time: int, height: int, width: int, border: int
) -> Tensor:
    room = torch.empty((height + border, width + border), dtype=torch.int64)
    keep = torch.empty(len(t), dtype=torch.bool)
    _call(name, t, x, y, offsets, len(offsets) - 1, time, height, width, room, keep)
    return keep


def _zeros(*shape: int) -> Tensor:
    """Counters at 0, as the system hands out memory: pages that no event touches are never written."""
    return torch.from_numpy(np.zeros(shape, np.int32))


def _threads(events: int) -> int:
    return 1 if weave._forked else max(1, min(torch.get_num_threads(), events // _PER_THREAD))


def _call(name: str, *given: Tensor | int) -> int:
    arguments: list[ctypes.c_void_p | ctypes.c_int64] = []
    for value in given:
        if isinstance(value, Tensor):
            assert value.is_contiguous()
            assert not value.is_cuda
            arguments.append(ctypes.c_void_p(value.data_ptr()))
        else:
            arguments.append(_NUMBER(value))
    function = getattr(_library(), name)
    function.restype = _NUMBER if name == "loom_count_words" else None
    return int(function(*arguments) or 0)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    return build.load(Path(__file__).with_name("events.cpp").read_text())
