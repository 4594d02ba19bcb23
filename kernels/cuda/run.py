"""Launch the CUDA kernels: one plan per (program, shapes, layout, flags), then a few microseconds per call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import call as calls
from spikeloom.kernels import layout
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.cuda.source import backward_source, forward_source
from spikeloom.kernels.cuda.tune import Launch, tune
from spikeloom.kernels.program import Program
from spikeloom.kernels.reference import arithmetic


@dataclass(eq=False, slots=True)
class Plan:
    """Everything about a call that depends on shapes and flags alone."""

    program: Program
    real: torch.dtype
    strides: tuple[int, ...]
    slab: tuple[int, ...]
    maps: tuple[layout.ParamMap, ...]
    is_tensor: tuple[bool, ...]
    tail: tuple[int, ...]
    launch: Launch
    kernel: Kernel
    empty: bool

    def run(self, pointers: Sequence[int], params: Sequence[int], scalars: Sequence[float]) -> None:
        """Launch. `params` are addresses of the tensor parameters' values (`values`), which the caller keeps alive."""
        if params:
            self.kernel([*pointers, *self._params(params, scalars), *self.tail])
        else:
            self.kernel([*pointers, *scalars, *self.tail])

    def values(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The last tensor parameters, `params`, laid out as the kernel reads them."""
        maps = self.maps[len(self.maps) - len(params) :]
        return [m.values(p, self.real) for m, p in zip(maps, params, strict=True)]

    def sum_count(self, where: layout.ParamMap) -> int:
        """Partial sums this launch writes for a parameter."""
        return self.launch.walk * (1 if _shared(where, self.launch) else self.launch.tuning.vector)

    def sum_width(self, where: layout.ParamMap) -> int:
        """How many neighbouring partial sums belong to one entry: they lie as [rows, count, width]."""
        if where.count == 1:
            return 1
        return where.repeat // self.launch.tuning.vector if _shared(where, self.launch) else where.repeat

    def _params(self, addresses: Sequence[int], scalars: Sequence[float]) -> list[Any]:
        numbers: list[Any] = []
        tensors, floats = iter(zip(addresses, self.maps, strict=True)), iter(scalars)
        for tensor in self.is_tensor:
            if tensor:
                address, where = next(tensors)
                numbers += (address,) if where.count == 1 else (address, where.count, where.repeat)
            else:
                numbers.append(next(floats))
        return numbers


_plans: dict[Any, Plan] = {}


def plan_for(flags: Any, program: str, x: Tensor, shapes: Sequence[Any], aligned: bool) -> Plan:
    """The plan of a call.

    Args:
        flags: (every, initial state given, final states wanted, mask or None).
        program: "key|kinds".
        x: the first input, dense.
        shapes: shapes of the tensor parameters.
        aligned: all `[T, *neurons]` tensors start at multiples of 16 bytes.
    """
    key = (program, flags, x.dtype, x.shape, x.stride(), x.device, aligned, *shapes)
    plan = _plans.get(key)
    if plan is None:
        plan = _plans[key] = _make_plan(flags, program, x, shapes, aligned)
    return plan


def _make_plan(flags: Any, call: str, x: Tensor, shapes: Sequence[Any], aligned: bool) -> Plan:
    every, given, final, mask = flags
    program, letters = calls.parse(call)
    if mask is not None:
        calls.check_every(x.shape[0], every, len(program.states))
    shape, strides = tuple(x.shape), layout.dense_strides(x.shape, x.stride())
    lanes = layout.lanes_of(shape, strides)
    maps = layout.param_maps(program, letters, shapes, shape, lanes.axes)
    left = iter(maps)
    kinds = "".join(c if c in "sh" else "u" if next(left).count == 1 else "l" for c in letters)
    dtype = str(x.dtype).removeprefix("torch.")
    arriving, wanted = calls.parse_mask(mask) if mask else ((), ())
    n_first = len(program.inputs) + len(program.states)
    summed = [m for m, want in zip(maps, wanted[n_first:], strict=False) if want]
    device = x.device.index
    launch = tune(
        program,
        dtype,
        lanes,
        kinds,
        given=given,
        aligned=aligned,
        backward=mask is not None,
        summed=summed,
        processors=torch.cuda.get_device_properties(device).multi_processor_count,
    )
    kinds = _with_channels(kinds, maps, launch, lanes.count)
    launch = replace(launch, tuning=replace(launch.tuning, kinds=kinds))
    if mask is None:
        source, name = forward_source(program.key, launch.tuning, bool(every), final), "forward"
    else:
        wants, places = iter(wanted[n_first:]), iter(maps)
        all_wanted = (*wanted[:n_first], *[next(wants) if k not in "sh" else False for k in kinds])
        shared = tuple(k not in "sh" and _shared(next(places), launch) for k in kinds)
        source, name = backward_source(program.key, launch.tuning, arriving, all_wanted, shared), "backward"
    n_in, n_out, n_s = len(program.inputs), len(program.outputs), len(program.states)
    pointers = n_in + n_out + 2 * n_s + 1 if mask is None else 2 * n_in + n_out + 3 * n_s + 1 + len(kinds)
    fields = f"{pointers}Q" + "".join({"s": "d", "h": "d", "u": "Q", "l": "Qqq", "c": "Qqq"}[k] for k in kinds) + "4q"
    kernel = Kernel(source, name, device, launch.blocks, launch.tuning.threads, fields)
    return Plan(
        program,
        arithmetic(x.dtype),
        strides,
        layout.dense_strides(shape[1:], x.stride()[1:]),
        tuple(maps),
        tuple(k not in "sh" for k in kinds),
        (lanes.steps, lanes.count, lanes.inner, launch.walk),
        launch,
        kernel,
        lanes.count == 0,
    )


def _with_channels(kinds: str, maps: Sequence[layout.ParamMap], launch: Launch, lanes: int) -> str:
    """Kinds of parameters, those per channel of channels-last tensors marked where the launch allows (`Tuning`)."""
    step = launch.walk * launch.tuning.vector  # lanes from one vector of a thread to its next
    left, found, period = iter(maps), "", 0
    for kind in kinds:
        if kind in "sh":
            found += kind
            continue
        where = next(left)
        fits = where.repeat == 1 and where.count > 1 and where.count % launch.tuning.vector == 0
        if fits and period in (0, where.count) and (step >= lanes or step % where.count == 0):
            kind, period = "c", where.count
        found += kind
    return found


def _shared(where: layout.ParamMap, launch: Launch) -> bool:
    """Do the lanes of one thread share the parameter's value?"""
    return where.count == 1 or where.repeat % launch.tuning.vector == 0


def dense(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], bool]:
    """The inputs in the dense layout of the first one (untouched in the common case), and whether all are aligned."""
    first = tensors[0]
    if len(tensors) > 1 or not first.is_contiguous():
        strides = layout.dense_strides(first.shape, first.stride())
        tensors = [layout.in_order(t, strides) for t in tensors]
        return tensors, all(t.data_ptr() % 16 == 0 for t in tensors)
    return tensors, first.data_ptr() % 16 == 0


def forward(
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    scalars: list[float],
    program: str,
    every: int,
    final: bool,
) -> list[Tensor]:
    """The CUDA kernel of `spikeloom::weave`."""
    xs, aligned = dense(inputs)
    plan = plan_for((every, bool(state), final, None), program, xs[0], [p.shape for p in params], aligned)
    values = plan.values(params)
    return run_forward(plan, xs, state, [v.data_ptr() for v in values], scalars, every, final)


def run_forward(
    plan: Plan,
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    params: Sequence[int],
    scalars: Sequence[float],
    every: int,
    final: bool,
) -> list[Tensor]:
    """Allocate results and launch; `params` are addresses of values in the plan's layout."""
    recorded = plan.program
    results = calls.allocate_forward(recorded, xs[0], every, final)
    if plan.empty:
        return results
    n_out, none = len(recorded.outputs), (0,) * len(recorded.states)
    held = [layout.in_order(s, plan.slab) for s in state]
    pointers = [t.data_ptr() for t in xs]
    pointers += [t.data_ptr() for t in results[:n_out]]
    pointers += [s.data_ptr() for s in held] or none
    pointers += [t.data_ptr() for t in results[n_out : n_out + len(none)]] if final else none
    pointers.append(results[-1].data_ptr() if every else 0)
    plan.run(pointers, params, scalars)
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
    """The CUDA kernel of `spikeloom::weave_backward`."""
    results = calls.allocate_backward(inputs, params, program, mask)
    xs, aligned = dense(inputs)
    plan = plan_for((every, bool(state), False, mask), program, xs[0], [p.shape for p in params], aligned)
    values = plan.values(params)
    sums = run_backward(plan, results, grads, xs, state, [v.data_ptr() for v in values], checkpoints, scalars, mask)
    store_sums(plan, sums, params, results[len(results) - sum(s is not None for s in sums) :])
    return results


def run_backward(
    plan: Plan,
    results: Sequence[Tensor],
    grads: Sequence[Tensor],
    xs: Sequence[Tensor],
    state: Sequence[Tensor],
    params: Sequence[int],
    checkpoints: Sequence[Tensor],
    scalars: Sequence[float],
    mask: str,
) -> list[Tensor | None]:
    """Fill the gradients of inputs and states at the front of `results`; return partial sums per tensor parameter."""
    recorded = plan.program
    arriving, wanted = calls.parse_mask(mask)
    n_in, n_out, n_s = len(recorded.inputs), len(recorded.outputs), len(recorded.states)
    given = iter(grads)
    present = [next(given) if flag == 1 else None for flag in arriving]
    arrived = [None if g is None else _fit(g, plan.strides) for g in present[:n_out]]
    arrived += [None if g is None else layout.in_order(g.to(plan.real), plan.slab) for g in present[n_out:]]
    free = iter(results)
    outs = [next(free) if want else None for want in wanted[: n_in + n_s]]
    sums = [
        xs[0].new_empty(plan.sum_count(where), dtype=plan.real) if want else None
        for where, want in zip(plan.maps, wanted[n_in + n_s :], strict=True)
    ]
    if plan.empty:
        return [None if s is None else s.zero_() for s in sums]
    held: list[Tensor | None] = [layout.in_order(s, plan.slab) for s in state] or [None] * n_s
    left = iter(sums)
    all_sums = [next(left) if tensor else None for tensor in plan.is_tensor]
    everything = [*xs, *held, *(checkpoints or (None,)), *arrived, *outs, *all_sums]
    plan.run([0 if t is None else t.data_ptr() for t in everything], params, scalars)
    return sums


def store_sums(plan: Plan, sums: Sequence[Tensor | None], params: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Add up partial sums and write them to the gradients `targets` of the last parameters, `params`."""
    free = iter(targets)
    for where, partial, like in zip(plan.maps[len(plan.maps) - len(params) :], sums, params, strict=True):
        if partial is None:
            continue
        target = next(free)
        if plan.empty:
            target.zero_()
        elif where.count == 1:
            target.copy_(where.gradient(partial.sum(), like))
        else:
            total = partial.view(-1, where.count, plan.sum_width(where)).sum((0, 2))
            target.copy_(where.gradient(total, like))


def _fit(grad: Tensor, strides: tuple[int, ...]) -> Tensor:
    """A gradient in the dense layout of the input, at an aligned address."""
    fitted = layout.in_order(grad, strides)
    return fitted if fitted.data_ptr() % 16 == 0 else fitted.clone(memory_format=torch.preserve_format)
