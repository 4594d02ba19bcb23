"""The torch operators `spikeloom::weave` and `spikeloom::weave_backward`: dispatch, shapes for tracing, autograd.

`weave(inputs, state, params, scalars, program, every) -> outputs + final states + [checkpoints if every]`. `program` is
"key|kinds" with one letter per parameter: t(ensor), from `params`, or s(calar), from `scalars`. Forward keeps nothing
for backward but its inputs and, if `every` > 0, the state every `every` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import layout
from spikeloom.kernels.program import Program, lookup
from spikeloom.kernels.reference import arithmetic

_library = torch.library.Library("spikeloom", "FRAGMENT")
_library.define("weave(Tensor[] inputs, Tensor[] state, Tensor[] params, float[] scalars, str program, int every) "
                "-> Tensor[]")
_library.define("weave_backward(Tensor[] grads, Tensor[] inputs, Tensor[] state, Tensor[] params, Tensor[] checkpoints, "
                "float[] scalars, str program, int every, str mask) -> Tensor[]")


def weave(inputs: list[Tensor], state: list[Tensor], params: list[Tensor], scalars: list[float], program: str,
          every: int) -> list[Tensor]:
    """Call the operator."""
    result: list[Tensor] = torch.ops.spikeloom.weave(inputs, state, params, scalars, program, every)
    return result


@lru_cache(maxsize=4096)
def parse(program: str) -> tuple[Program, str]:
    """The recorded program and parameter kinds behind an operator's `program` argument."""
    key, kinds = program.rsplit("|", 1)
    return lookup(key), kinds


@lru_cache(maxsize=4096)
def parse_mask(mask: str) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """`"1101:010"` -> (which gradients arrive: outputs, final states; which are wanted: inputs, state, params)."""
    arriving, wanted = mask.split(":")
    return tuple(c == "1" for c in arriving), tuple(c == "1" for c in wanted)


def checkpoint_count(steps: int, every: int) -> int:
    """How many states are kept: at t = every, 2 every, ... < T."""
    return (steps - 1) // every if every else 0


def allocate_forward(program: Program, x: Tensor, every: int) -> list[Tensor]:
    """Uninitialised results of the forward operator."""
    real = arithmetic(x.dtype)
    results = [layout.empty_dense(x, x.dtype) for _ in program.outputs]
    results += [layout.empty_slab(x, real) for _ in program.states]
    if every:
        lanes = x[0].numel()
        results.append(x.new_empty((len(program.states), checkpoint_count(x.shape[0], every), lanes), dtype=real))
    return results


def _forward_cpu(inputs: list[Tensor], state: list[Tensor], params: list[Tensor], scalars: list[float], program: str,
                 every: int) -> list[Tensor]:
    from spikeloom.kernels.cpu import run

    return run.forward(inputs, state, params, scalars, program, every)


def _forward_cuda(inputs: list[Tensor], state: list[Tensor], params: list[Tensor], scalars: list[float], program: str,
                  every: int) -> list[Tensor]:
    from spikeloom.kernels.cuda import run

    return run.forward(inputs, state, params, scalars, program, every)


def _backward_cpu(grads: list[Tensor], inputs: list[Tensor], state: list[Tensor], params: list[Tensor],
                  checkpoints: list[Tensor], scalars: list[float], program: str, every: int, mask: str) -> list[Tensor]:
    from spikeloom.kernels.cpu import run

    return run.backward(grads, inputs, state, params, checkpoints, scalars, program, every, mask)


def _backward_cuda(grads: list[Tensor], inputs: list[Tensor], state: list[Tensor], params: list[Tensor],
                   checkpoints: list[Tensor], scalars: list[float], program: str, every: int, mask: str) -> list[Tensor]:
    from spikeloom.kernels.cuda import run

    return run.backward(grads, inputs, state, params, checkpoints, scalars, program, every, mask)


def _forward_fake(inputs: list[Tensor], state: list[Tensor], params: list[Tensor], scalars: list[float], program: str,
                  every: int) -> list[Tensor]:
    return allocate_forward(parse(program)[0], inputs[0], every)


def _backward_fake(grads: list[Tensor], inputs: list[Tensor], state: list[Tensor], params: list[Tensor],
                   checkpoints: list[Tensor], scalars: list[float], program: str, every: int, mask: str) -> list[Tensor]:
    return allocate_backward(inputs, params, program, mask)


def allocate_backward(inputs: Sequence[Tensor], params: Sequence[Tensor], program: str, mask: str) -> list[Tensor]:
    """Uninitialised gradients that are wanted, in the order inputs, initial states, tensor parameters."""
    recorded, _ = parse(program)
    _, wanted = parse_mask(mask)
    x, n_in, n_state = inputs[0], len(recorded.inputs), len(recorded.states)
    results = [layout.empty_dense(x, x.dtype) for want in wanted[:n_in] if want]
    results += [layout.empty_slab(x, arithmetic(x.dtype)) for want in wanted[n_in:n_in + n_state] if want]
    results += [torch.empty_like(p, memory_format=torch.contiguous_format)
                for p, want in zip(params, wanted[n_in + n_state:], strict=True) if want]
    return results


class _Weave(torch.autograd.Function):
    """Autograd of `weave`, over a flat argument list: (n inputs, n states, scalars, program, every, *tensors)."""

    @staticmethod
    def forward(ctx: Any, n_in: int, n_state: int, scalars: list[float], program: str, every: int, *tensors: Tensor) -> Any:
        inputs, state, params = list(tensors[:n_in]), list(tensors[n_in:n_in + n_state]), list(tensors[n_in + n_state:])
        with torch._C._AutoDispatchBelowAutograd():
            results = torch.ops.spikeloom.weave(inputs, state, params, scalars, program, every)
        ctx.save_for_backward(*tensors, *(results[-1:] if every else ()))
        ctx.set_materialize_grads(False)
        if every:
            ctx.mark_non_differentiable(results[-1])
        ctx.call = (n_in, n_state, scalars, program, every)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        n_in, n_state, scalars, program, every = ctx.call
        saved = ctx.saved_tensors
        tensors, checkpoints = (saved[:-1], [saved[-1]]) if every else (saved, [])
        recorded, _ = parse(program)
        useful = grads[:len(recorded.outputs) + len(recorded.states)]
        needs = ctx.needs_input_grad[5:]
        states_wanted = needs[n_in:n_in + n_state] or (False,) * len(recorded.states)
        wanted = (*needs[:n_in], *states_wanted, *needs[n_in + n_state:])
        mask = "".join("01"[g is not None] for g in useful) + ":" + "".join("01"[w] for w in wanted)
        found = iter(torch.ops.spikeloom.weave_backward(
            [g for g in useful if g is not None], list(tensors[:n_in]), list(tensors[n_in:n_in + n_state]),
            list(tensors[n_in + n_state:]), checkpoints, scalars, program, every, mask))
        return (None,) * 5 + tuple(next(found) if need else None for need in needs)


def _forward_autograd(inputs: list[Tensor], state: list[Tensor], params: list[Tensor], scalars: list[float],
                      program: str, every: int) -> list[Tensor]:
    tensors = (*inputs, *state, *params)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return list(_Weave.apply(len(inputs), len(state), scalars, program, every, *tensors))
    with torch._C._AutoDispatchBelowAutograd():
        result: list[Tensor] = torch.ops.spikeloom.weave(inputs, state, params, scalars, program, every)
    return result


_library.impl("weave", _forward_cpu, "CPU")
_library.impl("weave", _forward_cuda, "CUDA")
_library.impl("weave", _forward_autograd, "Autograd")
_library.impl("weave_backward", _backward_cpu, "CPU")
_library.impl("weave_backward", _backward_cuda, "CUDA")
torch.library.register_fake("spikeloom::weave", _forward_fake, lib=_library)
torch.library.register_fake("spikeloom::weave_backward", _backward_fake, lib=_library)
