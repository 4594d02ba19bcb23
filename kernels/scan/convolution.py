"""The causal depthwise convolution on a GPU (conv.cu): one launch each way, its SiLU and all directions included.

Backward keeps x and computes sums anew. Gradients of the weights are added by shuffles, through shared memory and by
torch, in a fixed order.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels.cuda import build
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.op import dispatched, is_plain, once_only

_THREADS, _TOKENS = 128, 512
_WIDEST = 32
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_POINTERS = ("x", "grad", "weight", "bias", "y", "grad_x", "parts")
_LAYOUT = f"{len(_POINTERS)}Q6i"
_REAL = torch.float32


def takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `convolve` serves this call: tensors proper, float32 or half, nobody watching operators."""
    tensors = [t for t in (x, weight, bias) if t is not None]
    return not dispatched() and all(map(is_plain, tensors)) and x.dtype in _TYPES and weight.shape[1] <= _WIDEST


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reversed_channels: int) -> Tensor:
    """As `reference.convolution`. Differentiable once."""
    weight, bias = weight.to(_REAL), None if bias is None else bias.to(_REAL)
    y: Tensor = _Convolution.apply(x, weight, bias, silu, reversed_channels)
    return y


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reversed_channels: int) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        y = x.new_empty((x.shape[0], weight.shape[0], x.shape[2]))
        _start("conv_forward", x, {"weight": weight, "bias": bias, "y": y}, silu, reversed_channels)
        ctx.save_for_backward(x, weight, bias)
        ctx.options = (silu, reversed_channels)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only("pass backend='reference' to causal_conv1d to differentiate twice")
        x, weight, bias = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        (rows, W), into = weight.shape, {"weight": weight, "bias": bias, "grad": grad.contiguous()}
        into["grad_x"] = torch.empty_like(x) if of_x else None
        parts = None
        if of_weight or of_bias:
            parts = into["parts"] = weight.new_empty((_tiles(x) * x.shape[0], rows, W + 1))
        _start("conv_backward", x, into, *ctx.options)
        found = None if parts is None else parts.sum(0)
        of_taps = None if found is None or not of_weight else found[:, :W]
        return into["grad_x"], of_taps, None if found is None or not of_bias else found[:, W], None, None


def _tiles(x: Tensor) -> int:
    return -(-x.shape[2] // _TOKENS)


def _start(name: str, x: Tensor, tensors: dict[str, Tensor | None], silu: bool, reversed_channels: int) -> None:
    b, d, L = x.shape
    weight = tensors["weight"]
    assert weight is not None
    rows, W = weight.shape
    held = {key: None if t is None else t.contiguous() for key, t in (tensors | {"x": x}).items()}
    addresses = [0 if (t := held.get(key)) is None else t.data_ptr() for key in _POINTERS]
    kernel = _kernel(name, (x.dtype, W, silu), x.device.index, _tiles(x) * d * b)
    kernel([*addresses, b, d, rows, L, _tiles(x), reversed_channels])


@lru_cache(maxsize=1024)
def _kernel(name: str, kind: tuple[torch.dtype, int, bool], device: int, blocks: int) -> Kernel:
    return Kernel(source(kind), name, device, blocks, _THREADS, _LAYOUT)


@lru_cache(maxsize=64)
def source(kind: tuple[torch.dtype, int, bool]) -> str:
    """CUDA source: dtype of x, taps, is there a SiLU."""
    dtype, W, silu = kind
    real, io = STORAGE[str(dtype).removeprefix("torch.")]
    prelude = (Path(build.__file__).parent / "prelude.cuh").read_text()
    defined = f"typedef {io} io;\n#define W {W}\n#define SILU {int(silu)}\n"
    body = Path(__file__).with_name("conv.cu").read_text()
    return f"typedef {real} real; typedef unsigned index_t;\n{prelude}\n{defined}{body}"
