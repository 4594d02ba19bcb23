"""BatchNorm2d and the MaxPool2d behind it as one pass over memory on a GPU; elsewhere the two layers as they are.

    pooled = pool(norm(x)),    x [T, B, C, H, W] -> [T, B, C, H', W']

The normalised map, of which three quarters are thrown away by a window with stride 2, is neither written nor kept. See
`spikeloom.kernels.norm_pool` for the arithmetic.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.kernels.norm import Running
from spikeloom.kernels.norm_pool import evaluated, takes, trained
from spikeloom.kernels.op import dispatched
from spikeloom.synapses.hooks import hooked
from spikeloom.synapses.layers import BatchNorm2d, MaxPool2d
from spikeloom.synapses.time_axis import is_repeated, over_time


def norm_then_pool(norm: BatchNorm2d, pool: nn.Module, x: Tensor) -> Tensor:
    """`pool(norm(x))` for maps `[T, B, C, H, W]`, with the running statistics that `norm` would have.

    One pass over memory for a `MaxPool2d` with a square window behind an affine `BatchNorm2d` with running statistics,
    for channels-last maps in float32, bfloat16 or float16 on a GPU. Otherwise the layers are called: on a CPU, in
    float64, where they have hooks or are of another class (such as SyncBatchNorm), where operators are watched (energy
    counting, compilers), and in evaluation with gradients.

    Args:
        norm, pool: they keep their parameters and buffers; `pool` may be any module.
    """
    if dispatched() or x.ndim != 5 or not (_plain(norm, BatchNorm2d) and _plain(pool, MaxPool2d)):
        return _layers(norm, pool, x)
    window = _window(pool)
    weight, bias, mean, var = norm.weight, norm.bias, norm.running_mean, norm.running_var
    batches = norm.num_batches_tracked
    if window is None or weight is None or bias is None or mean is None or var is None or batches is None:
        return _layers(norm, pool, x)
    if x.is_cuda and is_repeated(x):  # each step has gradients of its own, so each gets its own memory
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    folded = _folded(x)
    if folded is None or not takes(folded, window, (weight, bias, mean, var), training=norm.training):
        return _layers(norm, pool, x)
    if not norm.training:
        return over_time(lambda y: evaluated(y, weight, bias, mean, var, norm.eps, window), x)
    rate = norm.momentum
    if rate is None:  # cumulative average
        rate = 1.0 / float(batches + 1)
    running = Running(mean, var, batches, rate)
    return over_time(lambda y: trained(y, len(x), weight, bias, norm.eps, running, window), x)


def _layers(norm: nn.Module, pool: nn.Module, x: Tensor) -> Tensor:
    pooled: Tensor = pool(norm(x))
    return pooled


def _plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Of this very class, and nobody waits for its calls."""
    return type(module) is kind and not hooked(module)


def _window(pool: nn.Module) -> tuple[int, int, int] | None:
    """Kernel, stride and padding of a pooling that treats both axes alike."""
    assert isinstance(pool, MaxPool2d)
    stride = pool.kernel_size if pool.stride is None else pool.stride
    sides = [set(v) if isinstance(v, (tuple, list)) else {v} for v in (pool.kernel_size, stride, pool.padding)]
    same = all(len(side) == 1 for side in sides) and pool.dilation in (1, (1, 1))
    if not same or pool.ceil_mode or pool.return_indices:
        return None
    kernel, step, padding = (max(side) for side in sides)
    return kernel, step, padding


def _folded(x: Tensor) -> Tensor | None:
    """What `over_time` gives its layer for channels-last maps, if that is no copy."""
    rows = x.movedim(2, -1)
    if rows.is_contiguous():
        return x.flatten(0, 1)
    return x.transpose(0, 1).flatten(0, 1) if rows.transpose(0, 1).is_contiguous() else None
