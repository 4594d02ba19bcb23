"""Per-channel formulas of the fused normalisation: from sums to statistics, and to the correction of the gradient.

`forward` and `backward` are the formulas in torch; on a GPU `forward_cuda` and `backward_cuda` do the same in one
launch from per-thread partial sums. With a process group the sums are those of all its members (SyncBatchNorm).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from spikeloom.kernels.cuda.launch import Kernel


def forward(mean: Tensor, var: Tensor, count: float, weight: Tensor, bias: Tensor, eps: float, group: str) -> Tensor:
    """Statistics [6, C]: mean, biased variance, scale, shift, count, unbiased variance, from those of this process.

    With `group` (a process group's name) the moments of its members are combined first (Chan, Golub, LeVeque 1983).
    """
    total = torch.full_like(mean, count)
    if group:
        mean, var, total = _combined(mean, var, total, group)
    scale = weight.to(mean.dtype) * torch.rsqrt(var + eps)
    return torch.stack(
        [mean, var, scale, bias.to(mean.dtype) - mean * scale, total, var * (total / (total - 1).clamp_min(1))]
    )


def _combined(mean: Tensor, var: Tensor, count: Tensor, group: str) -> tuple[Tensor, Tensor, Tensor]:
    members = _group(group)
    mine = torch.stack([mean, var, count]).double()
    parts = [torch.empty_like(mine) for _ in range(dist.get_world_size(members))]
    dist.all_gather(parts, mine, group=members)
    means, variances, counts = torch.stack(parts).unbind(1)
    total = counts.sum(0)
    overall = (means * counts).sum(0) / total
    spread = ((variances + (means - overall) ** 2) * counts).sum(0) / total
    return overall.to(mean.dtype), spread.to(mean.dtype), total.to(mean.dtype)


def backward(weighted: Tensor, plain: Tensor, stats: Tensor, eps: float, group: str) -> Tensor:
    """Gradients of weight and bias, and the correction a, b: [4, C].

    Args:
        weighted, plain: sums over lanes and time of g_u y and of g_u, [C].
    """
    mean, var, scale, _, count, _ = stats.unbind(0)
    inverse = torch.rsqrt(var + eps)
    slope = (weighted - mean * plain) * inverse
    everywhere = torch.stack([slope, plain])
    if group:
        dist.all_reduce(everywhere, group=_group(group))
    a = -scale * inverse * everywhere[0] / count
    b = -scale * everywhere[1] / count - mean * a
    return torch.stack([slope, plain, a, b])


def _group(name: str) -> dist.ProcessGroup:
    # How torch's functional collectives find a group by its name; private, so not in the exported types.
    return torch.distributed.distributed_c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]


class Running(NamedTuple):
    """BatchNorm's buffers and the weight of the new batch in them.

    offset: [C], a constant that was left out of y, because it does not change what is normalised: the bias of the layer
    in front. The running mean is that of y + offset.
    """

    mean: Tensor
    var: Tensor
    batches: Tensor
    rate: float
    offset: Tensor | None = None


def hold(bias: Tensor, running: Running | None) -> Tensor:
    """BatchNorm's bias as it is, with the gradient 0 of the offset behind it: for roads on which autograd does not see
    that the offset took part."""
    offset = None if running is None else running.offset
    if offset is None or not (torch.is_grad_enabled() and offset.requires_grad):
        return bias
    return bias + 0 * offset.to(bias.dtype)


def update(running: Running, stats: Tensor) -> None:
    """Take the statistics of a batch into the buffers."""
    with torch.no_grad():
        running.batches.add_(1)
        mean = stats[0] if running.offset is None else stats[0] + running.offset
        running.mean.lerp_(mean.to(running.mean.dtype), running.rate)
        running.var.lerp_(stats[5].to(running.var.dtype), running.rate)


def pivot_cuda(y: Tensor, to: int) -> None:
    """Write the first value of every channel of y [T, B, C, ...] to the float32 array at address `to`."""
    channels = y.shape[2]
    _kernel("norm_pivot", "2Q3q", y.device.index, -(-channels // 1024))(
        (y.data_ptr(), to, channels, y.stride(2), _BITS[y.dtype])
    )


_BITS = {torch.float32: 32, torch.bfloat16: 16, torch.float16: -16}


def forward_cuda(
    partial: Tensor,
    width: int,
    channels: int,
    weight: Tensor,
    bias: Tensor,
    count: float,
    eps: float,
    running: Running | None,
) -> Tensor:
    """`forward` from `partial`, and the update of `running` (float32).

    Args:
        partial: C pivots, then per-thread partial sums [rows, C, width] of (y - pivot) and of (y - pivot)^2.
    """
    stats = partial.new_empty((6, channels))
    pivot, size = partial.data_ptr(), (partial.shape[0] - channels) // 2
    first = pivot + channels * 4
    kept, offset = (0, 0, 0), None
    if running is not None:
        kept = (running.mean.data_ptr(), running.var.data_ptr(), running.batches.data_ptr())
        offset = None if running.offset is None else running.offset.detach().float().contiguous()
    _kernel("norm_forward", "10Q3q3d", partial.device.index, channels if width > 1 else -(-channels // 32))(
        (
            first,
            first + size * 4,
            pivot,
            weight.data_ptr(),
            bias.data_ptr(),
            stats.data_ptr(),
            *kept,
            0 if offset is None else offset.data_ptr(),
            size // (channels * width),
            channels,
            width,
            count,
            eps,
            running.rate if running else 0.0,
        )
    )
    return stats


def backward_cuda(weighted: Tensor, plain: Tensor, width: int, stats: Tensor, eps: float) -> Tensor:
    """`backward` from per-thread partial sums laid out as [rows, C, width] (float32, one process)."""
    channels = stats.shape[1]
    out = torch.empty((4, channels), dtype=torch.float32, device=stats.device)
    rows = weighted.numel() // (channels * width)
    _kernel("norm_backward", "4Q3qd", stats.device.index, channels if width > 1 else -(-channels // 32))(
        (weighted.data_ptr(), plain.data_ptr(), stats.data_ptr(), out.data_ptr(), rows, channels, width, eps)
    )
    return out


@lru_cache(maxsize=1)
def source() -> str:
    """CUDA source of both kernels."""
    return Path(__file__).with_name("finish.cu").read_text()


@lru_cache(maxsize=1024)
def _kernel(name: str, layout: str, device: int, blocks: int) -> Kernel:
    return Kernel(source(), name, device, blocks, 1024, layout)
