"""The CPU kernels of events (events.cpp, evt.cpp), compiled at first use. Columns are contiguous and on the CPU."""

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
_EXPONENTS = 2**17  # of a time surface at once: they stay in a core's cache
_NUMBER = ctypes.c_int64
_RETURNING = ("loom_count_words", "loom_evt2", "loom_evt3", "loom_misplaced", "loom_unpack")


def edges(t: Tensor, offsets: Tensor, times: Tensor) -> Tensor:
    """Numbers `[B, K]` of the first event of recording b at or after times `[B, K]`."""
    found = torch.empty_like(times)
    _call("loom_edges", t, offsets, times, *times.shape, found)
    return found


def count(x: Tensor, y: Tensor, p: Tensor, edges: Tensor, height: int, width: int) -> Tensor:
    """Counts `[T, B, 2, H, W]` int32: bin k of recording b is the events edges[b, k] ... edges[b, k + 1] - 1."""
    counts, rest = _counters(edges, height, width)
    _call("loom_count", x, y, p, *rest, counts)
    return counts


def voxels(
    t: Tensor, x: Tensor, y: Tensor, p: Tensor, edges: Tensor, spans: Tensor, start: int, height: int, width: int
) -> Tensor:
    """Voxels `[T, B, H, W]` float32 at T instants over spans `[B]` us: events edges[b, k] ... edges[b, k + 1] - 1 lie
    between instants k and k + 1. (T - 1) * spans and 2^20 * spans must be below 2^63.
    """
    B, T = edges.shape[0], edges.shape[1] - 1
    parts = min(_threads(len(t)), B * T) or 1
    room = torch.empty((parts, 2, height, width), dtype=torch.int64)
    grid = torch.from_numpy(np.empty((T, B, height, width), np.float32))  # NumPy asks for large pages
    _call("loom_voxels", t, x, y, p, edges, spans, start, B, T, height, width, parts, room, grid)
    return grid


def word_edges(words: int, begin: Tensor, end: Tensor, times: Tensor) -> Tensor:
    """`edges` of stored words (see `count_words`): numbers `[B, K]` of the first at or after times `[B, K]` of b.

    Recording b is words begin[b] ... end[b] - 1; its times count from its first event, and may be below 0.
    """
    found = torch.empty_like(times)
    _call("loom_word_edges", words, begin, end, times, *times.shape, found)
    return found


def count_words(words: int, edges: Tensor, height: int, width: int) -> tuple[Tensor, int]:
    """Counts `[T, B, 2, H, W]` int32 of stored words between edges `[B, T + 1]`, and how many lie off the sensor.

    `words` is the address of the first, which may be mapped read-only, as no tensor can be.
    """
    counts, rest = _counters(edges, height, width)
    return counts, _call("loom_count_words", words, *rest, counts)


def unpack(
    words: int, begin: Tensor, end: Tensor, start: Tensor, height: int, width: int
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], int]:
    """Columns t, x, y, p `[N]` of stored words (see `word_edges`), and how many events are off the sensor or not in
    order of time. Times count from start[b].
    """
    columns = _columns(int((end - begin).sum()))
    wrong = _call("loom_unpack", words, begin, end, start, len(begin), height, width, *columns)
    return columns, wrong


def misplaced(words: int, begin: int, end: int, height: int, width: int) -> int:
    """How many of words begin ... end - 1 of one recording (see `word_edges`) are off the sensor or out of order."""
    return _call("loom_misplaced", words, begin, end, height, width)


def evt_count(words: int, length: int, version: int) -> int:
    """How many events `length` words of Prophesee's EVT 2.0 (32 bits) or 3.0 (16 bits) hold, from an address on."""
    return _call(f"loom_evt{version}", words, length, 0, 0, 0, 0)


def evt(words: int, length: int, version: int, events: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """These events: t `[N]` int64, x, y `[N]` int16, at most 32,767, and p `[N]` uint8; N is what `evt_count` said."""
    columns = _columns(events)
    _call(f"loom_evt{version}", words, length, *columns)
    return columns


def surface(
    t: Tensor, x: Tensor, y: Tensor, p: Tensor, edges: Tensor, instants: Tensor, tau: float, height: int, width: int
) -> Tensor:
    """Time surfaces `[T, 2, H, W]` float32 at instants `[T]`.

    edges: `[T + 1]`; events edges[k] ... edges[k + 1] - 1 come after instant k - 1, and up to instant k.
    """
    T, cells = len(instants), 2 * height * width
    found = torch.from_numpy(np.empty((T, 2, height, width), np.float32))  # NumPy asks for large pages
    last = torch.full((cells,), -1, dtype=torch.int64)
    step = max(1, _EXPONENTS // cells)
    exponents = torch.empty((min(step, T), 2, height, width), dtype=torch.float64)
    for k in range(0, T, step):
        some = instants[k : k + step]
        _call("loom_surface", t, x, y, p, edges[k:], some, len(some), tau, height, width, last, exponents)
        found[k : k + step] = exponents[: len(some)].exp_()
    return found


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


def _columns(events: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for t, x, y, p `[N]`, from NumPy, which asks for large pages."""
    t, x, y, p = (torch.from_numpy(np.empty(events, kind)) for kind in (np.int64, np.int16, np.int16, np.uint8))
    return t, x, y, p


def _counters(edges: Tensor, height: int, width: int) -> tuple[Tensor, tuple[Tensor | int, ...]]:
    """Counters `[T, B, 2, H, W]` int32, which the kernel sets to 0 frame by frame, and what else it is given."""
    B, T = edges.shape[0], edges.shape[1] - 1
    begin, end = edges[:, :-1].contiguous(), edges[:, 1:].contiguous()
    planes = (torch.arange(T)[None] * B + torch.arange(B)[:, None]).contiguous()
    counts = torch.from_numpy(np.empty((T, B, 2, height, width), np.int32))  # NumPy asks for large pages
    return counts, (begin, end, planes, B * T, height, width, _threads(int((end - begin).sum())))


def _threads(events: int) -> int:
    return 1 if weave._forked else max(1, min(torch.get_num_threads(), events // _PER_THREAD))


def _call(name: str, *given: Tensor | int | float) -> int:
    arguments: list[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double] = []
    for value in given:
        if isinstance(value, Tensor):
            assert value.is_contiguous()
            assert not value.is_cuda
            arguments.append(ctypes.c_void_p(value.data_ptr()))
        else:
            arguments.append(ctypes.c_double(value) if isinstance(value, float) else _NUMBER(value))
    function = getattr(_library(), name)
    function.restype = _NUMBER if name in _RETURNING else None
    return int(function(*arguments) or 0)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    return build.load("".join(Path(__file__).with_name(name).read_text() for name in ("events.cpp", "evt.cpp")))
