"""Read-out of a language model: a linear map to as many classes as the vocabulary has, on a GPU padded to a multiple.

With an odd number of classes the rows of logits and of their gradient begin at odd addresses, for which a GPU's matrix
products in half precision have slow kernels only. Under autocast the cast copy of the weight is therefore made with
zero rows up to a multiple of 64; the parameter keeps its shape. The logits are [T, B, V] in rows that lie further
apart, and no class is added: nobody sees what the zero rows give.

Their gradient is taken as it lies if its rows are as far apart (`kernels.token_loss` makes it so, with zeros between
them), else it is copied. What lies between meets zero rows or is cut off, so that it only has to be finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels.op import dispatched, is_plain, once_only
from spikeloom.synapses import Linear

MULTIPLE = 64
"""Rows of the copied weight come in multiples of this: 128 bytes of a half type."""
FEWEST = 256
"""Tokens below which the padded copy of the weight costs more than it saves."""
_HALF = (torch.bfloat16, torch.float16)


class ReadOut(Linear):
    """`Linear` without bias, [T, B, C] -> [T, B, V], for many classes V; the logits need not be contiguous."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, input: Tensor, *, bias: bool = True) -> Tensor:
        """Multiply every vector along the last axis; there is no bias to leave out."""
        if pads(input, self.weight):
            return read_out(input, self.weight, torch.get_autocast_dtype(input.device.type))
        return super().forward(input, bias=bias)


def pads(features: Tensor, weight: Tensor) -> bool:
    """Whether `read_out` serves features `[T, B, C]` here: on a GPU under autocast to half precision, at least `FEWEST`
    tokens, a number of classes that is no multiple, nobody watching operators."""
    return (
        features.is_cuda
        and weight.device == features.device
        and features.ndim == 3
        and features.shape[0] * features.shape[1] >= FEWEST
        and features.shape[2] == weight.shape[1]
        and weight.shape[0] % MULTIPLE != 0
        and is_plain(features)
        and is_plain(weight)
        and not dispatched()
        and torch.float64 not in (features.dtype, weight.dtype)
        and torch.is_autocast_enabled(features.device.type)
        and torch.get_autocast_dtype(features.device.type) in _HALF
    )


def read_out(features: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`F.linear(features, weight)` in a type: [T, B, C], [V, C] -> [T, B, V], in rows `padded(V)` apart."""
    logits: Tensor = _ReadOut.apply(features.to(dtype), weight, dtype)
    return logits


def padded(classes: int) -> int:
    """The number of rows that are computed for so many classes."""
    return -(-classes // MULTIPLE) * MULTIPLE


class _ReadOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        V, C = weight.shape
        whole = torch.empty((padded(V), C), dtype=dtype, device=weight.device)
        whole[:V].copy_(weight)
        whole[V:].zero_()
        ctx.save_for_backward(features, whole)
        ctx.weight_like = V, weight.dtype
        with torch.autocast(features.device.type, enabled=False):
            made = F.linear(features, whole)
        # not made[..., :V]: of a view that a Function returns autograd forbids `logits[..., 0] = -inf`
        T, B, W = made.shape
        return made.new_empty(0).set_(made.untyped_storage(), 0, (T, B, V), (B * W, W, 1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only("without autocast the plain operator runs, which can be differentiated twice")
        features, whole = ctx.saved_tensors
        V, dtype = ctx.weight_like
        rows = whole_rows(grad, len(whole))
        needs_features, needs_weight, _ = ctx.needs_input_grad
        return (
            (rows @ whole).view(features.shape) if needs_features else None,
            (rows.t() @ features.flatten(0, 1))[:V].to(dtype) if needs_weight else None,
            None,
        )


def whole_rows(grad: Tensor, width: int) -> Tensor:
    """A gradient `[T, B, V]` as rows `[T B, width]`: where it lies, if its rows are so far apart, else copied."""
    T, B, V = grad.shape
    end = grad.storage_offset() + T * B * width
    lies_so = grad.stride() == (B * width, width, 1) and end <= grad.untyped_storage().nbytes() // grad.element_size()
    if lies_so and grad.data_ptr() % 16 == 0:
        return grad.as_strided((T * B, width), (width, 1))
    return F.pad(grad.reshape(T * B, V), (0, width - V))
