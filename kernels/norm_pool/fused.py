"""BatchNorm -> max pooling of channels-last maps on a GPU in one pass: y [M, C, H, W] -> [M, C, H', W'].

    v = scale y + shift,   pooled = max of v over a window      (scale, shift: of the batch or of running statistics)
    grad_y = scale G + a y + b                                  (G: grad of pooled, put where each maximum came from)

Training reads y twice forward (statistics; pool) and twice backward (sums; gradient). What is kept is y, which the
convolution in front made, and one byte per output, which element of its window (row by row) was the first maximum.
The sums that BatchNorm's gradient needs are sums over windows: of G is that of grad, of G y that of grad times y at the
maximum. G itself stays in registers.

Values are rounded to the storage type before they are compared, so result and choice are those of two layers in a row
wherever scale y + shift rounds as torch's normalisation does. As in torch the first maximum counts, padding never, and
NaN always. Gradients of windows that share a maximum are added up in float32. All sums have a fixed order.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import backends
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.norm import finish
from spikeloom.kernels.norm.cuda import statistics
from spikeloom.kernels.op import dispatched, is_plain, once_only
from spikeloom.kernels.pool.max_pool import BLOCKED, ahead

_LAYOUT = "10Q5if2q"
_THREADS = {"norm_pool": 256, "norm_pool_eval": 256, "norm_pool_sums": 256, "norm_pool_grad": 128}
_BLOCKS = {"norm_pool_sums": 3, "norm_pool_grad": 30}
"""Blocks per multiprocessor, otherwise 16: every thread of the sums writes a row that has to be added up, so there are
as many as run at once. Of the gradient's, five run at once."""
_TYPES = (torch.float32, torch.bfloat16, torch.float16)

Window = tuple[int, int, int]
"""kernel, stride, padding."""


def takes(y: Tensor, window: Window, values: tuple[Tensor, ...], *, training: bool) -> bool:
    """Whether `trained`, in training, or `evaluated` serves maps `[M, C, H, W]` here.

    On a GPU with a working backend, channels-last, nobody watching operators; in evaluation only where autograd records
    nothing. A window or a batch that torch refuses is left to torch, which says what is wrong with it.

    Args:
        values: weight, bias, running mean and running variance, [C].
    """
    kernel, _, padding = window
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (y, *values))
    return (
        y.is_cuda
        and y.dtype in _TYPES
        and is_plain(y)
        and not dispatched()
        and (training or not recorded)
        and y.numel() > y.shape[1]
        and kernel * kernel <= 256
        and 2 * padding <= kernel <= min(y.shape[2:]) + 2 * padding
        and y.is_contiguous(memory_format=torch.channels_last)
        and all(v.shape == y.shape[1:2] and v.device == y.device for v in values)
        and all(v.dtype in (torch.float32, y.dtype) for v in values)
        and backends.choose("auto", "cuda") == "cuda"
    )


def trained(
    y: Tensor, steps: int, weight: Tensor, bias: Tensor, eps: float, running: finish.Running, window: Window
) -> Tensor:
    """Normalise with the statistics of the batch, which `running` takes in, and pool.

    Args:
        steps: T, a divisor of M: how many maps a thread of the statistics reads at a time.
    """
    pooled: Tensor = _NormPool.apply(y, weight, bias, steps, eps, running, window)
    return pooled


def evaluated(y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, window: Window) -> Tensor:
    """Normalise with running statistics and pool, in one launch; nothing is recorded for backward."""
    values = [_float(v) for v in (weight, bias, mean, var)]
    pooled = _pooled_like(y, window)
    _launch("norm_pool_eval", y, pooled, window, out=pooled, channel=[v.data_ptr() for v in values], eps=eps)
    return pooled


class _NormPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        steps: int,
        eps: float,
        running: finish.Running,
        window: Window,
    ) -> Tensor:
        fits = running.mean.dtype == running.var.dtype == torch.float32
        stats = statistics(
            y.unflatten(0, (steps, -1)),
            y.data_ptr() % 16 == 0,
            _float(weight),
            _float(bias),
            eps,
            running if fits else None,
        )
        if not fits:
            finish.update(running, stats)
        pooled = _pooled_like(y, window)
        code = torch.empty(pooled.numel(), dtype=torch.uint8, device=y.device)
        _launch("norm_pool", y, pooled, window, code=code, out=pooled, channel=[_row(stats, 2), _row(stats, 3)])
        ctx.save_for_backward(y, code, stats)
        ctx.call = eps, window, weight.dtype, bias.dtype
        return pooled

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only("on a CPU torch's own layers run, which can be differentiated twice")
        y, code, stats = ctx.saved_tensors
        eps, window, weight_dtype, bias_dtype = ctx.call
        grad = grad.contiguous(memory_format=torch.channels_last)
        rows = _slots("norm_pool_sums", y, grad, window)
        sums = torch.empty((2, rows, y.shape[1]), dtype=torch.float32, device=y.device)
        weighted, plain = sums.unbind(0)
        addresses = [weighted.data_ptr(), plain.data_ptr()]
        _launch("norm_pool_sums", y, grad, window, grad=grad, code=code, sums=addresses)
        table = finish.backward_cuda(weighted, plain, 1, stats, eps)
        grad_y = None
        if ctx.needs_input_grad[0]:
            grad_y = torch.empty_like(y, memory_format=torch.channels_last)
            rows_of = [_row(stats, 2), _row(table, 2), _row(table, 3)]
            _launch("norm_pool_grad", y, grad, window, grad=grad, code=code, out=grad_y, channel=rows_of)
        return grad_y, table[0].to(weight_dtype), table[1].to(bias_dtype), None, None, None, None


def _float(values: Tensor) -> Tensor:
    return values.detach().float().contiguous()


def _row(table: Tensor, row: int) -> int:
    """Address of a row of a contiguous float32 table [rows, C]."""
    return table.data_ptr() + row * table.shape[1] * 4


def _pooled_like(y: Tensor, window: Window) -> Tensor:
    kernel, stride, padding = window
    sides = ((side + 2 * padding - kernel) // stride + 1 for side in y.shape[2:])
    size = y.shape[0], y.shape[1], *sides
    return torch.empty(size, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)


def _vector(y: Tensor, *others: Tensor) -> int:
    """Channels per thread: at most 16 bytes, as the addresses allow."""
    vector, addresses = 16 // y.element_size(), y.data_ptr()
    for other in others:
        addresses |= other.data_ptr()
    while y.shape[1] % vector or addresses % (vector * y.element_size()):
        vector //= 2
    return vector


def _grid(name: str, device: torch.device, pixels: int, lanes: int) -> tuple[int, int]:
    """Blocks, and how many of their threads share a lane. pixels: pixels or blocks of pixels."""
    threads = _THREADS[name]
    most = max(_processors(device) * _BLOCKS.get(name, 16), -(-lanes // threads))
    blocks = min(-(-pixels * lanes // threads), most)
    return blocks, blocks * threads // lanes


def _slots(name: str, y: Tensor, pooled: Tensor, window: Window) -> int:
    pixels = pooled.numel() // pooled.shape[1]
    return _grid(name, y.device, pixels, y.shape[1] // _vector(y, pooled))[1]


def _launch(
    name: str,
    y: Tensor,
    pooled: Tensor,
    window: Window,
    *,
    grad: Tensor | None = None,
    code: Tensor | None = None,
    out: Tensor | None = None,
    channel: list[int] | None = None,
    sums: list[int] | None = None,
    eps: float = 0.0,
) -> None:
    """Launch a kernel; `pooled` is what has the pooled shape, the result or its gradient."""
    (_, C, H, W), (out_h, out_w) = y.shape, pooled.shape[2:]
    vector = _vector(y, pooled) if out is None else _vector(y, pooled, out)
    pixels = (y if name == "norm_pool_grad" and window != BLOCKED else pooled).numel() // C
    blocks, slots = _grid(name, y.device, pixels, C // vector)
    wide = max(y.numel() // vector + slots, blocks * _THREADS[name]) >= 2**32
    dtype = str(y.dtype).removeprefix("torch.")
    tensors = (0 if t is None else t.data_ptr() for t in (y, grad, code, out))
    channel, sums = channel or [], sums or [0, 0]
    _kernel(name, dtype, vector, window, wide, y.device.index, blocks)(
        (*tensors, *channel, *[0] * (4 - len(channel)), *sums, H, W, out_h, out_w, C // vector, eps, pixels, slots)
    )


@lru_cache(maxsize=64)
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@lru_cache(maxsize=1024)
def _kernel(name: str, dtype: str, vector: int, window: Window, wide: bool, device: int, blocks: int) -> Kernel:
    return Kernel(source(dtype, vector, window, wide), name, device, blocks, _THREADS[name], _LAYOUT)


@lru_cache(maxsize=256)
def source(dtype: str, vector: int, window: Window, wide: bool = False) -> str:
    """CUDA source of the four kernels. wide: 2^32 lanes or more."""
    names = zip(("KERNEL", "STRIDE", "PADDING", "BLOCKS"), (*window, int(window == BLOCKED)), strict=True)
    defined = "".join(f"#define {name} {value}\n" for name, value in names)
    body = Path(__file__).with_name("norm_pool.cu").read_text()
    return f"{ahead(*STORAGE[dtype], vector, wide)}{defined}{body}"
