"""Average pooling for training on a GPU: channels-last, and backward gathers, without atomics; nothing is kept for it.

torch's backward of `avg_pool2d` on channels-last maps takes one element per thread and looks for its windows at run
time. Here a thread makes whole vectors of channels, of tiles of 2 x 2 pixels where windows are small. Values and
gradients are torch's in float32 arithmetic, rounded once to the type of the maps.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.op import once_only
from spikeloom.kernels.pool.max_pool import ahead, takes

_THREADS = 256
_LAYOUT = "2Q5iq"
_DTYPES = torch.float32, torch.bfloat16, torch.float16


class Window(NamedTuple):
    """A square window. counts_padding: the mean is over kernel * kernel places, else over those inside the map."""

    kernel: int
    stride: int
    padding: int
    counts_padding: bool

    @property
    def tiled(self) -> bool:
        """Whether a thread takes 2 x 2 pixels, of gradients and, at stride 1, of means."""
        return self.stride <= 2 and self.kernel <= 3 * self.stride

    def threads(self, name: str, made: Tensor) -> int:
        """How many threads make the means or gradients `made` `[M, C, H, W]`, if each takes one channel."""
        side = 2 if self.tiled and (name == "spread" or self.stride == 1) else 1
        M, C, H, W = made.shape
        return M * C * -(-H // side) * -(-W // side)


def takes_average(x: Tensor, kernel: int, stride: int, padding: int) -> bool:
    """Whether `average_pool` serves a folded map `[M, C, H, W]` here: where `max_pool` does, but not in float64.

    A window that torch refuses is left to torch, which says what is wrong with it.
    """
    return x.dtype in _DTYPES and kernel > 0 and stride > 0 and padding >= 0 and takes(x, kernel, padding)


def average_pool(x: Tensor, kernel: int, stride: int, padding: int, counts_padding: bool = True) -> Tensor:
    """`torch.nn.functional.avg_pool2d` of channels-last maps `[M, C, H, W]` -> `[M, C, H', W']`.

    counts_padding: torch's `count_include_pad`.
    """
    pooled: Tensor = _AveragePool.apply(x, Window(kernel, stride, padding, counts_padding or padding == 0))
    return pooled


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        M, C, H, W = x.shape
        size = M, C, *((side + 2 * window.padding - window.kernel) // window.stride + 1 for side in (H, W))
        y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        ctx.size, ctx.window = x.shape, window
        _run("average", x, y, window)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only("on a CPU torch's own pooling runs, which can be differentiated twice")
        grad = grad.contiguous(memory_format=torch.channels_last)
        out = torch.empty(ctx.size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
        _run("spread", grad, out, ctx.window)
        return out, None


def _run(name: str, given: Tensor, made: Tensor, window: Window) -> None:
    maps, means = (given, made) if name == "average" else (made, given)
    C, vector = given.shape[1], 16 // given.dtype.itemsize
    while C % vector or (given.data_ptr() | made.data_ptr()) % (vector * given.dtype.itemsize):
        vector //= 2
    threads = window.threads(name, made) // vector
    blocks = -(-threads // _THREADS)
    wide = max(given.numel() // vector, made.numel() // vector, blocks * _THREADS) >= 2**32
    dtype = str(given.dtype).removeprefix("torch.")
    kernel = _kernel(name, dtype, vector, window, wide, given.device.index, blocks)
    kernel((given.data_ptr(), made.data_ptr(), *maps.shape[2:], *means.shape[2:], C // vector, threads))


@lru_cache(maxsize=1024)
def _kernel(name: str, dtype: str, vector: int, window: Window, wide: bool, device: int, blocks: int) -> Kernel:
    return Kernel(source(dtype, vector, window, wide), name, device, blocks, _THREADS, _LAYOUT)


def source(dtype: str, vector: int, window: Window, wide: bool = False) -> str:
    """CUDA source of `average` and its gradient `spread`. wide: 2^32 lanes or threads, or more."""
    real, io = STORAGE[dtype]
    names = ("KERNEL", "STRIDE", "PADDING", "COUNT_PADDING", "TILES")
    values = (*map(int, window), int(window.tiled))
    defined = "".join(f"#define {name} {value}\n" for name, value in zip(names, values, strict=True))
    body = Path(__file__).with_name("avg_pool.cu").read_text()
    return f"{ahead(real, io, vector, wide)}{defined}{body}"
