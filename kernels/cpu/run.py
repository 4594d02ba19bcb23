"""Call the compiled CPU kernels: lay tensors out, pack arguments, allocate results."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import call as calls
from spikeloom.kernels import layout
from spikeloom.kernels.cpu.build import load
from spikeloom.kernels.cpu.source import source
from spikeloom.kernels.reference import arithmetic

_forked = False


def _after_fork() -> None:
    """OpenMP's threads do not survive a fork: a forked child runs its kernels on one thread."""
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)


@lru_cache(maxsize=4096)
def _library(key: str, kinds: str, dtype: str) -> ctypes.CDLL:
    return load(source(key, kinds, dtype))


class _Call:
    """One kernel call on `[T, *neurons]` tensors laid out like `inputs[0]`."""

    def __init__(
        self, inputs: Sequence[Tensor], params: Sequence[Tensor], scalars: Sequence[float], program: str, every: int
    ) -> None:
        self.program, kinds = calls.parse(program)
        x = inputs[0]
        self.real = arithmetic(x.dtype)
        self.shape = tuple(x.shape)
        self.strides = layout.dense_strides(x.shape, x.stride())
        self.slab = layout.dense_strides(x.shape[1:], x.stride()[1:])
        self.lanes = layout.lanes_of(self.shape, self.strides)
        self.every = every
        self.inputs = [layout.in_order(t, self.strides) for t in inputs]
        self.maps = layout.param_maps(self.program, kinds, [p.shape for p in params], self.shape, self.lanes.axes)
        self.values = [m.values(p, self.real) for m, p in zip(self.maps, params, strict=True)]
        self._kinds(kinds, scalars)

    def _kinds(self, kinds: str, scalars: Sequence[float]) -> None:
        letters, self.format, self.packed = "", "", []
        tensors, numbers = iter(zip(self.maps, self.values, strict=True)), iter(scalars)
        for kind in kinds:
            if kind in "sh":
                letters += "s"
                self.format += "d"
                self.packed.append(next(numbers))
                continue
            where, values = next(tensors)
            letters += "u" if where.count == 1 else "l"
            self.format += "Q" if where.count == 1 else "Qqq"
            self.packed += [values.data_ptr()] if where.count == 1 else [values.data_ptr(), where.count, where.repeat]
        self.library = _library(self.program.key, letters, str(self.inputs[0].dtype).removeprefix("torch."))

    def launch(self, name: str, pointers: Sequence[Tensor | int | None]) -> None:
        lanes = self.lanes
        if lanes.count == 0:
            return
        threads = 1 if _forked else min(torch.get_num_threads(), max(1, lanes.count * lanes.steps // 8192))
        numbers: list[Any] = [t.data_ptr() if isinstance(t, Tensor) else t or 0 for t in pointers]
        buffer = struct.pack(
            f"{len(numbers)}Q{self.format}5q",
            *numbers,
            *self.packed,
            lanes.steps,
            lanes.count,
            lanes.inner,
            self.every,
            threads,
        )
        getattr(self.library, f"loom_{name}")(buffer)

    def state(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        held: list[Tensor | None] = [layout.in_order(t, self.slab) for t in tensors]
        return held or [None] * len(self.program.states)


def forward(
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    scalars: list[float],
    program: str,
    every: int,
    final: bool,
) -> list[Tensor]:
    """The CPU kernel of `spikeloom::weave`."""
    call = _Call(inputs, params, scalars, program, every)
    results = calls.allocate_forward(call.program, inputs[0], every, final)
    n_out, n_state = len(call.program.outputs), len(call.program.states)
    finals = results[n_out : n_out + n_state] if final else [None] * n_state
    call.launch(
        "forward", [*call.inputs, *results[:n_out], *call.state(state), *finals, results[-1] if every else None]
    )
    return results


def backward(
    grads: list[Tensor],
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    checkpoints: list[Tensor],
    scalars: list[float],
    program: str,
    every: int,
    mask: str,
) -> list[Tensor]:
    """The CPU kernel of `spikeloom::weave_backward`."""
    call = _Call(inputs, params, scalars, program, every)
    calls.check_every(inputs[0].shape[0], every, len(call.program.states))
    arriving, wanted = calls.parse_mask(mask)
    n_in, n_out, n_state = len(call.program.inputs), len(call.program.outputs), len(call.program.states)
    given = iter(grads)
    present = [next(given) if flag == 1 else None for flag in arriving]
    grad_y: list[Tensor | int] = [
        1 if flag == 2 else 0 if g is None else layout.in_order(g, call.strides)
        for flag, g in zip(arriving, present[:n_out], strict=False)
    ]
    grad_s = [None if g is None else layout.in_order(g.to(call.real), call.slab) for g in present[n_out:]]
    results = calls.allocate_backward(inputs, params, program, mask)
    free = iter(results)
    wanted_xs = [next(free) if want else None for want in wanted[: n_in + n_state]]
    sums = [
        torch.empty(m.count, dtype=torch.float64, device="cpu") if want else None
        for m, want in zip(call.maps, wanted[n_in + n_state :], strict=True)
    ]
    call.launch(
        "backward",
        [*call.inputs, *call.state(state), checkpoints[0] if every else None, *grad_y, *grad_s, *wanted_xs, *sums],
    )
    if call.lanes.count == 0:
        sums = [None if s is None else torch.zeros_like(s) for s in sums]
    for where, total, like in zip(call.maps, sums, params, strict=True):
        if total is not None:
            next(free).copy_(where.gradient(total, like))
    return results
