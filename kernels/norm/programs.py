"""The step functions of the fused normalisation, built around a neuron's own program.

`fused` puts `u = y scale + shift (+ residual)` in front of a neuron. The statistics and the correction that BatchNorm's
gradient needs are programs too, so every pass over a tensor is a kernel of the loom:

* `MOMENTS`: with the constant 1 as gradient of its output, the gradients of `first` and `second` are the per-channel
  sums of (y - pivot) and (y - pivot)^2.
* `corrected`: a fused program with one more output, y (a y / 2 + b). With the constant 1 as gradient of that output,
  the gradient of y becomes scale g_u + a y + b, which is BatchNorm's input gradient for the right a and b.
* `COMBINE`: the same gradient from a stored g_u.
* `NORM`: the normalisation with no neuron behind it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from spikeloom.kernels.program import Program, Rest, record
from spikeloom.kernels.weaving import SCALE, SHIFT


@lru_cache(maxsize=1024)
def fused(program: Program, residual: bool, emit: bool) -> Program:
    """`program` with its first input replaced by `y * norm_scale + norm_shift (+ residual)`.

    Inputs become (y, [residual], *other inputs), parameters (norm_scale, norm_shift, *parameters); with `emit` the sum
    is a further output.
    """
    n_out = len(program.outputs)

    def step(y: Any, *others: Any, norm_scale: Any, norm_shift: Any, **params: Any) -> Any:
        u = y * norm_scale + norm_shift
        if residual:
            u = u + others[0]
        result = program.function(u, *others[residual:], **params)
        values = result if isinstance(result, tuple) else (result,)
        return (*values[:n_out], *([u] if emit else []), *values[n_out:])

    inputs = ("norm_y", *(["norm_residual"] if residual else []), *program.inputs[1:])
    return record(f"norm_{program.name}", step, inputs, _rest(program), (SCALE, SHIFT, *program.params))


@lru_cache(maxsize=1024)
def corrected(program: Program) -> Program:
    """A fused program with the output y (a y / 2 + b) put before its states; its last parameters are norm_a, norm_b."""
    n_out = len(program.outputs)

    def step(y: Any, *others: Any, norm_a: Any, norm_b: Any, **params: Any) -> Any:
        values = program.function(y, *others, **params)
        values = values if isinstance(values, tuple) else (values,)
        return (*values[:n_out], y * (0.5 * (norm_a * y) + norm_b), *values[n_out:])

    return record(f"{program.name}_grad", step, program.inputs, _rest(program), (*program.params, "norm_a", "norm_b"))


def _rest(program: Program) -> dict[str, Rest]:
    rest: dict[str, Rest] = {}
    for name, value in zip(program.states, program.rest_values, strict=True):
        rest[name] = _without_norm(value) if callable(value) else value
    return rest


def _without_norm(value: Any) -> Any:
    """A rest function sees the neuron's own parameters only."""
    return lambda **params: value(**{n: p for n, p in params.items() if not n.startswith("norm_")})


def _moments(y: Any, *, pivot: Any, first: Any, second: Any) -> Any:
    centred = y - pivot
    return first * centred + second * (centred * centred)


def _combine(y: Any, g: Any, *, scale: Any, a: Any, b: Any) -> Any:
    return g * scale + (y * a + b)


def _itself(u: Any) -> Any:
    return u


MOMENTS = record("norm_moments", _moments, ["y"], {}, ["pivot", "first", "second"])
COMBINE = record("norm_combine", _combine, ["y", "g"], {}, ["scale", "a", "b"])
NORM = fused(record("norm", _itself, ["u"], {}, []), False, False)
