"""`weave`: run a program over all time steps of `[T, *neurons]` inputs, on a chosen backend, with gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spikeloom.kernels import op, reference
from spikeloom.kernels.backends import choose
from spikeloom.kernels.call import checkpoint_distance
from spikeloom.kernels.program import Program
from spikeloom.kernels.watch import WATCHERS

SCALE, SHIFT = "norm_scale", "norm_shift"
"""Parameters of a fused normalisation: what multiplies its first input, and what is added."""


def weave(
    program: Program,
    inputs: Sequence[Tensor],
    params: Mapping[str, Tensor | float],
    *,
    state: Sequence[Tensor] | None = None,
    backend: str = "auto",
    final: bool = True,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run a program.

    Args:
        inputs: one floating-point tensor [T, *neurons] per input of the program, all of one shape.
        params: a number or a tensor for every run-time parameter; tensors broadcast against [*neurons] and get
            gradients.
        state: initial states, each [*neurons]; None starts from rest. Gradients flow into it.
        backend: `auto`, `reference`, `cpu` or `cuda`.
        final: return the final states; without them kernels do not write them.

    Returns:
        The outputs [T, *neurons] in the inputs' dtype, and the final states [*neurons] in float32 (float64 for float64
        inputs), differentiable both; no states if `final` is false.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit; the message says what is expected.
        BackendError: the named backend cannot run here.
    """
    if WATCHERS:
        return _watched(program, inputs, params, state, backend, final)
    return _run(program, inputs, params, state, backend, final)


def _run(
    program: Program,
    inputs: Sequence[Tensor],
    params: Mapping[str, Tensor | float],
    state: Sequence[Tensor] | None,
    backend: str,
    final: bool,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    call = prepare(program, inputs, params, state, backend)
    # of tensors without values (device "meta") the operator knows the results' shapes without a loop over T
    shapes_alone = call.inputs[0].is_meta and backend == "auto" and not torch.is_grad_enabled()
    if call.backend == "reference" and not shapes_alone:
        outputs, ends = reference.run(program, call.inputs, call.state, params)
        return tuple(outputs), tuple(ends) if final else ()
    results = op.weave(
        call.inputs, call.state, call.tensors, call.scalars, f"{program.key}|{call.kinds}", call.every, final
    )
    n = len(program.outputs)
    return tuple(results[:n]), tuple(results[n : n + len(program.states)]) if final else ()


def _watched(
    program: Program,
    inputs: Sequence[Tensor],
    params: Mapping[str, Tensor | float],
    state: Sequence[Tensor] | None,
    backend: str,
    final: bool,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    with ExitStack() as stack:
        for watcher in WATCHERS:
            stack.enter_context(watcher.paused())
        outputs, ends = _run(program, inputs, params, state, backend, final)
    affine = None
    if SCALE in params and SHIFT in params:
        scale, shift = params[SCALE], params[SHIFT]
        assert isinstance(scale, Tensor)
        assert isinstance(shift, Tensor)
        affine = scale, shift
    for watcher in WATCHERS:
        watcher.saw_neurons(program, inputs, outputs, affine)
    return outputs, ends


class Call(NamedTuple):
    """Checked arguments of an operator call. `kinds` has one letter per parameter: t(ensor), s(calar) or h(alving).

    The last is a scalar that is a power of two, by which kernels divide with a multiplication, exactly.
    """

    inputs: list[Tensor]
    state: list[Tensor]
    tensors: list[Tensor]
    scalars: list[float]
    kinds: str
    every: int
    backend: str


def prepare(
    program: Program,
    inputs: Sequence[Tensor],
    params: Mapping[str, Tensor | float],
    state: Sequence[Tensor] | None,
    backend: str,
) -> Call:
    """Check the arguments of `weave`, choose the backend, and split parameters into tensors and scalars."""
    xs = _checked_inputs(program, inputs)
    states = _checked_state(program, xs[0], state)
    tensors, scalars, kinds = [], [], ""
    for name in program.params:
        value = params[name]
        if isinstance(value, Tensor):
            tensors.append(_checked_param(name, value, xs[0]))
            kinds += "t"
        else:
            scalars.append(value)
            kinds += "h" if is_power_of_two(value) else "s"
    chosen = choose(backend, xs[0].device.type)
    if chosen != "reference" and forward_ad._current_level >= 0:
        raise NotImplementedError(
            f"{program.name}: kernels have no forward-mode derivatives (torch.func.jvp, dual numbers); pass "
            "backend='reference'"
        )
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in (*xs, *states, *tensors))
    every = checkpoint_distance(program, xs[0].shape[0]) if learns else 0
    return Call(xs, states, tensors, scalars, kinds, every, chosen)


_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _checked_inputs(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    if len(inputs) != len(program.inputs):
        raise TypeError(
            f"{program.name} takes {len(program.inputs)} input(s) ({', '.join(program.inputs)}), got {len(inputs)}"
        )
    first = inputs[0]
    for name, x in zip(program.inputs, inputs, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"{program.name}: {name} must be a torch tensor [T, *neurons], got {type(x).__name__}")
        if x.dtype not in _DTYPES:
            raise TypeError(
                f"{program.name}: {name} has dtype {x.dtype}; neurons take float32, float64, float16 or "
                f"bfloat16 (convert with {name}.float())"
            )
        if x.dim() < 2:
            raise ValueError(
                f"{program.name}: {name} has shape {list(x.shape)}; expected [T, *neurons] with time first, "
                f"usually [T, B, ...] (for one time step pass {name}[None])"
            )
        if x.shape != first.shape:
            raise ValueError(
                f"{program.name}: {name} has shape {list(x.shape)} but {program.inputs[0]} has "
                f"{list(first.shape)}; all inputs must have one shape"
            )
        if x.device != first.device:
            raise ValueError(f"{program.name}: {name} is on {x.device} but {program.inputs[0]} is on {first.device}")
    if first.shape[0] == 0:
        raise ValueError(f"{program.name}: the input has T = 0 time steps (shape {list(first.shape)}); T must be >= 1")
    if len(inputs) == 1:
        return [first]
    dtype = first.dtype
    for x in inputs[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    return [x.to(dtype) for x in inputs]


def _checked_state(program: Program, x: Tensor, state: Sequence[Tensor] | None) -> list[Tensor]:
    if state is None or not program.states:
        return []
    if isinstance(state, Tensor) or len(state) != len(program.states):
        got = "one tensor" if isinstance(state, Tensor) else f"{len(state)} value(s)"
        raise TypeError(
            f"{program.name}: state must be a tuple ({', '.join(program.states)},) of {len(program.states)} "
            f"tensor(s) [*neurons], got {got}"
        )
    real = reference.arithmetic(x.dtype)
    for name, s in zip(program.states, state, strict=True):
        if s.shape != x.shape[1:]:
            raise ValueError(
                f"{program.name}: state {name} has shape {list(s.shape)} but the input {list(x.shape)} has "
                f"neurons {list(x.shape[1:])}; a state belongs to one batch size: start from rest "
                f"(state=None) when the batch changes"
            )
        if s.device != x.device:
            raise ValueError(
                f"{program.name}: state {name} is on {s.device} but the input is on {x.device}; move it "
                f"with state.to(...)"
            )
    return [s.to(real) for s in state]


def _checked_param(name: str, value: Tensor, x: Tensor) -> Tensor:
    if not value.is_floating_point():
        raise TypeError(f"parameter {name} has dtype {value.dtype}; expected a floating-point tensor")
    if value.device != x.device:
        if value.numel() != 1 or value.device.type != "cpu":
            raise ValueError(
                f"parameter {name} is on {value.device} but the input is on {x.device}; move the module "
                f"with .to({str(x.device)!r})"
            )
        return value.to(x.device)
    return value


def is_power_of_two(value: float) -> bool:
    """Whether value is 2^k whose reciprocal is an ordinary float32, so that x / value is x * (1 / value), exactly."""
    return 2.0**-100 <= value <= 2.0**100 and math.frexp(value)[0] == 0.5
