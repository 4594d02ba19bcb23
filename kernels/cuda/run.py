"""Launch the CUDA kernels: one plan per (program, shapes, layout, flags), then a few microseconds per call."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import layout, op
from spikeloom.kernels.cuda import build
from spikeloom.kernels.cuda.source import backward_source, forward_source
from spikeloom.kernels.cuda.tune import Launch, tune
from spikeloom.kernels.program import Program
from spikeloom.kernels.reference import arithmetic


class _Slot(threading.local):
    """A thread's argument buffer: the driver copies it during the launch call."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(4096)
        self.arguments = (ctypes.c_void_p * 1)(ctypes.addressof(self.buffer))
        self.address = ctypes.addressof(self.arguments)


_slot = _Slot()


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything about a call that depends on shapes and flags alone."""

    program: Program
    real: torch.dtype
    strides: tuple[int, ...]
    slab: tuple[int, ...]
    maps: tuple[layout.ParamMap, ...]
    is_tensor: tuple[bool, ...]
    tail: tuple[int, ...]
    pack: struct.Struct
    launch: Launch
    handle: int
    keep: object
    device: int
    empty: bool

    def run(self, pointers: Sequence[Any], values: Sequence[Tensor], scalars: Sequence[float]) -> None:
        """Launch on torch's current stream of the device."""
        numbers, tensors, floats = list(pointers), iter(zip(values, self.maps, strict=True)), iter(scalars)
        for tensor in self.is_tensor:
            if tensor:
                value, where = next(tensors)
                numbers.append(value.data_ptr())
                if where.count > 1:
                    numbers += (where.count, where.repeat)
            else:
                numbers.append(next(floats))
        slot = _slot
        self.pack.pack_into(slot.buffer, 0, *numbers, *self.tail)
        with_device = torch._C._cuda_getDevice() != self.device
        if with_device:
            with torch.cuda.device(self.device):
                self._launch(slot.address)
        else:
            self._launch(slot.address)

    def _launch(self, address: int) -> None:
        from cupy.cuda import driver

        driver.launchKernel(self.handle, self.launch.blocks, 1, 1, self.launch.tuning.threads, 1, 1, 0,
                            torch._C._cuda_getCurrentRawStream(self.device), address, 0)


_plans: dict[Any, Plan] = {}


def _plan(program: str, every: int, x: Tensor, given: bool, aligned: bool, params: Sequence[Tensor],
          mask: str | None) -> Plan:
    key = (program, every, x.dtype, x.shape, x.stride(), x.device.index, given, aligned, mask,
           *[p.shape for p in params])
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = _make_plan(program, every, x, given, aligned, params, mask)
    return plan


def _make_plan(call: str, every: int, x: Tensor, given: bool, aligned: bool, params: Sequence[Tensor],
               mask: str | None) -> Plan:
    program, letters = op.parse(call)
    shape, strides = tuple(x.shape), layout.dense_strides(x.shape, x.stride())
    lanes = layout.lanes_of(shape, strides)
    maps = [layout.param_map(tuple(p.shape), shape, lanes.axes) for p in params]
    left = iter(maps)
    kinds = "".join("s" if c == "s" else "u" if next(left).count == 1 else "l" for c in letters)
    dtype = str(x.dtype).removeprefix("torch.")
    arriving, wanted = op.parse_mask(mask) if mask else ((), ())
    n_first = len(program.inputs) + len(program.states)
    summed = [m for m, want in zip(maps, wanted[n_first:], strict=False) if want]
    device = x.device.index
    launch = tune(program, dtype, lanes, kinds, given=given, aligned=aligned, backward=mask is not None, summed=summed,
                  processors=torch.cuda.get_device_properties(device).multi_processor_count)
    if mask is None:
        source, name = forward_source(program.key, launch.tuning, bool(every)), "forward"
    else:
        flags = iter(wanted[n_first:])
        all_wanted = (*wanted[:n_first], *[next(flags) if k != "s" else False for k in kinds])
        left = iter(maps)
        shared = tuple(k != "s" and ((m := next(left)).count == 1 or m.repeat % launch.tuning.vector == 0) for k in kinds)
        source, name = backward_source(program.key, launch.tuning, arriving, all_wanted, shared), "backward"
    handle, keep = build.function(source, name, device)
    n_in, n_out, n_s = len(program.inputs), len(program.outputs), len(program.states)
    pointers = n_in + n_out + 2 * n_s + 1 if mask is None else 2 * n_in + n_out + 3 * n_s + 1 + len(kinds)
    pack = struct.Struct(f"{pointers}Q" + "".join({"s": "d", "u": "Q", "l": "Qqq"}[k] for k in kinds) + "4q")
    return Plan(program, arithmetic(x.dtype), strides, layout.dense_strides(shape[1:], x.stride()[1:]), tuple(maps),
                tuple(k != "s" for k in kinds), (lanes.steps, lanes.count, lanes.inner, launch.walk), pack, launch,
                handle, keep, device, lanes.count == 0)


def _aligned(tensors: Sequence[Tensor]) -> bool:
    return all(t.data_ptr() % 16 == 0 for t in tensors)


def _dense(tensors: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """The inputs in the dense layout of the first one; untouched in the common case."""
    if len(tensors) == 1 and x.is_contiguous():
        return [x]
    strides = layout.dense_strides(x.shape, x.stride())
    return [layout.in_order(t, strides) for t in tensors]


def forward(inputs: list[Tensor], state: list[Tensor], params: list[Tensor], scalars: list[float], program: str,
            every: int) -> list[Tensor]:
    """The CUDA kernel of `spikeloom::weave`."""
    xs = _dense(inputs, inputs[0])
    plan = _plan(program, every, xs[0], bool(state), _aligned(xs), params, None)
    results = op.allocate_forward(plan.program, xs[0], every)
    if plan.empty:
        return results
    n_out = len(plan.program.outputs)
    n_all = n_out + len(plan.program.states)
    held = [layout.in_order(s, plan.slab) for s in state]
    values = [m.values(p, plan.real) for m, p in zip(plan.maps, params, strict=True)]
    pointers = [t.data_ptr() for t in xs] + [t.data_ptr() for t in results[:n_out]]
    pointers += [s.data_ptr() for s in held] or [0] * (n_all - n_out)
    pointers += [t.data_ptr() for t in results[n_out:n_all]]
    pointers.append(results[n_all].data_ptr() if every else 0)
    plan.run(pointers, values, scalars)
    return results


def backward(grads: list[Tensor], inputs: list[Tensor], state: list[Tensor], params: list[Tensor],
             checkpoints: list[Tensor], scalars: list[float], program: str, every: int, mask: str) -> list[Tensor]:
    """The CUDA kernel of `spikeloom::weave_backward`."""
    results = op.allocate_backward(inputs, params, program, mask)
    plan, sums = backward_sums(results, grads, inputs, state, params, checkpoints, scalars, program, every, mask)
    n_params = sum(s is not None for s in sums)
    targets = iter(results[len(results) - n_params:] if n_params else [])
    for where, partial, like in zip(plan.maps, sums, params, strict=True):
        if partial is not None:
            next(targets).copy_(where.gradient(reduce_partial(plan, where, partial), like))
    return results


def backward_sums(results: Sequence[Tensor], grads: Sequence[Tensor], inputs: Sequence[Tensor], state: Sequence[Tensor],
                  params: Sequence[Tensor], checkpoints: Sequence[Tensor], scalars: Sequence[float], program: str,
                  every: int, mask: str) -> tuple[Plan, list[Tensor | None]]:
    """Fill the gradients of inputs and states in `results`; return per-thread partial sums for tensor parameters."""
    xs = _dense(inputs, inputs[0])
    recorded, _ = op.parse(program)
    arriving, wanted = op.parse_mask(mask)
    n_in, n_out, n_s = len(recorded.inputs), len(recorded.outputs), len(recorded.states)
    given = iter(grads)
    strides = layout.dense_strides(xs[0].shape, xs[0].stride())
    present = [next(given) if flag else None for flag in arriving]
    grad_y = [None if g is None else _fit(g, strides) for g in present[:n_out]]
    plan = _plan(program, every, xs[0], bool(state), _aligned(xs), params, mask)
    grad_s = [None if g is None else layout.in_order(g.to(plan.real), plan.slab) for g in present[n_out:]]
    free = iter(results)
    outs = [next(free) if want else None for want in wanted[:n_in + n_s]]
    vector, walk = plan.launch.tuning.vector, plan.launch.walk
    sums: list[Tensor | None] = [
        xs[0].new_empty(walk * (1 if where.count == 1 or where.repeat % vector == 0 else vector), dtype=plan.real)
        if want else None for where, want in zip(plan.maps, wanted[n_in + n_s:], strict=True)]
    if plan.empty:
        return plan, [None if s is None else s.zero_() for s in sums]
    held: list[Tensor | None] = [layout.in_order(s, plan.slab) for s in state] or [None] * n_s
    left = iter(sums)
    all_sums = [next(left) if tensor else None for tensor in plan.is_tensor]
    everything = [*xs, *held, checkpoints[0] if every else None, *grad_y, *grad_s, *outs, *all_sums]
    values = [m.values(p, plan.real) for m, p in zip(plan.maps, params, strict=True)]
    plan.run([0 if t is None else t.data_ptr() for t in everything], values, scalars)
    return plan, sums


def reduce_partial(plan: Plan, where: layout.ParamMap, partial: Tensor) -> Tensor:
    """Add up per-thread partial sums: one value per entry of the parameter."""
    if where.count == 1:
        return partial.sum()
    vector = plan.launch.tuning.vector
    width = where.repeat // vector if where.repeat % vector == 0 else where.repeat
    return partial.view(-1, where.count, width).sum((0, 2))


def _fit(grad: Tensor, strides: tuple[int, ...]) -> Tensor:
    """A gradient in the dense layout of the input, at an aligned address."""
    fitted = layout.in_order(grad, strides)
    return fitted if fitted.data_ptr() % 16 == 0 else fitted.clone(memory_format=torch.preserve_format)
