"""Fold time into the batch: a layer without memory treats all time steps at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def fold(x: Tensor) -> Tensor:
    """`[T, B, ...]` -> `[T * B, ...]`; a view for every tensor whose time axis is the outermost in memory."""
    return x.flatten(0, 1)


def unfold(y: Tensor, T: int) -> Tensor:
    """`[T * B, ...]` -> `[T, B, ...]`; always a view."""
    return y.unflatten(0, (T, -1))


def over_time(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer of `[batch, ...]` to every time step of `x` `[T, B, ...]` in one call.

    The layer must treat the samples of a batch alike and keep their order. The memory layout stays: channels-last
    frames stay channels-last, and a batch-first tensor seen time-first (`[B, T, ...].transpose(0, 1)`) is folded
    batch-first instead of being copied.
    """
    if x.stride(1) > x.stride(0) and x.shape[0] > 1 and x.shape[1] > 1:
        batch_first = x.transpose(0, 1)
        return unfold(layer(fold(batch_first)), x.shape[1]).transpose(0, 1)
    return unfold(layer(fold(x)), x.shape[0])


def channels_last(x: Tensor) -> Tensor:
    """Frames `[T, B, C, H, W]` with the channels innermost in memory: what convolutions are fastest on. Same values."""
    return unfold(fold(x).contiguous(memory_format=torch.channels_last), x.shape[0])


def check_axes(x: Tensor, layer: str, *axes: str) -> None:
    """Raise unless `x` has as many axes as one of the layouts, such as "T B C H W"."""
    if any(x.ndim == len(layout.split()) for layout in axes):
        return
    wanted = " or ".join(f"[{', '.join(layout.split())}]" for layout in axes)
    if any(x.ndim == len(layout.split()) - 1 for layout in axes):
        hint = "One time step enters as x.unsqueeze(0); a still image is repeated by x.expand(T, *x.shape)."
    else:
        hint = "T is time, B the batch."
    raise ValueError(f"{layer} got an input of shape {list(x.shape)}; expected {wanted}. {hint}")
