"""The operators `spikeloom::norm_weave` and `spikeloom::norm_weave_backward`: BatchNorm in training mode fused with the
neuron behind it.

Forward reads y twice (statistics; normalise, add, neuron) and writes the outputs. Backward reads y and the arriving
gradients twice (sums per channel; input gradient), recomputing u and the membrane both times, unless a residual needs
its gradient too: then the first pass writes it and the second reads it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels.call import allocate_backward, allocate_forward, parse, parse_mask
from spikeloom.kernels.cpu import run as cpu
from spikeloom.kernels.cuda import run as cuda
from spikeloom.kernels.norm import finish
from spikeloom.kernels.norm.programs import COMBINE, MOMENTS, corrected
from spikeloom.kernels.reference import arithmetic

_ARGUMENTS = ("Tensor[] inputs, Tensor[] state, Tensor[] params, float[] scalars, Tensor weight, Tensor bias, "
              "str program, str group, float eps, int every, bool final")
_library = torch.library.Library("spikeloom", "FRAGMENT")
_library.define(f"norm_weave({_ARGUMENTS}) -> Tensor[]")
_library.define("norm_weave_backward(Tensor[] grads, Tensor[] inputs, Tensor[] state, Tensor[] params, "
                "Tensor[] checkpoints, float[] scalars, Tensor stats, str program, str group, float eps, int every, "
                "str mask) -> Tensor[]")


def _per_channel(values: Tensor, y: Tensor) -> Tensor:
    """[C] values shaped to broadcast against the neuron axes of y [T, B, C, ...]."""
    return values.view(-1, *[1] * (y.dim() - 3))


def _forward(inputs: list[Tensor], state: list[Tensor], params: list[Tensor], scalars: list[float], weight: Tensor,
             bias: Tensor, program: str, group: str, eps: float, every: int, final: bool) -> list[Tensor]:
    y = inputs[0]
    kernels: Any = cuda if y.is_cuda else cpu
    stats = _statistics(y, weight, bias, group, eps)
    scale, shift = (_per_channel(v, y) for v in (stats[2], stats[3]))
    results: list[Tensor] = kernels.forward(inputs, state, [scale, shift, *params], scalars, program, every, final)
    return [*results, stats]


def _statistics(y: Tensor, weight: Tensor, bias: Tensor, group: str, eps: float) -> Tensor:
    real = arithmetic(y.dtype)
    corner = y[0, 0].reshape(y.shape[2], -1)[:, 0] if y.dim() > 3 else y[0, 0]
    pivot = corner.to(real).contiguous()
    held = [_per_channel(pivot, y)] * 3
    count = y.numel() / y.shape[2]
    call = ([], [y], [], held, [], [], f"{MOMENTS.key}|ttt", 0, "2:0011")
    if y.is_cuda and real == torch.float32 and not group:
        plan, (_, first, second) = cuda.backward_sums([], *call)
        return finish.forward_cuda(first, second, cuda.sum_width(plan, plan.maps[1]), pivot, weight.float().contiguous(),
                                   bias.float().contiguous(), count, eps)
    kernels: Any = cuda if y.is_cuda else cpu
    first, second = (s.flatten() / count for s in kernels.backward(*call))
    return finish.forward(pivot + first, (second - first * first).clamp_min(0), count, weight, bias, eps, group)


def _backward(grads: list[Tensor], inputs: list[Tensor], state: list[Tensor], params: list[Tensor],
              checkpoints: list[Tensor], scalars: list[float], stats: Tensor, program: str, group: str, eps: float,
              every: int, mask: str) -> list[Tensor]:
    recorded, kinds = parse(program)
    y, n_in, n_s = inputs[0], len(recorded.inputs), len(recorded.states)
    kernels: Any = cuda if y.is_cuda else cpu
    arriving, wanted = mask.split(":")
    held = [_per_channel(stats[2], y), _per_channel(stats[3], y), *params]
    has_residual = "norm_residual" in recorded.inputs and wanted[1] == "1"
    first = "0" + wanted[1:n_in + n_s] + "11" + wanted[n_in + n_s:]
    call = (grads, inputs, state, held, checkpoints, scalars, program, every, f"{arriving}:{first}")
    results, sums = _first_pass(kernels, call, stats, eps, group)
    if wanted[0] == "1":
        a, b = (_per_channel(v, y) for v in (sums[2], sums[3]))
        if has_residual:
            gy = kernels.forward([y, results[0]], [], [held[0], a, b], [], f"{COMBINE.key}|ttt", 0, False)[0]
        else:
            tail = corrected(recorded)
            n_out = len(recorded.outputs)
            second = f"{arriving[:n_out]}2{arriving[n_out:]}:1" + "0" * (n_in - 1 + n_s + len(held) + 2)
            gy = kernels.backward(grads, inputs, state, [*held, a, b], checkpoints, scalars, f"{tail.key}|{kinds}tt",
                                  every, second)[0]
        results = [gy, *results]
    return [*results, sums[0], sums[1]]


def _first_pass(kernels: Any, call: Any, stats: Tensor, eps: float, group: str) -> tuple[list[Tensor], Tensor]:
    """Gradients of everything but y, weight and bias; and the per-channel results [4, C] of `finish.backward`."""
    _, inputs, _, held, _, _, program, _, mask = call
    recorded, _ = parse(program)
    n_first = len(recorded.inputs) + len(recorded.states)
    wanted = parse_mask(mask)[1]
    if kernels is cpu or group or stats.dtype != torch.float32:
        found = kernels.backward(*call)
        at = sum(wanted[:n_first])
        weighted, plain = found[at].flatten(), found[at + 1].flatten()
        return found[:at] + found[at + 2:], finish.backward(weighted, plain, stats, eps, group)
    results = allocate_backward(inputs, held, program, mask)
    plan, partial = cuda.backward_sums(results, *call)
    at = sum(wanted[:n_first])
    cuda.store_sums(plan, partial[2:], held[2:], results[at + 2:])
    sums = finish.backward_cuda(partial[0], partial[1], cuda.sum_width(plan, plan.maps[0]), stats, eps)
    return results[:at] + results[at + 2:], sums


def _forward_fake(inputs: list[Tensor], state: list[Tensor], params: list[Tensor], scalars: list[float], weight: Tensor,
                  bias: Tensor, program: str, group: str, eps: float, every: int, final: bool) -> list[Tensor]:
    y = inputs[0]
    results = allocate_forward(parse(program)[0], y, every, final)
    return [*results, y.new_empty((6, y.shape[2]), dtype=arithmetic(y.dtype))]


def _backward_fake(grads: list[Tensor], inputs: list[Tensor], state: list[Tensor], params: list[Tensor],
                   checkpoints: list[Tensor], scalars: list[float], stats: Tensor, program: str, group: str, eps: float,
                   every: int, mask: str) -> list[Tensor]:
    recorded, _ = parse(program)
    n_first = len(recorded.inputs) + len(recorded.states)
    arriving, wanted = mask.split(":")
    channel = _per_channel(stats[0], inputs[0])
    full = f"{arriving}:{wanted[:n_first]}00{wanted[n_first:]}"
    return [*allocate_backward(inputs, [channel, channel, *params], program, full), stats.new_empty(stats.shape[1]),
            stats.new_empty(stats.shape[1])]


class _NormWeave(torch.autograd.Function):
    """Autograd of `norm_weave` over a flat list: (n inputs, n states, scalars, program, group, eps, every, final, weight,
    bias, *tensors)."""

    @staticmethod
    def forward(ctx: Any, n_in: int, n_state: int, scalars: list[float], program: str, group: str, eps: float, every: int,
                final: bool, weight: Tensor, bias: Tensor, *tensors: Tensor) -> Any:
        inputs, state, params = list(tensors[:n_in]), list(tensors[n_in:n_in + n_state]), list(tensors[n_in + n_state:])
        with torch._C._AutoDispatchBelowAutograd():
            results = torch.ops.spikeloom.norm_weave(inputs, state, params, scalars, weight, bias, program, group, eps,
                                                     every, final)
        ctx.set_materialize_grads(False)
        kept = results[-2:] if every else results[-1:]
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(*tensors, *kept)
        ctx.call = (n_in, n_state, scalars, program, group, eps, every, final, weight.dtype, bias.dtype)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        n_in, n_state, scalars, program, group, eps, every, final, weight_dtype, bias_dtype = ctx.call
        *saved, stats = ctx.saved_tensors
        tensors, checkpoints = (saved[:-1], [saved[-1]]) if every else (saved, [])
        recorded, _ = parse(program)
        n_out, n_states = len(recorded.outputs), len(recorded.states)
        useful = grads[:n_out + n_states] if final else (*grads[:n_out], *[None] * n_states)
        needs = ctx.needs_input_grad[10:]
        states_wanted = needs[n_in:n_in + n_state] or (False,) * n_states
        wanted = (*needs[:n_in], *states_wanted, *needs[n_in + n_state:])
        mask = "".join("01"[g is not None] for g in useful) + ":" + "".join("01"[w] for w in wanted)
        *found, weight, bias = torch.ops.spikeloom.norm_weave_backward(
            [g for g in useful if g is not None], tensors[:n_in], tensors[n_in:n_in + n_state], tensors[n_in + n_state:],
            checkpoints, scalars, stats, program, group, eps, every, mask)
        free = iter(found)
        rest = tuple(next(free) if need else None for need in needs)
        return (None,) * 8 + (weight.to(weight_dtype), bias.to(bias_dtype)) + rest


def _forward_autograd(inputs: list[Tensor], state: list[Tensor], params: list[Tensor], scalars: list[float],
                      weight: Tensor, bias: Tensor, program: str, group: str, eps: float, every: int,
                      final: bool) -> list[Tensor]:
    tensors = (*inputs, *state, *params)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (weight, bias, *tensors)):
        return list(_NormWeave.apply(len(inputs), len(state), scalars, program, group, eps, every, final, weight, bias,
                                     *tensors))
    with torch._C._AutoDispatchBelowAutograd():
        result: list[Tensor] = torch.ops.spikeloom.norm_weave(inputs, state, params, scalars, weight, bias, program,
                                                              group, eps, every, final)
    return result


for _device in ("CPU", "CUDA"):
    _library.impl("norm_weave", _forward, _device)
    _library.impl("norm_weave_backward", _backward, _device)
_library.impl("norm_weave", _forward_autograd, "Autograd")
torch.library.register_fake("spikeloom::norm_weave", _forward_fake, lib=_library)
torch.library.register_fake("spikeloom::norm_weave_backward", _backward_fake, lib=_library)
