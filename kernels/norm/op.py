"""The operators `spikeloom::norm_weave` and `spikeloom::norm_weave_backward`: BatchNorm in training mode fused with the
neuron behind it.

Forward reads y twice (statistics; normalise, add, neuron) and writes the outputs. Backward reads y and the arriving
gradients twice (sums per channel; input gradient), recomputing u and the membrane both times, unless a residual needs
its gradient too: then the first pass writes it and the second reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels.call import allocate_backward, allocate_forward, parse
from spikeloom.kernels.cpu import run as cpu
from spikeloom.kernels.cuda import run as cuda
from spikeloom.kernels.norm import cuda as direct
from spikeloom.kernels.norm import finish
from spikeloom.kernels.norm.programs import COMBINE, MOMENTS, corrected
from spikeloom.kernels.op import dispatched, is_plain, once_only
from spikeloom.kernels.reference import arithmetic

_ARGUMENTS = (
    "Tensor[] inputs, Tensor[] state, Tensor[] params, float[] scalars, Tensor weight, Tensor bias, "
    "str program, str group, float eps, int every, bool final"
)
_library = torch.library.Library("spikeloom", "FRAGMENT")
_library.define(f"norm_weave({_ARGUMENTS}) -> Tensor[]")
_library.define(
    "norm_weave_backward(Tensor[] grads, Tensor[] inputs, Tensor[] state, Tensor[] params, "
    "Tensor[] checkpoints, float[] scalars, Tensor stats, str program, str group, float eps, int every, "
    "str mask) -> Tensor[]"
)


def _per_channel(values: Tensor, y: Tensor) -> Tensor:
    """[C] values shaped to broadcast against the neuron axes of y [T, B, C, ...]."""
    return values.view(-1, *[1] * (y.dim() - 3))


def _forward(
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    scalars: list[float],
    weight: Tensor,
    bias: Tensor,
    program: str,
    group: str,
    eps: float,
    every: int,
    final: bool,
    running: finish.Running | None = None,
) -> list[Tensor]:
    y = inputs[0]
    if _in_one_go(y, group):
        return direct.forward(inputs, state, params, scalars, weight, bias, program, eps, every, final, running)
    kernels: Any = cuda if y.is_cuda else cpu
    stats = _statistics(kernels, y, weight, bias, group, eps)
    scale, shift = (_per_channel(v, y) for v in (stats[2], stats[3]))
    results: list[Tensor] = kernels.forward(inputs, state, [scale, shift, *params], scalars, program, every, final)
    if running is not None:
        finish.update(running, stats)
    return [*results, stats]


def _in_one_go(y: Tensor, group: str) -> bool:
    """Does the short road for GPUs apply: float32 arithmetic, statistics of this process alone, not empty?"""
    return y.is_cuda and not group and y.dtype != torch.float64 and y.numel() > 0


def _statistics(kernels: Any, y: Tensor, weight: Tensor, bias: Tensor, group: str, eps: float) -> Tensor:
    real = arithmetic(y.dtype)
    pivot = y.as_strided((y.shape[2],), (y.stride(2),), y.storage_offset()).to(real, copy=True)
    held = [_per_channel(pivot, y)] * 3
    count = y.numel() / y.shape[2]
    sums = kernels.backward([], [y], [], held, [], [], f"{MOMENTS.key}|ttt", 0, "2:0011")
    first, second = (s.flatten() / count for s in sums)
    return finish.forward(pivot + first, (second - first * first).clamp_min(0), count, weight, bias, eps, group)


def _backward(
    grads: list[Tensor],
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    checkpoints: list[Tensor],
    scalars: list[float],
    stats: Tensor,
    program: str,
    group: str,
    eps: float,
    every: int,
    mask: str,
) -> list[Tensor]:
    recorded, kinds = parse(program)
    y, n_in, n_first = inputs[0], len(recorded.inputs), len(recorded.inputs) + len(recorded.states)
    if _in_one_go(y, group):
        return direct.backward(grads, inputs, state, params, checkpoints, scalars, stats, program, eps, every, mask)
    kernels: Any = cuda if y.is_cuda else cpu
    arriving, wanted = mask.split(":")
    held = [_per_channel(stats[2], y), _per_channel(stats[3], y), *params]
    first = f"{arriving}:0{wanted[1:n_first]}11{wanted[n_first:]}"
    found = kernels.backward(grads, inputs, state, held, checkpoints, scalars, program, every, first)
    at = wanted[1:n_first].count("1")
    weighted, plain = found[at].flatten(), found[at + 1].flatten()
    results = [*found[:at], *found[at + 2 :]]
    table = finish.backward(weighted, plain, stats, eps, group)
    if wanted[0] == "1":
        a, b = (_per_channel(v, y) for v in (table[2], table[3]))
        if n_in > 1 and recorded.inputs[1] == "norm_residual" and wanted[1] == "1":
            gy = kernels.forward([y, results[0]], [], [held[0], a, b], [], f"{COMBINE.key}|ttt", 0, False)[0]
        else:
            n_out = len(recorded.outputs)
            second = f"{arriving[:n_out]}2{arriving[n_out:]}:1{'0' * (n_first - 1 + len(held) + 2)}"
            gy = kernels.backward(
                grads,
                inputs,
                state,
                [*held, a, b],
                checkpoints,
                scalars,
                f"{corrected(recorded).key}|{kinds}tt",
                every,
                second,
            )[0]
        results = [gy, *results]
    return [*results, table[0], table[1]]


def _forward_fake(
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    scalars: list[float],
    weight: Tensor,
    bias: Tensor,
    program: str,
    group: str,
    eps: float,
    every: int,
    final: bool,
) -> list[Tensor]:
    y = inputs[0]
    results = allocate_forward(parse(program)[0], y, every, final)
    return [*results, y.new_empty((6, y.shape[2]), dtype=arithmetic(y.dtype))]


def _backward_fake(
    grads: list[Tensor],
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    checkpoints: list[Tensor],
    scalars: list[float],
    stats: Tensor,
    program: str,
    group: str,
    eps: float,
    every: int,
    mask: str,
) -> list[Tensor]:
    recorded, _ = parse(program)
    n_first = len(recorded.inputs) + len(recorded.states)
    arriving, wanted = mask.split(":")
    channel = _per_channel(stats[0], inputs[0])
    full = f"{arriving}:{wanted[:n_first]}00{wanted[n_first:]}"
    return [
        *allocate_backward(inputs, [channel, channel, *params], program, full),
        stats.new_empty(stats.shape[1]),
        stats.new_empty(stats.shape[1]),
    ]


class _NormWeave(torch.autograd.Function):
    """Autograd of `norm_weave` over a flat list: (running, n inputs, n states, scalars, program, group, eps, every,
    final, offset, weight, bias, *tensors). `running` False: call the operators, so that tracers see them; else call the
    kernels themselves, which update these buffers (None: there are none). offset: that of `running`, whose gradient is
    0, as the normalisation takes every constant away."""

    @staticmethod
    def forward(
        ctx: Any,
        running: Any,
        n_in: int,
        n_state: int,
        scalars: list[float],
        program: str,
        group: str,
        eps: float,
        every: int,
        final: bool,
        offset: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        *tensors: Tensor,
    ) -> Any:
        inputs, state, params = (
            list(tensors[:n_in]),
            list(tensors[n_in : n_in + n_state]),
            list(tensors[n_in + n_state :]),
        )
        if running is False:
            with torch._C._AutoDispatchBelowAutograd():
                results = torch.ops.spikeloom.norm_weave(
                    inputs, state, params, scalars, weight, bias, program, group, eps, every, final
                )
        else:
            results = _forward(inputs, state, params, scalars, weight, bias, program, group, eps, every, final, running)
        ctx.set_materialize_grads(False)
        kept = results[-2:] if every else results[-1:]
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(*tensors, *kept)
        ctx.call = (
            running is False,
            n_in,
            n_state,
            scalars,
            program,
            group,
            eps,
            every,
            final,
            weight.dtype,
            bias.dtype,
        )
        ctx.offset = None if offset is None else (offset.shape, offset.dtype, offset.device)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        once_only()
        dispatch, n_in, n_state, scalars, program, group, eps, every, final, weight_dtype, bias_dtype = ctx.call
        *saved, stats = ctx.saved_tensors
        tensors, checkpoints = (saved[:-1], [saved[-1]]) if every else (saved, [])
        recorded, _ = parse(program)
        n_out, n_states = len(recorded.outputs), len(recorded.states)
        useful = grads[: n_out + n_states] if final else (*grads[:n_out], *[None] * n_states)
        needs = ctx.needs_input_grad[12:]
        states_wanted = needs[n_in : n_in + n_state] or (False,) * n_states
        wanted = (*needs[:n_in], *states_wanted, *needs[n_in + n_state :])
        mask = "".join("01"[g is not None] for g in useful) + ":" + "".join("01"[w] for w in wanted)
        backward = torch.ops.spikeloom.norm_weave_backward if dispatch or dispatched() else _backward
        *found, weight, bias = backward(
            [g for g in useful if g is not None],
            tensors[:n_in],
            tensors[n_in : n_in + n_state],
            tensors[n_in + n_state :],
            checkpoints,
            scalars,
            stats,
            program,
            group,
            eps,
            every,
            mask,
        )
        free = iter(found)
        rest = tuple(next(free) if need else None for need in needs)
        of_offset = None
        if ctx.needs_input_grad[9]:
            shape, dtype, device = ctx.offset
            of_offset = torch.zeros(shape, dtype=dtype, device=device)
        return (None,) * 9 + (of_offset, weight.to(weight_dtype), bias.to(bias_dtype)) + rest


def norm_weave(
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    scalars: list[float],
    weight: Tensor,
    bias: Tensor,
    program: str,
    group: str,
    eps: float,
    every: int,
    final: bool,
    running: finish.Running | None,
) -> Sequence[Tensor]:
    """Call the operator and update `running`.

    Plain tensors outside tracing take a short cut past torch's dispatcher (see `op.weave`), on which the kernel that
    finishes the statistics updates the buffers too; the operator itself changes nothing in place.
    """
    offset = None if running is None else running.offset
    if dispatched() or not is_plain(inputs[0]):
        bias = finish.hold(bias, running)
        results: list[Tensor] = torch.ops.spikeloom.norm_weave(
            inputs, state, params, scalars, weight, bias, program, group, eps, every, final
        )
        if running is not None:
            finish.update(running, results[-1])
        return results
    tensors = (*inputs, *state, *params)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (weight, bias, offset, *tensors)):
        applied: tuple[Tensor, ...] = _NormWeave.apply(
            running, len(inputs), len(state), scalars, program, group, eps, every, final, offset, weight, bias, *tensors
        )
        return applied
    return _forward(inputs, state, params, scalars, weight, bias, program, group, eps, every, final, running)


def _forward_autograd(
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    scalars: list[float],
    weight: Tensor,
    bias: Tensor,
    program: str,
    group: str,
    eps: float,
    every: int,
    final: bool,
) -> list[Tensor]:
    tensors = (*inputs, *state, *params)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (weight, bias, *tensors)):
        return list(
            _NormWeave.apply(
                False, len(inputs), len(state), scalars, program, group, eps, every, final, None, weight, bias, *tensors
            )
        )
    with torch._C._AutoDispatchBelowAutograd():
        result: list[Tensor] = torch.ops.spikeloom.norm_weave(
            inputs, state, params, scalars, weight, bias, program, group, eps, every, final
        )
    return result


def _backward_op(*arguments: Any) -> list[Tensor]:
    """`_backward` as an operator, whose results must not share memory."""
    *found, weight, bias = _backward(*arguments)
    return [*found, weight.clone(), bias.clone()]


for _device in ("CPU", "CUDA"):
    _library.impl("norm_weave", _forward, _device)
    _library.impl("norm_weave_backward", _backward_op, _device)
_library.impl("norm_weave", _forward_autograd, "Autograd")
torch.library.register_fake("spikeloom::norm_weave", _forward_fake, lib=_library)
torch.library.register_fake("spikeloom::norm_weave_backward", _backward_fake, lib=_library)
