"""Max pooling that remembers one byte per output instead of its input and eight bytes: for training on a GPU.

torch keeps the input and an int64 index per output for the backward of `max_pool2d`. In a convolutional stem on spikes
that is most of the memory of the network. Here a byte per output says which element of its window was the first maximum
(torch's rule: row by row, padding never, a NaN always), and backward gathers, without atomics. Values and gradients are
torch's; sums of gradients of overlapping windows are taken in float32.

Maps are channels-last, the layout in which convolutions are fastest.
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
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.op import dispatched, is_plain, once_only

_THREADS = 256
_LAYOUT = "3Q5iq"
BLOCKED = 3, 2, 1
"""The window (kernel, stride, padding) for which a thread takes gradients of 2 x 2 pixels: see blocks.cuh."""


def takes(x: Tensor, kernel: int, padding: int = 0) -> bool:
    """Whether `max_pool` serves a folded map `[M, C, H, W]` here: on a GPU with a working backend, recorded by
    autograd, channels-last, nobody watching operators.

    A window that torch refuses is left to torch, which says what is wrong with it.
    """
    return (
        x.is_cuda
        and x.requires_grad
        and torch.is_grad_enabled()
        and is_plain(x)
        and not dispatched()
        and x.numel() > 0
        and 0 < kernel * kernel <= 256
        and 2 * padding <= kernel <= min(x.shape[2:]) + 2 * padding
        and x.is_contiguous(memory_format=torch.channels_last)
        and backends.choose("auto", "cuda") == "cuda"
    )


def max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """`torch.nn.functional.max_pool2d` of channels-last maps `[M, C, H, W]` -> `[M, C, H', W']`."""
    pooled: Tensor = _MaxPool.apply(x, kernel, stride, padding)
    return pooled


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
        M, C, H, W = x.shape
        size = M, C, *((side + 2 * padding - kernel) // stride + 1 for side in (H, W))
        y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        code = torch.empty(y.numel(), dtype=torch.uint8, device=x.device)
        ctx.save_for_backward(code)
        ctx.sizes, ctx.window = (x.shape, y.shape), (kernel, stride, padding)
        _run("pool", x, code, y, ctx.sizes, ctx.window)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only("on a CPU torch's own pooling runs, which can be differentiated twice")
        (code,) = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        out = torch.empty(ctx.sizes[0], dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
        _run("unpool", grad, code, out, ctx.sizes, ctx.window)
        return out, None, None, None


def _run(name: str, given: Tensor, code: Tensor, made: Tensor, sizes: Any, window: tuple[int, int, int]) -> None:
    (_, C, H, W), (_, _, out_h, out_w) = sizes
    vector = 16 // given.dtype.itemsize
    while C % vector or (given.data_ptr() | made.data_ptr()) % (vector * given.dtype.itemsize):
        vector //= 2
    threads = largest = made.numel() // vector
    if name == "unpool" and window == BLOCKED:
        threads = code.numel() // vector
    dtype = str(given.dtype).removeprefix("torch.")
    blocks = -(-threads // _THREADS)
    wide = max(largest, blocks * _THREADS) >= 2**32
    kernel = _kernel(name, dtype, vector, window, wide, given.device.index, blocks)
    kernel(
        (given.data_ptr(), code.data_ptr(), made.data_ptr(), H, W, out_h, out_w, C // vector, threads),
    )


@lru_cache(maxsize=1024)
def _kernel(
    name: str, dtype: str, vector: int, window: tuple[int, int, int], wide: bool, device: int, blocks: int
) -> Kernel:
    return Kernel(source(dtype, vector, window, wide), name, device, blocks, _THREADS, _LAYOUT)


def source(dtype: str, vector: int, window: tuple[int, int, int], wide: bool = False) -> str:
    """CUDA source of `pool` and `unpool`. window: kernel, stride, padding. wide: 2^32 lanes or threads, or more."""
    real, io = STORAGE[dtype]
    names = zip(("KERNEL", "STRIDE", "PADDING", "BLOCKS"), (*window, int(window == BLOCKED)), strict=True)
    defined = "".join(f"#define {name} {value}\n" for name, value in names)
    body = Path(__file__).with_name("pool.cu").read_text()
    return f"{ahead(real, io, vector, wide)}{defined}{body}"


def ahead(real: str, io: str, vector: int, wide: bool) -> str:
    """What comes first in a CUDA source of pooling: types, prelude, VECTOR and blocks.cuh."""
    prelude = (Path(build.__file__).parent / "prelude.cuh").read_text()
    blocks = Path(__file__).with_name("blocks.cuh").read_text()
    index = "long long" if wide else "unsigned"
    types = f"typedef {real} real; typedef {index} index_t;\n"
    return f"{types}{prelude}\ntypedef {io} io;\n#define VECTOR {vector}\n{blocks}"
