"""The meaning of a program: its step function called on torch tensors, one time step after the other.

Differentiated by autograd, on any device, in float64 for float64 input and float32 otherwise. Kernels are tested
against this loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spikeloom.kernels import lang, layout
from spikeloom.kernels.program import Program


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Type of states and arithmetic for inputs of a storage type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def run(
    program: Program, inputs: Sequence[Tensor], state: Sequence[Tensor], params: Mapping[str, Tensor | float]
) -> tuple[list[Tensor], list[Tensor]]:
    """Run all time steps.

    Args:
        inputs: tensors [T, *neurons] of one dtype.
        state: initial states [*neurons], or empty to start from rest.
        params: numbers, or tensors that broadcast against [*neurons].

    Returns:
        Outputs [T, *neurons] in the inputs' dtype, and the final states [*neurons] in the arithmetic type.
    """
    first = inputs[0]
    real = arithmetic(first.dtype)
    held = {name: _fitted(program.name, name, p, first).to(first.device, real) for name, p in params.items()}
    shape = first.shape[1:]
    now = [s.to(real) for s in state] or [
        torch.as_tensor(rest, dtype=real, device=first.device).expand(shape) for rest in program.rest_state(held)
    ]
    outputs: list[list[Tensor]] = [[] for _ in program.outputs]
    token = None if torch.compiler.is_compiling() else lang.ARITHMETIC.set(real)  # a compiler cannot trace it
    try:
        for t in range(first.shape[0]):
            result = program.function(*(x[t].to(real) for x in inputs), *now, **held)
            values = list(result) if isinstance(result, tuple) else [result]
            for kept, value in zip(outputs, values, strict=False):
                kept.append(torch.as_tensor(value, device=first.device).to(first.dtype).expand(shape))
            now = [torch.as_tensor(v, dtype=real, device=first.device).expand(shape) for v in values[len(outputs) :]]
    finally:
        if token is not None:
            lang.ARITHMETIC.reset(token)
    return [torch.stack(kept) for kept in outputs], now


def _fitted(program: str, name: str, param: Tensor | float, x: Tensor) -> Tensor:
    """A parameter as a tensor that broadcasts against the neuron axes of x, or the error that kernels raise."""
    if not isinstance(param, Tensor):
        return torch.tensor(param, dtype=torch.float64)
    try:
        layout.param_map(tuple(param.shape), tuple(x.shape), tuple(range(1, x.dim())))
    except ValueError as error:
        raise layout.misfit(program, name, error) from error
    return param.reshape(()) if param.numel() == 1 else param
