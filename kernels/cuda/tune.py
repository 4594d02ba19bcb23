"""Launch choices: how many lanes a thread owns, how large blocks are, how many threads walk the lanes.

Rules of thumb measured on an H100 (`benchmarks/neurons.py`): 16-byte accesses as long as a thread's chunk buffers and
states stay within a budget of registers (more cost occupancy), the next chunk always loaded ahead, and small blocks
when there are few lanes so that every multiprocessor gets some.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from spikeloom.kernels.call import CHUNK
from spikeloom.kernels.cuda.source import STORAGE_BYTES, Tuning
from spikeloom.kernels.layout import Lanes, ParamMap
from spikeloom.kernels.program import Program

_WORDS_FORWARD, _WORDS_BACKWARD = 64, 48


@dataclass(frozen=True)
class Launch:
    """A tuning with its grid. `walk` threads stride through the vectors of lanes."""

    tuning: Tuning
    blocks: int
    walk: int
    period: int


def tune(
    program: Program,
    dtype: str,
    lanes: Lanes,
    kinds: str,
    *,
    given: bool,
    aligned: bool,
    backward: bool,
    summed: list[ParamMap],
    processors: int,
) -> Launch:
    """Choose the launch of a kernel.

    Args:
        kinds: one letter per parameter, as in `Tuning`.
        given: an initial state is passed.
        aligned: every `[T, *neurons]` tensor starts at a multiple of 16 bytes.
        summed: maps of the tensor parameters whose gradients this launch adds up.
        processors: multiprocessors of the device.
    """
    chunk = min(lanes.steps, CHUNK)
    vector = _vector(program, dtype, lanes, chunk, backward) if aligned else 1
    periods = [m.count * m.repeat for m in summed if m.count > 1]
    while vector > 1 and (
        any(p % vector for p in periods) or lanes.inner % vector or lanes.count // vector < processors * 512
    ):
        vector //= 2
    vectors = max(1, lanes.count // vector)
    threads = 32 if vectors < processors * 512 else 64 if vectors < processors * 1024 else 128
    walk, period = vectors, 1
    if summed:
        period = math.lcm(*periods) // vector if periods else 1
        walk = period * max(1, min(vectors // period, processors * 768 // period))
    steps = lanes.steps if lanes.steps <= CHUNK else 0
    tuning = Tuning(
        dtype, kinds, steps, chunk, vector, threads, lanes.outer == 1, lanes.count + walk * vector >= 2**32, given
    )
    return Launch(tuning, -(-walk // threads), walk, period)


def _vector(program: Program, dtype: str, lanes: Lanes, chunk: int, backward: bool) -> int:
    """Largest vector of at most 16 bytes whose buffers fit the register budget."""
    size = STORAGE_BYTES[dtype]
    tensors = len(program.inputs) + (len(program.outputs) if backward else 0)
    buffers = tensors * size / 4 * (2 if lanes.steps > chunk else 1)
    states = len(program.states) * (2 if dtype == "float64" else 1) if backward else 0
    vector = 16 // size
    budget = _WORDS_BACKWARD if backward else _WORDS_FORWARD
    while vector > 1 and chunk * vector * (buffers + states) > budget:
        vector //= 2
    return vector
