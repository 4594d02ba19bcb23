"""The CUDA kernel of `tally` (count.cu): a plan per shape, then one allocation and one launch per call."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from spikeloom.kernels.cuda import build
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.cuda.writer import STORAGE_BYTES
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.tally.call import Call, Tally
from spikeloom.kernels.tally.table import MULTIPLIER, SLOTS, SMALL
from spikeloom.kernels.template import fill

_WORD = {2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}
_ONE = {"float32": "0x3f800000u", "float64": "0x3ff0000000000000ull", "bfloat16": "0x3f80u", "float16": "0x3c00u"}
_UNITS = 8
"""A block takes at most this many rounds of loads: enough work to pay for its reductions."""


@dataclass(frozen=True)
class Choices:
    """What is fixed at compile time.

    Attributes:
        dtype: torch dtype name.
        vector, unroll: elements per load, and loads in flight.
        threads: of a block.
        fan, pruned, affine: which map, by its name in count.cu.
        levels: there is a table.
        wide: places in a row need 64 bits.
    """

    dtype: str
    vector: int
    unroll: int
    threads: int
    fan: str
    pruned: str
    affine: str
    levels: bool
    wide: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Launch of a shape.

    Attributes:
        kernel: with its grid.
        tail: the last fields of its argument: sizes of a row and of a block's part.
        sizes: int64 numbers of events, terms, pruned, levels in the buffer of results.
        places: where they begin in it, in bytes.
    """

    kernel: Kernel
    tail: tuple[int, ...]
    sizes: list[int]
    places: tuple[int, ...]


_plans: dict[Any, Plan] = {}


def run(call: Call) -> Tally:
    """Count. Launches on torch's current stream and waits for nothing, so a CUDA graph can capture it."""
    x, rows, outer, inner, table, fan, fan_outer, pruned, pruned_full, scale, shift, affine_outer = call
    read = [0 if t is None else t.data_ptr() for t in (x, fan, pruned, scale, shift)]
    aligned = (read[0] | read[1] | read[2]) % 16 == 0
    maps = (
        "NONE" if fan is None else "OUTER" if fan_outer else "INNER",
        "NONE" if pruned is None else "FULL" if pruned_full else "INNER",
        "NONE" if scale is None else "OUTER" if affine_outer else "INNER",
    )
    key = (x.dtype, x.device.index, rows, outer, inner, maps, table is None, aligned)
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = _make_plan(x, rows, outer, inner, maps, table is not None, aligned)
    results = torch.zeros(sum(plan.sizes), dtype=torch.int64, device=x.device)
    start = results.data_ptr()
    held = (0, 0) if table is None else (table.keys.data_ptr(), table.flags.data_ptr())
    plan.kernel([*read, *[start + place for place in plan.places], *held, *plan.tail])
    events, terms, kept, levels = results.split_with_sizes(plan.sizes)
    return Tally(
        events,
        events if fan is None else terms,
        None if pruned is None else kept,
        None if table is None else levels.view(rows, SLOTS),
    )


def _make_plan(
    x: torch.Tensor, rows: int, outer: int, inner: int, maps: tuple[str, str, str], levels: bool, aligned: bool
) -> Plan:
    dtype, size = str(x.dtype).removeprefix("torch."), outer * inner
    run_length = inner if set(maps) != {"NONE"} else size  # elements of one load lie in one run of the maps
    vector = 16 // STORAGE_BYTES[dtype] if aligned else 1
    while size % vector or run_length % vector:
        vector //= 2
    threads = 256 if size >= 128 * vector else 32
    unroll = min(4, 16 // vector)
    unit = threads * vector * unroll
    units = -(-size // unit)
    processors = torch.cuda.get_device_properties(x.device.index).multi_processor_count
    most = max(1, min(_UNITS, rows * units // (processors * 16)))
    parts = -(-units // most)
    part = -(-units // parts) * unit
    choices = Choices(dtype, vector, unroll, threads, *maps, levels, size + unit >= 2**31)
    sizes = [rows, rows * (maps[0] != "NONE"), rows * (maps[1] != "NONE"), rows * SLOTS * levels]
    places = tuple(8 * sum(sizes[:i]) for i in range(4))
    kernel = Kernel(source(choices), "tally", x.device.index, rows * parts, threads, "11Q4q")
    return Plan(kernel, (size, inner, part, parts), sizes, places)


@lru_cache(maxsize=256)
def source(choices: Choices) -> str:
    """CUDA source of `extern "C" tally`."""
    real, io = STORAGE[choices.dtype]
    return fill(
        Path(__file__).with_name("count.cu"),
        "file",
        {
            "real": real,
            "io": io,
            "index": "unsigned long long" if choices.wide else "unsigned",
            "prelude": (Path(build.__file__).parent / "prelude.cuh").read_text(),
            "word": _WORD[STORAGE_BYTES[choices.dtype]],
            "one": _ONE[choices.dtype],
            "vector": str(choices.vector),
            "unroll": str(choices.unroll),
            "threads": str(choices.threads),
            "fan": choices.fan,
            "pruned": choices.pruned,
            "affine": choices.affine,
            "levels": str(int(choices.levels)),
            "slots": str(SLOTS),
            "small": str(SMALL),
            "multiplier": hex(MULTIPLIER),
        },
    )
