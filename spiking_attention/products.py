"""s Q K^T V on spikes, the mixing step of spiking self-attention, in the cheaper of its two orders.

    (Q K^T) V: 2 N^2 d operations a head and step;    Q (K^T V): 2 N d^2

Zhou et al. 2023, arXiv:2209.15425, section 3.1: without a softmax the product is associative. With spikes all sums are
whole numbers, so both orders give the same bits.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from spikeloom.kernels.bits import pack, unpack
from spikeloom.spiking_attention.layout import merge_heads, split_heads
from spikeloom.synapses.spike_linear import keeps_bits

Order = Literal["auto", "qk_v", "q_kv"]
ORDERS = ("auto", "qk_v", "q_kv")


def product(q: Tensor, k: Tensor, v: Tensor, scale: float, order: Order = "auto") -> Tensor:
    """s Q K^T V for `[..., N, d]`; whole multiples of s, exactly, if the operands are whole.

    A power of two scales the small middle product without rounding; another s scales the result, so that the sums stay
    whole numbers and the orders agree.
    """
    early = _is_power_of_two(scale)
    if keys_first(q, order):
        middle = k.transpose(-1, -2) @ v
        mixed = torch.matmul(q, middle * scale if early else middle)
    else:
        middle = q @ k.transpose(-1, -2)
        mixed = torch.matmul(middle * scale if early else middle, v)
    return mixed if early else mixed * scale


def keys_first(q: Tensor, order: Order) -> bool:
    """Whether K^T V is computed first: asked for, or cheaper because N > d."""
    return order == "q_kv" or (order == "auto" and q.shape[-2] > q.shape[-1])


def mix(q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, order: Order = "auto") -> Tensor:
    """s Q K^T V per head for spikes `[T, B, N, C]`, which are zeros and ones: `[T, B, N, C]`.

    On a GPU, where autograd records, backward keeps one bit per spike (see `synapses.spike_linear`).
    """
    if keeps_bits(q) and _is_power_of_two(scale):
        mixed: Tensor = _Mix.apply(q, k, v, num_heads, scale, order)
        return mixed
    split = (split_heads(q, num_heads), split_heads(k, num_heads), split_heads(v, num_heads))
    return merge_heads(product(*split, scale, order))


class _Mix(torch.autograd.Function):
    """`mix` with its operands kept as bits and its middle product computed again in backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, num_heads: int, scale: float, order: Order) -> Tensor:
        heads = split_heads(q, num_heads), split_heads(k, num_heads), split_heads(v, num_heads)
        ctx.save_for_backward(*(pack(x) for x in heads))
        ctx.shape, ctx.dtype, ctx.num_heads, ctx.scale = heads[0].shape, q.dtype, num_heads, scale
        ctx.keys_first = keys_first(heads[0], order)
        with torch.autocast(q.device.type, enabled=False):
            return merge_heads(product(*heads, scale, order))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        q, k, v = (unpack(bits, ctx.shape, ctx.dtype) for bits in ctx.saved_tensors)
        g = split_heads(grad, ctx.num_heads)
        if ctx.keys_first:
            middle = (k.transpose(-1, -2) @ v) * ctx.scale
            of_middle = (q.transpose(-1, -2) @ g) * ctx.scale
            grads = [g @ middle.transpose(-1, -2), v @ of_middle.transpose(-1, -2), k @ of_middle]
        else:
            middle = (q @ k.transpose(-1, -2)) * ctx.scale
            of_middle = (g @ v.transpose(-1, -2)) * ctx.scale
            grads = [of_middle @ k, of_middle.transpose(-1, -2) @ q, middle.transpose(-1, -2) @ g]
        return *(merge_heads(x) for x in grads), None, None, None


def _is_power_of_two(scale: float) -> bool:
    return math.frexp(scale)[0] == 0.5
