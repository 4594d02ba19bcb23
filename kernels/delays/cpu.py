"""The CPU kernel of delayed sums (delays.cpp): one translation unit per type, compiled at first use."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from spikeloom.kernels.cpu import build
from spikeloom.kernels.cpu import run as weave
from spikeloom.kernels.delays.tables import TILE
from spikeloom.kernels.names import STORAGE

FORMS = {"auto": 0, "spikes": 1, "outputs": 2}
_ARGUMENTS = struct.Struct("10Q10q")


def delayed_sum(
    x: Tensor,
    pending: Tensor | None,
    weight: Tensor,
    delay: Tensor,
    bias: Tensor | None,
    tables: Sequence[Tensor],
    size: int,
    groups: int,
    skip: int,
    keep: bool,
    form: str,
) -> list[Tensor]:
    """As the operator (`op.delayed_sum`)."""
    results = allocate(x, weight, size, skip, keep)
    x, pending, bias = x.contiguous(), *(None if t is None else t.contiguous() for t in (pending, bias))
    steps, B, inputs = x.shape
    outputs, _, count = weight.shape
    kept = results[1].data_ptr() if keep else 0
    buffer = _ARGUMENTS.pack(
        *(0 if t is None else t.data_ptr() for t in (x, pending, bias, *tables, results[0])),
        kept,
        *(steps, B, inputs, outputs, size, groups, count, skip),
        1 if weave._forked else torch.get_num_threads(),
        FORMS[form],
    )
    _library(x.dtype).loom_delays(buffer)
    return results


def allocate(x: Tensor, weight: Tensor, size: int, skip: int, keep: bool) -> list[Tensor]:
    """Uninitialised results."""
    steps, B, _ = x.shape
    y = x.new_empty(steps - skip, B, weight.shape[0])
    return [y, x.new_empty(size - 1, B, weight.shape[0])] if keep else [y]


@lru_cache(maxsize=4)
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    return build.load(source(dtype))


def source(dtype: torch.dtype) -> str:
    """C++ translation unit with `loom_delays` for float32 or float64."""
    real, _ = STORAGE[str(dtype).removeprefix("torch.")]
    prelude = (Path(build.__file__).parent / "prelude.h").read_text()
    body = Path(__file__).with_name("delays.cpp").read_text()
    return f"typedef {real} real;\n{prelude}\nenum {{ TILE = {TILE} }};\n{body}"
