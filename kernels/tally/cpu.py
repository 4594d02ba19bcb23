"""The CPU kernel of `tally` (count.cpp): one translation unit per storage type, compiled at first use."""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from spikeloom.kernels.cpu import build
from spikeloom.kernels.cpu import run as weave
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.tally.call import Call, Tally
from spikeloom.kernels.tally.table import MULTIPLIER, SLOTS, SMALL
from spikeloom.kernels.template import fill

_ARGUMENTS = struct.Struct("11Q8q")


def run(call: Call) -> Tally:
    """Count."""
    x, rows = call.x, call.rows
    events = torch.zeros(rows, dtype=torch.int64)
    terms = events if call.fan is None else torch.zeros_like(events)
    pruned = None if call.pruned is None else torch.zeros_like(events)
    levels = None if call.table is None else torch.zeros((rows, SLOTS), dtype=torch.int64)
    outer, inner = call.outer, call.inner
    buffer = _ARGUMENTS.pack(
        x.data_ptr(),
        _address(call.fan),
        _address(call.pruned),
        _address(call.scale),
        _address(call.shift),
        events.data_ptr(),
        0 if call.fan is None else terms.data_ptr(),
        _address(pruned),
        _address(levels),
        0 if call.table is None else call.table.keys.data_ptr(),
        0 if call.table is None else call.table.flags.data_ptr(),
        rows,
        outer * inner,
        *((outer, inner) if call.fan_outer else (inner, 1)),
        outer * inner if call.pruned_full else inner,
        *((outer, inner) if call.affine_outer else (inner, 1)),
        1 if weave._forked else min(torch.get_num_threads(), max(1, x.numel() // 16384)),
    )
    _library(x.dtype).loom_tally(buffer)
    return Tally(events, terms, pruned, levels)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@lru_cache(maxsize=8)
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    return build.load(source(dtype))


def source(dtype: torch.dtype) -> str:
    """C++ translation unit with `loom_tally` for a storage type."""
    real, io = STORAGE[str(dtype).removeprefix("torch.")]
    prelude = (Path(build.__file__).parent / "prelude.h").read_text()
    return fill(
        Path(__file__).with_name("count.cpp"),
        "file",
        {
            "real": real,
            "io": io,
            "prelude": "#include <algorithm>\n" + prelude,
            "slots": str(SLOTS),
            "small": str(SMALL),
            "multiplier": hex(MULTIPLIER),
        },
    )
