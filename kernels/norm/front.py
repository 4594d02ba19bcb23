"""`norm_weave`: BatchNorm in training mode, an optional residual add and a neuron, on a chosen backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import reference
from spikeloom.kernels.call import checkpoint_distance
from spikeloom.kernels.norm import finish, op
from spikeloom.kernels.norm.finish import Running
from spikeloom.kernels.program import Program
from spikeloom.kernels.watch import WATCHERS
from spikeloom.kernels.weaving import SCALE, SHIFT, prepare

__all__ = ["norm_weave"]


def norm_weave(
    program: Program,
    inputs: Sequence[Tensor],
    params: Mapping[str, Tensor | float],
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    running: Running | None = None,
    group: Any = None,
    state: Sequence[Tensor] | None = None,
    backend: str = "auto",
    final: bool = True,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """Normalise with the statistics of the batch and run the neuron behind.

    Args:
        program: made by `programs.fused` from a neuron's program.
        inputs: y [T, B, C, ...] and, if the program has one, the residual and further inputs, in the same shape.
        params: run-time parameters of the neuron.
        weight, bias: BatchNorm's, [C].
        running: BatchNorm's buffers, updated in place.
        group: process group whose members share the statistics; None: this process alone.
        state, backend, final: as in `weave`.

    Returns:
        Outputs, final states, and the statistics [6, C]: mean, biased variance, scale, shift, count, unbiased variance.
    """
    arguments = (program, inputs, params, weight, bias, eps, running, group, state, backend, final)
    if not WATCHERS:
        return _run(*arguments)
    with ExitStack() as stack:
        for watcher in WATCHERS:
            stack.enter_context(watcher.paused())
        outputs, ends, stats = _run(*arguments)
        shape = (-1, *[1] * (inputs[0].dim() - 3))
        affine = stats[2].view(shape), stats[3].view(shape)
    for watcher in WATCHERS:
        watcher.saw_neurons(program, inputs, outputs, affine)
    return outputs, ends, stats


def _run(
    program: Program,
    inputs: Sequence[Tensor],
    params: Mapping[str, Tensor | float],
    weight: Tensor,
    bias: Tensor,
    eps: float,
    running: Running | None,
    group: Any,
    state: Sequence[Tensor] | None,
    backend: str,
    final: bool,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    y = inputs[0]
    if y.dim() >= 3 and y.numel() // max(y.shape[2], 1) < 2:
        raise ValueError(
            f"BatchNorm in training needs more than one value per channel, got an input of shape "
            f"{list(y.shape)}; use a larger batch or evaluation mode"
        )
    call = prepare(program, inputs, {SCALE: 0.0, SHIFT: 0.0, **params}, state, backend)
    name = group.group_name if group is not None else ""
    if call.backend == "reference":
        held = finish.hold(bias, running)
        result = _reference(program, call.inputs, call.state, params, weight, held, eps, name)
        if running is not None:
            finish.update(running, result[2])
        return result
    offset = None if running is None else running.offset
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (weight, bias, offset))
    every = checkpoint_distance(program, y.shape[0]) if learns else call.every
    results = op.norm_weave(
        call.inputs,
        call.state,
        call.tensors,
        call.scalars[2:],
        weight,
        bias,
        f"{program.key}|tt{call.kinds[2:]}",
        name,
        eps,
        every,
        final,
        running,
    )
    n = len(program.outputs)
    return tuple(results[:n]), tuple(results[n : n + len(program.states)]) if final else (), results[-1]


def _reference(
    program: Program,
    inputs: Sequence[Tensor],
    state: Sequence[Tensor],
    params: Mapping[str, Tensor | float],
    weight: Tensor,
    bias: Tensor,
    eps: float,
    group: str,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
    """The same in plain torch, differentiated by autograd."""
    y = inputs[0].to(reference.arithmetic(inputs[0].dtype))
    if group:
        raise ValueError("the reference does not share statistics between processes; use backend='auto'")
    axes = [a for a in range(y.dim()) if a != 2]
    var, mean = torch.var_mean(y, axes, correction=0)
    stats = finish.forward(mean, var, y.numel() / y.shape[2], weight, bias, eps, group)
    shape = (-1, *[1] * (y.dim() - 3))
    held = {SCALE: stats[2].view(shape), SHIFT: stats[3].view(shape), **params}
    outputs, ends = reference.run(program, inputs, state, held)
    return tuple(outputs), tuple(ends), stats.detach()
