"""The torch operators `spikeloom::weave` and `spikeloom::weave_backward`: dispatch, shapes for tracing, autograd.

`weave(inputs, state, params, scalars, program, every, final) ->
outputs + [final states if final] + [checkpoints if every]`. `program` is
"key|kinds" with one letter per parameter: t(ensor), from `params`, or s(calar), from `scalars`. Forward keeps nothing
for backward but its inputs and, if `every` > 0, the state every `every` steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from spikeloom.kernels.call import allocate_backward, allocate_forward, parse
from spikeloom.kernels.cpu import run as cpu
from spikeloom.kernels.cuda import run as cuda

_library = torch.library.Library("spikeloom", "FRAGMENT")
_library.define(
    "weave(Tensor[] inputs, Tensor[] state, Tensor[] params, float[] scalars, str program, int every, "
    "bool final) -> Tensor[]"
)
_library.define(
    "weave_backward(Tensor[] grads, Tensor[] inputs, Tensor[] state, Tensor[] params, Tensor[] checkpoints, "
    "float[] scalars, str program, int every, str mask) -> Tensor[]"
)


def weave(
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    scalars: list[float],
    program: str,
    every: int,
    final: bool,
) -> Sequence[Tensor]:
    """Call the operator.

    Plain tensors outside tracing take a short cut past torch's dispatcher to the same kernels and the same autograd
    function: the dispatcher costs more than a small layer's kernel.
    """
    first = inputs[0]
    kernel = _KERNELS.get(first.device.type)
    if kernel is None or not is_plain(first) or dispatched():
        results: list[Tensor] = torch.ops.spikeloom.weave(inputs, state, params, scalars, program, every, final)
        return results
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *state, *params)):
        applied: tuple[Tensor, ...] = _Weave.apply(
            kernel, len(inputs), len(state), scalars, program, every, final, *inputs, *state, *params
        )
        return applied
    return kernel(inputs, state, params, scalars, program, every, final)


def is_plain(tensor: Tensor) -> bool:
    """A tensor proper, not one of the subclasses by which torch traces and transforms."""
    return type(tensor) is Tensor or type(tensor) is torch.nn.Parameter


def dispatched() -> bool:
    """Is something watching operators: a compiler or tracer, a dispatch or function mode, a functorch transform,
    forward-mode differentiation? A default device (`torch.set_default_device`, `with torch.device(...)`) is none."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or (torch._C._len_torch_function_stack() > 0 and _in_function_mode())
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def _in_function_mode() -> bool:
    modes = (torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack()))
    return any(not isinstance(mode, DeviceContext) for mode in modes)


def once_only(instead: str = "pass backend='reference' to differentiate twice") -> None:
    """Refuse to record a backward pass: kernels have no second derivative, and none would be zero without a word."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a kernel was differentiated with create_graph=True, but kernels have a first derivative only; " + instead
        )


def _forward_fake(
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    scalars: list[float],
    program: str,
    every: int,
    final: bool,
) -> list[Tensor]:
    return allocate_forward(parse(program)[0], inputs[0], every, final)


def _backward_fake(
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
    return allocate_backward(inputs, params, program, mask)


class _Weave(torch.autograd.Function):
    """Autograd of `weave` over a flat argument list.

    Arguments: the forward kernel to call (None: the operator), numbers of inputs and states, scalars, program, every,
    final, then the tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Any,
        n_in: int,
        n_state: int,
        scalars: list[float],
        program: str,
        every: int,
        final: bool,
        *tensors: Tensor,
    ) -> Any:
        inputs, state, params = (
            list(tensors[:n_in]),
            list(tensors[n_in : n_in + n_state]),
            list(tensors[n_in + n_state :]),
        )
        if kernel is None:
            with torch._C._AutoDispatchBelowAutograd():
                results = torch.ops.spikeloom.weave(inputs, state, params, scalars, program, every, final)
        else:
            results = kernel(inputs, state, params, scalars, program, every, final)
        ctx.set_materialize_grads(False)
        if every:
            ctx.mark_non_differentiable(results[-1])
            ctx.save_for_backward(*tensors, results[-1])
        else:
            ctx.save_for_backward(*tensors)
        ctx.call = (n_in, n_state, scalars, program, every, final)
        ctx.direct = tensors[0].device.type if kernel is not None else None
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        once_only()
        n_in, n_state, scalars, program, every, final = ctx.call
        saved = ctx.saved_tensors
        tensors, checkpoints = (saved[:-1], [saved[-1]]) if every else (saved, [])
        recorded, _ = parse(program)
        n_out, n_states = len(recorded.outputs), len(recorded.states)
        useful = grads[: n_out + n_states] if final else (*grads[:n_out], *[None] * n_states)
        needs = ctx.needs_input_grad[7:]
        states_wanted = needs[n_in : n_in + n_state] or (False,) * n_states
        wanted = (*needs[:n_in], *states_wanted, *needs[n_in + n_state :])
        mask = "".join("01"[g is not None] for g in useful) + ":" + "".join("01"[w] for w in wanted)
        kernel = None if ctx.direct is None or dispatched() else _BACKWARD[ctx.direct]
        found = iter(
            (kernel or torch.ops.spikeloom.weave_backward)(
                [g for g in useful if g is not None],
                list(tensors[:n_in]),
                list(tensors[n_in : n_in + n_state]),
                list(tensors[n_in + n_state :]),
                checkpoints,
                scalars,
                program,
                every,
                mask,
            )
        )
        return (None,) * 7 + tuple(next(found) if need else None for need in needs)


def _forward_autograd(
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    scalars: list[float],
    program: str,
    every: int,
    final: bool,
) -> list[Tensor]:
    tensors = (*inputs, *state, *params)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return list(_Weave.apply(None, len(inputs), len(state), scalars, program, every, final, *tensors))
    with torch._C._AutoDispatchBelowAutograd():
        result: list[Tensor] = torch.ops.spikeloom.weave(inputs, state, params, scalars, program, every, final)
    return result


_KERNELS: dict[str, Callable[..., list[Tensor]]] = {"cpu": cpu.forward, "cuda": cuda.forward}
_BACKWARD: dict[str, Callable[..., list[Tensor]]] = {"cpu": cpu.backward, "cuda": cuda.backward}

_library.impl("weave", cpu.forward, "CPU")
_library.impl("weave", cuda.forward, "CUDA")
_library.impl("weave", _forward_autograd, "Autograd")
_library.impl("weave_backward", cpu.backward, "CPU")
_library.impl("weave_backward", cuda.backward, "CUDA")
torch.library.register_fake("spikeloom::weave", _forward_fake, lib=_library)
torch.library.register_fake("spikeloom::weave_backward", _backward_fake, lib=_library)
