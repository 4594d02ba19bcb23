"""Depth-wise convolution of channels-last maps on a GPU: stride 1, odd square kernels, output as large as the input.

    y[m, h, w, c] = b[c] + sum over r, s of x[m, h + r - p, w + s - p, c] weight[c, r, s],   p = k // 2
    grad x: the same with weight[c, k - 1 - r, k - 1 - s] and grad y
    grad weight[c, r, s] = sum over m, h, w of grad y[m, h, w, c] x[m, h + r - p, w + s - p, c]

Products are added in float32, as fused multiply-adds: no spike is decided here. The gradient of the weight adds up
partial sums of blocks in a fixed order, so it is the same in every run on the same GPU, and reads spikes as bits where
it is given bits. Tensors are seen as torch sees them, [M, C, H, W] and [C, 1, k, k].
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import backends
from spikeloom.kernels.cuda import build
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.depthwise.tile import COLUMNS, LANES, Tile, choose
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.op import dispatched, is_plain, once_only

_LAYOUT = "7Q8i"
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_RESIDENT = {"depthwise": {3: 4, 5: 3, 7: 2}, "depthwise_weight": {3: 3, 5: 2, 7: 2}}
"""Blocks per multiprocessor by kernel and k: as many as registers allow without spilling."""
_AHEAD = {"depthwise": 8, "depthwise_weight": 4}
"""How many accesses of a thread are under way together; sums of the weight's gradient leave few registers."""
_THREADS = 128
"""Of the kernel that adds up partial sums."""


def serves(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any) -> bool:
    """Whether the kernels compute `F.conv2d(x, weight, bias, stride, padding, dilation, groups=C)` here.

    On a GPU with a working backend, channels-last, float32 or half, one dtype for all; kernels of 3, 5 or 7, stride 1,
    "same" padding as numbers; nobody watching operators. Whether the convolution is depth-wise is read from the
    weight's shape: [C, 1, k, k] for x [M, C, H, W].

    Args:
        stride, padding, dilation: pairs of integers (`torch.nn.Conv2d` holds them so).
    """
    kernel = weight.shape[-1]
    return (
        x.is_cuda
        and x.ndim == 4
        and kernel in (3, 5, 7)
        and weight.shape == (x.shape[1], 1, kernel, kernel)
        and tuple(stride) == tuple(dilation) == (1, 1)
        and tuple(padding) == (kernel // 2, kernel // 2)
        and x.dtype in _TYPES
        and all(t.dtype == x.dtype and t.device == x.device for t in (weight, bias) if t is not None)
        and is_plain(x)
        and is_plain(weight)
        and not dispatched()
        and x.numel() > 0
        and x.shape[1:].numel() < 2**31
        and _blocks(x.shape, kernel, x.element_size()) < 2**31
        and x.is_contiguous(memory_format=torch.channels_last)
        and backends.choose("auto", "cuda") == "cuda"
    )


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution, differentiable once; `serves` has said yes."""
    y: Tensor = _Depthwise.apply(x, weight, bias)
    return y


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of `[M, C, H, W]` (channels-last) with `[C, 1, k, k]`, nothing recorded."""
    return _convolve(x, weight, bias, flip=False)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the input from that of the output, both `[M, C, H, W]`, channels-last."""
    return _convolve(grad.contiguous(memory_format=torch.channels_last), weight, None, flip=True)


def weight_gradient(grad: Tensor, x: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Gradients of the weight `[C, 1, k, k]` and of the bias `[C]`.

    Args:
        grad: gradient of the output `[M, C, H, W]`.
        x: the input, channels-last and of grad's dtype; or, of spikes, its bits (uint8) in memory order, `[M, H, W, C]`
            as `kernels.bits.pack` gives them.
        kernel: k.
    """
    grad = grad.contiguous(memory_format=torch.channels_last)
    M, C, H, W = grad.shape
    tile = choose(kernel, H, W, grad.element_size())
    chunks, (down, across) = -(-C // LANES), tile.counts(H, W)
    tiles = M * down * across
    slots = max(1, min(tiles, _processors(grad.device) * _RESIDENT["depthwise_weight"][kernel] // chunks))
    of_weight = torch.empty((C, 1, kernel, kernel), dtype=grad.dtype, device=grad.device)
    of_bias = torch.empty(C, dtype=grad.dtype, device=grad.device)
    partial = torch.empty((slots, C, kernel * kernel + 1), dtype=torch.float32, device=grad.device)
    packed = x.dtype == torch.uint8
    dtype = str(grad.dtype).removeprefix("torch.")
    text = source(dtype, kernel, tile, _unit(C, grad.element_size(), 0 if packed else x.data_ptr()), bits=packed)
    addresses = x.data_ptr(), grad.data_ptr(), 0, 0, of_weight.data_ptr(), of_bias.data_ptr(), partial.data_ptr()
    arguments = (*addresses, H, W, C, down, across, chunks, tiles, slots)
    index = grad.device.index
    _kernel(text, "depthwise_weight", index, slots * chunks, tile.warps * LANES)(arguments)
    _kernel(text, "depthwise_finish", index, -(-partial[0].numel() // _THREADS), _THREADS)(arguments)
    return of_weight, of_bias


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] or ctx.needs_input_grad[2] else None, weight)
        return convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only("on a CPU torch's own convolution runs, which can be differentiated twice")
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        of_weight = of_bias = None
        if needs_weight or needs_bias:
            of_weight, of_bias = weight_gradient(grad, x, weight.shape[-1])
        return (
            input_gradient(grad, weight) if needs_x else None,
            of_weight if needs_weight else None,
            of_bias if needs_bias else None,
        )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, flip: bool) -> Tensor:
    M, C, H, W = x.shape
    kernel = weight.shape[-1]
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    tile = choose(kernel, H, W, x.element_size())
    chunks, (down, across) = -(-C // LANES), tile.counts(H, W)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    dtype = str(x.dtype).removeprefix("torch.")
    text = source(dtype, kernel, tile, _unit(C, x.element_size(), x.data_ptr()), flip=flip)
    tiles = M * down * across
    offset = 0 if bias is None else bias.data_ptr()
    _kernel(text, "depthwise", x.device.index, tiles * chunks, tile.warps * LANES)(
        (x.data_ptr(), 0, weight.data_ptr(), offset, y.data_ptr(), 0, 0, H, W, C, down, across, chunks, tiles, tiles)
    )
    return y


def _blocks(shape: torch.Size, kernel: int, itemsize: int) -> int:
    M, C, H, W = shape
    down, across = choose(kernel, H, W, itemsize).counts(H, W)
    return M * down * across * -(-C // LANES)


def _unit(channels: int, itemsize: int, address: int) -> int:
    """Channels that a thread copies at a time: at most 16 bytes, of bits within one byte, as the address allows."""
    unit = 16 // itemsize
    while channels % unit or address % (unit * itemsize):
        unit //= 2
    return unit


@lru_cache(maxsize=64)
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@lru_cache(maxsize=1024)
def _kernel(text: str, name: str, device: int, blocks: int, threads: int) -> Kernel:
    return Kernel(text, name, device, blocks, threads, _LAYOUT)


@lru_cache(maxsize=256)
def source(
    dtype: str, kernel: int, tile: Tile, unit: int, *, flip: bool | None = None, bits: bool | None = None
) -> str:
    """CUDA source of `depthwise` (flip given) or of `depthwise_weight` and `depthwise_finish` (bits given)."""
    real, io = STORAGE[dtype]
    name = "depthwise_weight" if flip is None else "depthwise"
    values = {
        "KERNEL": kernel,
        "ROWS": tile.rows,
        "COLUMNS": COLUMNS,
        "DOWN": tile.down,
        "ACROSS": tile.across,
        "WARPS": tile.warps,
        "RESIDENT": _RESIDENT[name][kernel],
        "UNIT": unit,
        "AHEAD": _AHEAD[name],
    }
    values |= {name: int(v) for name, v in (("FLIP", flip), ("BITS", bits)) if v is not None}
    defined = "".join(f"#define {name} {value}\n" for name, value in values.items())
    prelude = (Path(build.__file__).parent / "prelude.cuh").read_text()
    body = Path(__file__).with_name("depthwise.cu").read_text()
    return f"typedef {real} real; typedef unsigned index_t;\n{prelude}\ntypedef {io} io;\n{defined}{body}"
