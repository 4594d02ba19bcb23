"""Small tensors to the device in one copy, which the host does not wait for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALIGNED = 16  # bytes; a view as another dtype begins at a multiple of its size


def sent(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The same tensors, of any dtypes and shapes, on the device.

    For a GPU they go through pinned memory, which the allocator of torch takes back when the copy is done. The result
    are views of one buffer.
    """
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
    buffer = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    places = list(zip(tensors, starts, strict=True))
    for tensor, start in places:
        _view(buffer, start, tensor).copy_(tensor)
    moved = buffer.to(device, non_blocking=True)
    return [_view(moved, start, tensor) for tensor, start in places]


def _view(buffer: Tensor, start: int, like: Tensor) -> Tensor:
    """The part of the buffer from `start` on as a tensor of the dtype and shape of `like`."""
    return buffer[start : start + like.numel() * like.element_size()].view(like.dtype).view(like.shape)
