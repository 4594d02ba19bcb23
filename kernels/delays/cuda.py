"""The CUDA kernels of delayed sums (delays.cu): spikes as bits, as lists, then sent on; compiled at first use."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from spikeloom.kernels.cuda import build
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.delays.cpu import allocate
from spikeloom.kernels.delays.tables import TILE
from spikeloom.kernels.names import STORAGE

_LAYOUT = "11Q9i"
_THREADS = 128
_AHEAD = 8
"""Terms whose loads are under way together."""
_SHARED_BYTES = 48 * 1024
"""Shared memory that a block gets without asking: longer sums lie in global memory."""


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
    """As the operator (`op.delayed_sum`). Waits for nothing, so a CUDA graph can capture it.

    Raises:
        ValueError: form="outputs", which is the CPU's.
    """
    if form == "outputs":
        raise ValueError("delayed sums on a GPU walk over spikes; pass form='auto' or 'spikes'.")
    results = allocate(x, weight, size, skip, keep)
    steps, B, inputs = x.shape
    outputs, _, count = weight.shape
    if not steps * B:
        return _carried(results, pending)
    x, pending, bias = x.contiguous(), *(None if t is None else t.contiguous() for t in (pending, bias))
    rows, words = steps * B, -(-inputs // 32)
    tiles = -(-outputs // groups // TILE) * groups
    shared = size * TILE * x.element_size() <= _SHARED_BYTES
    far = None if shared else x.new_empty(B * tiles * size * TILE)
    bits, channel, found = (x.new_empty(n, dtype=torch.int32) for n in (rows * words, rows * inputs, rows))
    kept = results[1] if keep else None
    read = (x, pending, bias, tables[0], tables[1], results[0], kept, far, bits, channel, found)
    sizes = (steps, B, inputs, outputs, size, groups, skip, words, tiles)
    arguments = [*(0 if t is None else t.data_ptr() for t in read), *sizes]
    text = source(x.dtype, size if shared else 0, count)
    device = x.device.index
    for name, threads, blocks in (
        ("delays_mark", _THREADS, -(-rows * words // _THREADS)),
        ("delays_list", _THREADS, -(-rows // _THREADS)),
        ("delays_send", TILE, B * tiles),
    ):
        _kernel(text, name, device, blocks, threads)(arguments)
    return results


def _carried(results: list[Tensor], pending: Tensor | None) -> list[Tensor]:
    """Without a step what is on its way stays so."""
    if len(results) > 1:
        results[1].zero_() if pending is None else results[1].copy_(pending)
    return results


@lru_cache(maxsize=1024)
def _kernel(text: str, name: str, device: int, blocks: int, threads: int) -> Kernel:
    return Kernel(text, name, device, blocks, threads, _LAYOUT)


@lru_cache(maxsize=64)
def source(dtype: torch.dtype, shared: int, count: int) -> str:
    """CUDA source of the three kernels for float32 or float64.

    Args:
        shared: K, if the sums of a block lie in shared memory; 0: they do not.
        count: c, elements per pair.
    """
    real, _ = STORAGE[str(dtype).removeprefix("torch.")]
    prelude = (Path(build.__file__).parent / "prelude.cuh").read_text()
    values = {"TILE": TILE, "THREADS": _THREADS, "AHEAD": _AHEAD, "COUNT": count}
    if shared:
        values["SHARED"] = shared * TILE
    defined = "".join(f"#define {name} {value}\n" for name, value in values.items())
    body = Path(__file__).with_name("delays.cu").read_text()
    return f"typedef {real} real; typedef unsigned index_t;\n{prelude}\n{defined}{body}"
