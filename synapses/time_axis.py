"""Fold time into the batch: a layer without memory treats all time steps at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels.op import dispatched


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
    """Frames `[T, B, C, H, W]` with the channels innermost in memory: what convolutions are fastest on. Same values.

    A still image, repeated by `expand`, stays such a repetition, unless its steps have gradients of their own.
    """
    if shares_steps(x):
        return x[0].contiguous(memory_format=torch.channels_last).expand(x.shape)
    return unfold(fold(x).contiguous(memory_format=torch.channels_last), x.shape[0])


def is_repeated(x: Tensor) -> bool:
    """Whether all time steps are one and the same memory, as of `image.expand(T, *image.shape)`.

    Nothing counts as repeated for those who watch operators: energy counting sees the work of every step.
    """
    return x.shape[0] > 1 and x.stride(0) == 0 and not dispatched()


def shares_steps(x: Tensor) -> bool:
    """Whether one step may stand for all: they are one memory, and autograd does not ask for the gradient of each."""
    return is_repeated(x) and not (torch.is_grad_enabled() and x.requires_grad)


def repeat(x: Tensor, T: int) -> Tensor:
    """`[1, B, ...]` -> `[T, B, ...]`, copied in the order of memory, as whole blocks."""
    repeated: Tensor = _Repeat.apply(x, T)
    return repeated


class _Repeat(torch.autograd.Function):
    """torch's `expand` and its sum backward walk over channels-last maps element by element; here steps are blocks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, T: int) -> Tensor:
        y = torch.empty_strided((T, *x.shape[1:]), (x[0].numel(), *x.stride()[1:]), dtype=x.dtype, device=x.device)
        for step in y:
            step.copy_(x[0])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        parts = list(grad.unbind(0))
        while len(parts) > 1:  # in pairs, so that the last additions are of sums of like size
            pairs = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)]
            parts = pairs + parts[2 * len(pairs) :]
        return parts[0].unsqueeze(0), None


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
