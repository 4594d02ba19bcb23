"""The fused normalisation on a GPU, for one process in float32 arithmetic: six launches forward and backward, no
operations on [C] tensors in between. Small layers are bound by the host, so addresses are passed instead of views.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spikeloom.kernels.call import allocate_backward, parse, parse_mask
from spikeloom.kernels.cuda import run
from spikeloom.kernels.norm import finish
from spikeloom.kernels.norm.programs import COMBINE, MOMENTS, corrected

_SUMS = (0, False, False, "2:0011")
_MOMENTS, _COMBINE = f"{MOMENTS.key}|ttt", f"{COMBINE.key}|ttt"


def _channel(y: Tensor) -> tuple[int, ...]:
    """Shape of a per-channel parameter of y [T, B, C, ...]."""
    return (y.shape[2], *(1,) * (y.dim() - 3))


def _row(table: Tensor, row: int) -> int:
    """Address of a row of a contiguous float32 table [rows, C]."""
    return table.data_ptr() + row * table.shape[1] * 4


def statistics(
    y: Tensor, aligned: bool, weight: Tensor, bias: Tensor, eps: float, running: finish.Running | None
) -> Tensor:
    """Statistics [6, C] of the batch (see `finish.forward`); `running` takes them in."""
    channels, channel = y.shape[2], _channel(y)
    plan = run.plan_for(_SUMS, _MOMENTS, y, (channel,) * 3, aligned)
    count = plan.sum_count(plan.maps[1])
    partial = torch.empty(channels + 2 * count, dtype=torch.float32, device=y.device)
    pivot = partial.data_ptr()
    finish.pivot_cuda(y, pivot)
    first = pivot + channels * 4
    plan.run((y.data_ptr(), 0, 0, 0, 0, first, first + count * 4), (pivot,) * 3, ())
    return finish.forward_cuda(
        partial, plan.sum_width(plan.maps[1]), channels, weight, bias, y.numel() / channels, eps, running
    )


def forward(
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    scalars: list[float],
    weight: Tensor,
    bias: Tensor,
    program: str,
    eps: float,
    every: int,
    final: bool,
    running: finish.Running | None,
) -> list[Tensor]:
    """Outputs, final states, checkpoints, statistics: as `spikeloom::norm_weave`."""
    xs, aligned = run.dense(inputs)
    y = xs[0]
    fits = running is not None and running.mean.dtype == torch.float32
    stats = statistics(
        y, aligned, weight.float().contiguous(), bias.float().contiguous(), eps, running if fits else None
    )
    if running is not None and not fits:
        finish.update(running, stats)
    channel = _channel(y)
    plan = run.plan_for(
        (every, bool(state), final, None), program, y, (channel, channel, *[p.shape for p in params]), aligned
    )
    values = plan.values(params) if params else ()
    addresses = [_row(stats, 2), _row(stats, 3), *[v.data_ptr() for v in values]]
    results = run.run_forward(plan, xs, state, addresses, scalars, every, final)
    results.append(stats)
    return results


def backward(
    grads: list[Tensor],
    inputs: list[Tensor],
    state: list[Tensor],
    params: list[Tensor],
    checkpoints: list[Tensor],
    scalars: list[float],
    stats: Tensor,
    program: str,
    eps: float,
    every: int,
    mask: str,
) -> list[Tensor]:
    """Gradients of inputs, states, parameters, weight and bias: as `spikeloom::norm_weave_backward`."""
    recorded, kinds = parse(program)
    xs, aligned = run.dense(inputs)
    y, n_in, n_first = xs[0], len(recorded.inputs), len(recorded.inputs) + len(recorded.states)
    arriving, wanted = mask.split(":")
    channel = _channel(y)
    shapes = (channel, channel, *[p.shape for p in params])
    first = f"{arriving}:0{wanted[1:n_first]}11{wanted[n_first:]}"
    plan = run.plan_for((every, bool(state), False, first), program, y, shapes, aligned)
    values = plan.values(params)
    addresses = [_row(stats, 2), _row(stats, 3), *[v.data_ptr() for v in values]]
    results = allocate_backward(inputs, params, program, f"{arriving}:0{wanted[1:]}")
    sums = run.run_backward(plan, results, grads, xs, state, addresses, checkpoints, scalars, first)
    run.store_sums(plan, sums[2:], params, results[sum(parse_mask(first)[1][:n_first]) :])
    weighted, plain = (s for s in sums[:2] if s is not None)  # `first` asks for both
    table = finish.backward_cuda(weighted, plain, plan.sum_width(plan.maps[0]), stats, eps)
    if wanted[0] == "1":
        if n_in > 1 and recorded.inputs[1] == "norm_residual" and wanted[1] == "1":
            gy = _combined(y, results[0], aligned, channel, stats, table)
        else:
            tail = f"{corrected(recorded).key}|{kinds}tt"
            n_out = len(recorded.outputs)
            second = f"{arriving[:n_out]}2{arriving[n_out:]}:1{'0' * (n_first - 1 + len(shapes) + 2)}"
            gy = torch.empty_like(y)
            plan = run.plan_for((every, bool(state), False, second), tail, y, (*shapes, channel, channel), aligned)
            run.run_backward(
                plan, [gy], grads, xs, state, [*addresses, _row(table, 2), _row(table, 3)], checkpoints, scalars, second
            )
        results.insert(0, gy)
    return [*results, table[0], table[1]]


def _combined(y: Tensor, g: Tensor, aligned: bool, channel: Sequence[int], stats: Tensor, table: Tensor) -> Tensor:
    """Input gradient from the stored gradient of u, g."""
    plan = run.plan_for((0, False, False, None), _COMBINE, y, (channel,) * 3, aligned)
    return run.run_forward(plan, [y, g], [], [_row(stats, 2), _row(table, 2), _row(table, 3)], [], 0, False)[0]
