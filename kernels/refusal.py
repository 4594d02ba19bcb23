"""What a recording scalar cannot do, and what to write instead.

A step function sees one neuron at one time step, so a tensor's methods, torch's functions and Python's own numbers are
no part of its language. Without this base class each of them would fail in words that do not say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from torch import Tensor

FUNCTIONS = (
    *("exp", "log", "sqrt", "tanh", "sigmoid", "absolute", "maximum", "minimum"),
    *("clamp", "where", "floor", "round", "spike", "detach"),
)
"""Functions of the step language, as `spikeloom.kernels` exports them."""

_INSTEAD = {
    "abs": "abs(x)",
    "add": "a + b",
    "clip": "clamp(x, low, high)",
    "div": "a / b",
    "erf": "tanh, or a function written with exp",
    "heaviside": "spike(x)",
    "max": "maximum(a, b)",
    "min": "minimum(a, b)",
    "mul": "a * b",
    "ones_like": "1.0",
    "pow": "x * x, or exp(p * log(x))",
    "reciprocal": "1.0 / x",
    "relu": "maximum(x, 0.0)",
    "rsqrt": "1.0 / sqrt(x)",
    "sign": "where(x > 0.0, 1.0, -1.0)",
    "softplus": "log(1.0 + exp(x))",
    "square": "x * x",
    "sub": "a - b",
    "zeros_like": "0.0",
    **dict.fromkeys(("float", "to", "type", "double", "half", "int", "type_as"), "where(condition, 1.0, 0.0)"),
}
_OF_AXES = frozenset(
    (
        *("sum", "mean", "amax", "amin", "std", "var", "norm", "cumsum", "cumprod", "prod", "any", "all"),
        *("argmax", "argmin", "softmax", "topk", "sort", "shape", "size", "dim", "ndim", "numel", "T"),
        *("reshape", "view", "permute", "transpose", "flatten", "unsqueeze", "squeeze", "expand"),
        *("stack", "cat", "matmul", "mm", "bmm", "einsum"),
    )
)


def refuse_tensor(value: object) -> None:
    """Raise TypeError for a tensor from outside the step function."""
    if isinstance(value, Tensor):
        raise TypeError(
            "a step function can compute with its arguments and Python numbers, not with Tensor; pass tensors as "
            "arguments of the step function: inputs, states, or keyword-only parameters"
        )


class Refusing:
    """Base of the recording scalar: every refusal names what was tried and what the language has instead."""

    __slots__ = ()

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name.endswith("_") and name.strip("_"):
            raise AttributeError(
                f".{name} changes a tensor in place, which a step function cannot: give the result a name, such as "
                "v = v + x, and return it as the new state"
            )
        raise AttributeError(f".{name} is no part of a step function: {_advice(name)}")

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> NoReturn:
        for value in (*args, *(kwargs or {}).values()):
            refuse_tensor(value)
        name = getattr(function, "__name__", str(function))
        raise TypeError(f"torch's {name} is no part of a step function: {_advice(name)}")

    def _number(self) -> NoReturn:
        raise TypeError(
            "a value of a step function is not a Python number while the step is recorded: float(), int() and the "
            f"functions of math cannot take it; {_LANGUAGE}"
        )

    def __float__(self) -> float:
        self._number()

    def __int__(self) -> int:
        self._number()

    def __index__(self) -> int:
        self._number()

    def __round__(self, digits: int | None = None) -> NoReturn:
        raise TypeError(f"Python's own round is no part of a step function: {_advice('round')}")

    def __iter__(self) -> NoReturn:
        raise TypeError(f"a value of a step function cannot be looped over or unpacked: {_advice('shape')}")

    def __getitem__(self, place: object) -> NoReturn:
        raise TypeError(f"a value of a step function cannot be indexed: {_advice('shape')}")

    def __setitem__(self, place: object, value: object) -> NoReturn:
        raise TypeError(
            "a value of a step function cannot be changed in place: write where(condition, a, b) and give it a name"
        )

    def __matmul__(self, other: object) -> NoReturn:
        raise TypeError(f"@ is no part of a step function: {_advice('matmul')}")

    __rmatmul__ = __matmul__

    def __floordiv__(self, other: object) -> NoReturn:
        raise TypeError("// is no part of a step function: write floor(a / b)")

    __rfloordiv__ = __floordiv__

    def __mod__(self, other: object) -> NoReturn:
        raise TypeError("% is no part of a step function: write a - floor(a / b) * b")

    __rmod__ = __mod__

    def __rpow__(self, base: object) -> NoReturn:
        raise TypeError("a power with a recorded exponent is no part of a step function: write exp(x * log(base))")


_LANGUAGE = f"the language is + - * /, comparisons, and from spikeloom.kernels {', '.join(FUNCTIONS)}"


def _advice(name: str) -> str:
    if name in _OF_AXES:
        return (
            "it sees one neuron at one time step, without axes. Do this outside, and pass the result as another input"
        )
    if name in FUNCTIONS:
        return f"write {name}(...), imported from spikeloom.kernels"
    if name in _INSTEAD:
        return f"write {_INSTEAD[name]}; {_LANGUAGE}"
    return _LANGUAGE
