"""CUDA source of the forward kernel (forward.cu)."""

from __future__ import annotations

from functools import lru_cache

from spikeloom.kernels.cuda.writer import HERE, Tuning, Writer
from spikeloom.kernels.program import lookup

_FILE = HERE / "forward.cu"


@lru_cache(maxsize=1024)
def forward_source(key: str, tuning: Tuning, save: bool, final: bool) -> str:
    """CUDA source of `extern "C" forward`; with `save` it writes checkpoints, with `final` the final states."""
    program = lookup(key)
    roots = [*program.outputs, *program.next]
    w = Writer(program, tuning, program.tape, roots)
    return w.fill(
        _FILE,
        "kernel",
        step=w.function("step", program.tape, roots, w.leaves, [*w.y, *w.next], w.hoisted),
        rest=w.rest(),
        body=_body(w, save),
        final=w.s if final else [],
    )


def _body(w: Writer, save: bool) -> str:
    """All steps of a thread's lanes."""
    keep = w.fill(_FILE, "save") if save else ""
    chunk = w.fill(_FILE, "chunk", save=keep, guard="")
    if w.tuning.single:
        return w.fill(_FILE, "single", start=w.start(), chunk=chunk)
    ragged = w.fill(_FILE, "chunk", save=keep, guard="if (first + k < T)")
    return w.fill(_FILE, "long", start=w.start(), chunk=chunk, ragged_chunk=ragged)
