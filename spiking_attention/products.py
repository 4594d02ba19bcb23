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

from spikeloom.kernels.attention import keys_first_product, takes
from spikeloom.kernels.bits import pack, unpack
from spikeloom.kernels.op import dispatched, once_only
from spikeloom.spiking_attention.layout import merge_heads, split_heads
from spikeloom.synapses.spike_linear import autocast_type, keeps_bits

Order = Literal["auto", "qk_v", "q_kv"]
ORDERS = ("auto", "qk_v", "q_kv")


def product(q: Tensor, k: Tensor, v: Tensor, scale: float, order: Order = "auto") -> Tensor:
    """s Q K^T V for `[..., N, d]`; whole multiples of s, exactly, if the operands are whole.

    A power of two scales the small middle product without rounding; another s scales the result, so that the sums stay
    whole numbers and the orders agree.
    """
    early = _is_power_of_two(scale)
    if keys_first(q.shape[-2], q.shape[-1], order):
        middle = k.transpose(-1, -2) @ v
        mixed = torch.matmul(q, middle * scale if early else middle)
    else:
        middle = q @ k.transpose(-1, -2)
        mixed = torch.matmul(middle * scale if early else middle, v)
    return mixed if early else mixed * scale


def keys_first(N: int, d: int, order: Order) -> bool:
    """Whether K^T V is computed first: asked for, or cheaper because N > d.

    Raises:
        ValueError: an unknown order.
    """
    if order not in ORDERS:
        raise ValueError(f"got order={order!r}; expected {', '.join(map(repr, ORDERS))}.")
    return order == "q_kv" or (order == "auto" and d < N)


def mix(qkv: Tensor, num_heads: int, scale: float, order: Order = "auto") -> Tensor:
    """s Q K^T V per head for spikes `[T, B, N, 3 C]`, Q, K and V side by side: tokens `[T, B, N, C]`.

    On a GPU, where autograd records, backward keeps one bit per spike (see `synapses.spike_linear`). Keys first, in
    16-bit numbers and with a power of two for s, one kernel does it all (see `kernels.attention`). The bits stand for
    zeros and ones: neurons with other outputs (`ILIF`) in front of it need `product`.
    """
    dtype = autocast_type(qkv) if qkv.is_cuda and not dispatched() else None
    if dtype is not None:
        qkv = qkv.to(dtype)  # as autocast has Q, K and V cast for the plain operators
    if _is_power_of_two(scale):
        d = qkv.shape[3] // (3 * num_heads)
        if keys_first(qkv.shape[2], d, order) and takes(qkv, num_heads):
            return keys_first_product(qkv, num_heads, scale)
        if keeps_bits(qkv):
            mixed: Tensor = _Mix.apply(qkv, num_heads, scale, order)
            return mixed
    q, k, v = (split_heads(part, num_heads) for part in qkv.chunk(3, dim=3))
    return merge_heads(product(q, k, v, scale, order))


class _Mix(torch.autograd.Function):
    """`mix` with its operands kept as bits.

    What lies in memory at the same time is kept small: at most two of Q, K and V are there as numbers, and their
    gradients are written into their places in one tensor.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, scale: float, order: Order) -> Tensor:
        N, d = qkv.shape[2], qkv.shape[3] // (3 * num_heads)
        first, second, third = (1, 2, 0) if keys_first(N, d, order) else (0, 1, 2)
        parts = qkv.chunk(3, dim=3)
        bits: list[Tensor] = [qkv] * 3
        with torch.autocast(qkv.device.type, enabled=False):
            a, b = split_heads(parts[first], num_heads), split_heads(parts[second], num_heads)
            ctx.shape = a.shape
            bits[first], bits[second] = pack(a), pack(b)
            # K^T V [d, d], then Q times it; or Q K^T [N, N], then it times V
            middle = (a.transpose(-1, -2) @ b if first else a @ b.transpose(-1, -2)) * scale
            del a, b
            c = split_heads(parts[third], num_heads)
            bits[third] = pack(c)
            ctx.save_for_backward(middle, *bits)
            ctx.num_heads, ctx.scale, ctx.keys_first = num_heads, scale, bool(first)
            return merge_heads(c @ middle if first else middle @ c)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only("on a CPU the plain operators run, which can be differentiated twice")
        middle, *bits = ctx.saved_tensors
        T, B, h, N, d = ctx.shape
        grad = split_heads(grad, h)
        made = torch.empty((T, B, N, 3, h, d), dtype=grad.dtype, device=grad.device)
        q, k, v = (part.transpose(2, 3) for part in made.unbind(3))  # [T, B, h, N, d], where their gradients belong

        def spikes(part: int) -> Tensor:
            return unpack(bits[part], ctx.shape, grad.dtype)

        if ctx.keys_first:
            of_middle = (spikes(0).transpose(-1, -2) @ grad) * ctx.scale
            q.copy_(grad @ middle.transpose(-1, -2))
            k.copy_(spikes(2) @ of_middle.transpose(-1, -2))
            v.copy_(spikes(1) @ of_middle)
        else:
            of_middle = (grad @ spikes(2).transpose(-1, -2)) * ctx.scale
            v.copy_(middle.transpose(-1, -2) @ grad)
            q.copy_(of_middle @ spikes(1))
            k.copy_(of_middle.transpose(-1, -2) @ spikes(0))
        return made.view(T, B, N, 3 * h * d), None, None, None


def _is_power_of_two(scale: float) -> bool:
    return math.frexp(scale)[0] == 0.5
