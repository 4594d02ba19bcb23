"""The language of step functions: each operation works on torch tensors and on recording scalars alike.

With tensors the operation is computed by torch and differentiated by autograd (the reference); with `Sym` it is
recorded. Gradients follow torch's conventions: `maximum` and `minimum` share a tie equally, `clamp` passes inside
its closed interval, `floor` and `round` (half to even) are straight-through.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels.tape import Surrogate, Sym

ARITHMETIC: ContextVar[torch.dtype] = ContextVar("arithmetic", default=torch.float64)
"""Type of an operation on numbers alone inside a step function; the reference sets it to that of its states."""

Value = Any
"""A tensor, a recording scalar or a Python number."""


def _sym(*values: Value) -> Sym | None:
    return next((v for v in values if isinstance(v, Sym)), None)


def record(op: str, *values: Value, surrogate: Surrogate | None = None) -> Sym | None:
    """Record `op` if any value is a recording scalar; None if all are tensors or numbers."""
    anchor = _sym(*values)
    if anchor is None:
        return None
    return anchor.tape.add(op, *(anchor.tape.lift(v) for v in values), surrogate=surrogate)


def _tensor(value: Value, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def _tensors(*values: Value) -> list[Tensor]:
    like = next((v for v in values if isinstance(v, Tensor) and v.dtype != torch.bool), None)
    like = torch.zeros((), dtype=ARITHMETIC.get()) if like is None else like
    return [_tensor(v, like) for v in values]


def _compute(function: Callable[..., Tensor], *values: Value) -> Value:
    """`function` of tensors; of numbers alone a number again, which mixes with tensors and recording scalars alike."""
    if any(isinstance(v, Tensor) for v in values):
        return function(*_tensors(*values))
    return function(*(torch.tensor(v, dtype=torch.float64) for v in values)).item()


def exp(x: Value) -> Value:
    """e to the power `x`. The last bit may differ between backends."""
    return r if (r := record("exp", x)) is not None else _compute(torch.exp, x)


def log(x: Value) -> Value:
    """Natural logarithm. The last bit may differ between backends."""
    return r if (r := record("log", x)) is not None else _compute(torch.log, x)


def sqrt(x: Value) -> Value:
    """Square root, correctly rounded in kernels; torch's on a CPU may be one bit off."""
    return r if (r := record("sqrt", x)) is not None else _compute(torch.sqrt, x)


def tanh(x: Value) -> Value:
    """Hyperbolic tangent. The last bit may differ between backends."""
    return r if (r := record("tanh", x)) is not None else _compute(torch.tanh, x)


def sigmoid(x: Value) -> Value:
    """1 / (1 + exp(-x)). The last bits may differ between backends."""
    return r if (r := record("sigmoid", x)) is not None else _compute(torch.sigmoid, x)


def absolute(x: Value) -> Value:
    """|x|; the derivative at 0 is 0."""
    return r if (r := record("abs", x)) is not None else _compute(torch.abs, x)


def maximum(a: Value, b: Value) -> Value:
    """The larger of two; NaN if either is."""
    return r if (r := record("max", a, b)) is not None else _compute(torch.maximum, a, b)


def minimum(a: Value, b: Value) -> Value:
    """The smaller of two; NaN if either is."""
    return r if (r := record("min", a, b)) is not None else _compute(torch.minimum, a, b)


def clamp(x: Value, low: Value, high: Value) -> Value:
    """`x` limited to [low, high]; gradient passes where low <= x <= high, and to a limit where it is active.

    Not torch.clamp, whose gradient at the limits differs between its versions.
    """
    return r if (r := record("clamp", x, low, high)) is not None else _compute(_clamp, x, low, high)


def _clamp(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    above = torch.where((x >= low) | x.isnan(), x, low)
    return torch.where((above <= high) | above.isnan(), above, high)


def where(condition: Value, a: Value, b: Value) -> Value:
    """`a` where `condition` holds (is not zero), else `b`. No gradient flows through the condition."""
    anchor = _sym(condition, a, b)
    if anchor is not None:
        tape = anchor.tape
        cond = tape.lift(condition)
        if not cond.node.is_bool:
            cond = tape.add("nonzero", cond)
        return tape.add("where", cond, tape.lift(a), tape.lift(b))
    if isinstance(condition, (bool, int, float)):
        return a if condition else b
    a, b = _tensors(a, b)
    return torch.where(condition if condition.dtype == torch.bool else condition.detach() != 0, a, b)


def floor(x: Value) -> Value:
    """Largest integer not above `x`; straight-through gradient."""
    return r if (r := record("floor", x)) is not None else _compute(lambda x: _StraightThrough.apply(x, torch.floor), x)


def round(x: Value) -> Value:
    """Nearest integer, ties to even; straight-through gradient."""
    return r if (r := record("round", x)) is not None else _compute(lambda x: _StraightThrough.apply(x, torch.round), x)


def detach(x: Value) -> Value:
    """`x` without its gradient."""
    if isinstance(x, Tensor):
        return x.detach()
    return r if (r := record("detach", x)) is not None else x


class _StraightThrough(torch.autograd.Function):
    """A rounding whose gradient is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Any) -> Tensor:
        return rounding(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None
