"""s Q (K^T V) per head on tensor cores: Q, K and V side by side `[T, B, N, 3 C]` -> tokens `[T, B, N, C]`.

    M = s K^T V                                   [d, d] per head, sums in float32, rounded to the storage type
    y = Q M                                       likewise
    P = s Q^T g;  dQ = g M^T,  dK = V P^T,  dV = K P

One launch reads the projections where they lie and writes the tokens that the next layer reads; one more writes the
gradient in the place of Q, K and V (attention.cu). Where autograd records, the same launch keeps one bit per spike and
M. All sums have a fixed order; of spikes they are whole multiples of s, so that y does not depend on it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels.backends import choose
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.op import dispatched, is_plain, once_only

_TYPES = {torch.bfloat16: ("bf16", "0x3f80u"), torch.float16: ("f16", "0x3c00u")}
_LAYOUT = "4Q2if"
WIDEST = 128
"""Channels of a head: its [d, d] matrix lies in shared memory."""


def takes(qkv: Tensor, num_heads: int) -> bool:
    """Whether `keys_first_product` serves `[T, B, N, 3 C]` here.

    On a GPU with tensor cores for bfloat16 (sm_80 or newer), contiguous 16-bit numbers, heads of a multiple of 16
    channels, nobody watching operators.
    """
    return (
        qkv.is_cuda
        and qkv.dtype in _TYPES
        and is_plain(qkv)
        and not dispatched()
        and qkv.numel() > 0
        and qkv.shape[3] % (48 * num_heads) == 0
        and qkv.shape[3] // (3 * num_heads) <= WIDEST
        and qkv.is_contiguous()
        and qkv.data_ptr() % 16 == 0
        and _has_tensor_cores(qkv.device)
        and choose("auto", "cuda") == "cuda"
    )


def keys_first_product(qkv: Tensor, num_heads: int, scale: float) -> Tensor:
    """s Q (K^T V) of spikes `[T, B, N, 3 C]` per head: tokens `[T, B, N, C]`, channel c of head c // d.

    In the backward pass every value but 0 counts as a one.

    Args:
        scale: a power of two, so that M is rounded once.
    """
    if torch.is_grad_enabled() and qkv.requires_grad:
        recorded: Tensor = _Product.apply(qkv, num_heads, scale)
        return recorded
    y = _tokens_like(qkv)
    _launch("mix", qkv, y, None, None, num_heads, scale)
    return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, scale: float) -> Tensor:
        T, B, N, width = qkv.shape
        d = width // (3 * num_heads)
        y = _tokens_like(qkv)
        bits = torch.empty((T * B * num_heads, 3, N, d // 8), dtype=torch.uint8, device=qkv.device)
        middle = torch.empty((T * B * num_heads, d, d), dtype=qkv.dtype, device=qkv.device)
        _launch("mix_recorded", qkv, y, bits, middle, num_heads, scale)
        ctx.save_for_backward(bits, middle)
        ctx.call = num_heads, scale
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only("on a CPU the plain operators run, which can be differentiated twice")
        bits, middle = ctx.saved_tensors
        grad = grad.contiguous()
        if grad.data_ptr() % 16:
            grad = grad.clone()
        made = torch.empty((*grad.shape[:3], 3 * grad.shape[3]), dtype=grad.dtype, device=grad.device)
        _launch("mix_backward", grad, made, bits, middle, *ctx.call)
        return made, None, None


def _tokens_like(qkv: Tensor) -> Tensor:
    return torch.empty((*qkv.shape[:3], qkv.shape[3] // 3), dtype=qkv.dtype, device=qkv.device)


@lru_cache(maxsize=64)
def _has_tensor_cores(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _launch(
    name: str, x: Tensor, y: Tensor, bits: Tensor | None, middle: Tensor | None, num_heads: int, scale: float
) -> None:
    T, B, N = x.shape[:3]
    d = min(x.shape[3], y.shape[3]) // num_heads
    kept = (0 if t is None else t.data_ptr() for t in (bits, middle))
    kernel = _kernel(name, d, x.dtype, x.device.index, T * B * num_heads)
    kernel((x.data_ptr(), y.data_ptr(), *kept, N, num_heads, scale))


@lru_cache(maxsize=1024)
def _kernel(name: str, d: int, dtype: torch.dtype, device: int, blocks: int) -> Kernel:
    return Kernel(source(d, dtype), name, device, blocks, 2 * d, _LAYOUT)


@lru_cache(maxsize=64)
def source(d: int, dtype: torch.dtype) -> str:
    """CUDA source of `mix`, `mix_recorded` and `mix_backward` for heads of `d` channels, a multiple of 16 up to 128."""
    kind, one = _TYPES[dtype]
    body = Path(__file__).with_name("attention.cu").read_text()
    return f'#define D {d}\n#define TYPE "{kind}"\n#define ONE {one}\n{body}'
