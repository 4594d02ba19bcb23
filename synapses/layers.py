"""torch.nn's layers for `[T, B, ...]`: time is folded into the batch, so one call serves all time steps.

Each class is a subclass of the torch layer of the same name: constructor arguments, parameters and state-dict keys are
torch's, so a plain torch checkpoint loads. Only `forward` differs: it takes one more axis, time, at the front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.kernels.backends import choose
from spikeloom.kernels.norm import Running, norm_weave
from spikeloom.kernels.norm.programs import NORM
from spikeloom.kernels.op import dispatched, is_plain
from spikeloom.kernels.pool import average_pool, max_pool, takes, takes_average
from spikeloom.kernels.watch import WATCHERS
from spikeloom.synapses.time_axis import check_axes, over_time, repeat, shares_steps


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d` at every time step: `[T, B, C, L]` -> `[T, B, C', L']`."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve every time step."""
        check_axes(input, "Conv1d", "T B C L")
        return over_time(super().forward, input)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` at every time step: `[T, B, C, H, W]` -> `[T, B, C', H', W']`.

    A still image, repeated by `x.expand(T, *x.shape)`, is convolved once, and the result copied, unless autograd asks
    for its gradient, of which each step has its own. Watchers of operators (energy counting) see every step.
    """

    absorbs_bias = True

    def forward(self, input: Tensor, *, bias: bool = True) -> Tensor:
        """Convolve every time step; `bias=False` leaves the bias to `NormNeuron.forward(offset=)`."""
        check_axes(input, "Conv2d", "T B C H W")
        if shares_steps(input):
            return repeat(self._all_steps(input[:1], bias), len(input))
        return self._all_steps(input, bias)

    def _all_steps(self, input: Tensor, bias: bool) -> Tensor:
        """The convolution itself."""
        used = self.bias if bias else None
        if self._thins_out and not input.is_cuda and not dispatched():
            step = self.stride[0]
            thin = input[..., ::step, ::step]
            return over_time(lambda folded: F.conv2d(folded, self.weight, used), thin)
        return over_time(lambda folded: self._conv_forward(folded, self.weight, used), input)

    @property
    def _thins_out(self) -> bool:
        """Whether this is a 1 x 1 kernel with a stride, which reads every other pixel and nothing else.

        On a CPU those pixels are taken first: oneDNN's gradient of such a kernel's weight crashes the process for some
        sizes (torch 2.14.1, AVX-512, two threads, a batch of 9 maps of 16 x 16, channels-last).
        """
        one, same = (1, 1), self.stride[0] == self.stride[1] > 1
        return self.kernel_size == one and same and self.padding in ((0, 0), "valid") and self.groups == 1


class ConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` at every time step: `[T, B, C, H, W]` -> `[T, B, C', H', W']`."""

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Convolve every time step; `output_size` (H', W') settles the size where the stride leaves it open."""
        check_axes(input, "ConvTranspose2d", "T B C H W")
        size = None if output_size is None else list(output_size)
        transposed = super().forward
        return over_time(lambda folded: transposed(folded, size), input)


class Linear(nn.Linear):
    """`torch.nn.Linear` on the last axis: `[T, B, ..., D]` -> `[T, B, ..., D']`."""

    absorbs_bias = True
    """Of this very class: `forward(bias=False)` leaves out the bias, nothing else. Subclasses say it for themselves."""

    def forward(self, input: Tensor, *, bias: bool = True) -> Tensor:
        """Multiply every vector along the last axis; `bias=False` leaves the bias to `NormNeuron.forward(offset=)`."""
        if input.ndim < 3:
            check_axes(input, "Linear", "T B D")
        return F.linear(input, self.weight, self.bias if bias else None)


class BatchNorm1d(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` with statistics over time and batch: `[T, B, C]` or `[T, B, C, L]`."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every channel over T, B (and L)."""
        check_axes(input, "BatchNorm1d", "T B C", "T B C L")
        return _batch_norm(self, super().forward, input)


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` with statistics over time, batch and space: `[T, B, C, H, W]`."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise every channel over T, B, H and W."""
        check_axes(input, "BatchNorm2d", "T B C H W")
        return _batch_norm(self, super().forward, input)


def _batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """In training on a GPU by the loom's passes, which run at the memory's speed also channels-last; else as torch."""
    weight, bias, rate, batches = norm.weight, norm.bias, norm.momentum, norm.num_batches_tracked
    mean, var = norm.running_mean, norm.running_var
    served = norm.training and x.is_cuda and x.dtype != torch.float64 and x.shape[2] == norm.num_features
    served = served and x.numel() >= 2 * norm.num_features and is_plain(x) and not dispatched() and not WATCHERS
    if not served or choose("auto", "cuda") != "cuda" or weight is None or bias is None:
        return over_time(plain, x)
    if mean is None or var is None or rate is None or batches is None:
        return over_time(plain, x)
    running = Running(mean, var, batches, rate)
    return norm_weave(NORM, [x], {}, weight, bias, eps=norm.eps, running=running, final=False)[0][0]


class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d` at every time step: `[T, B, C, H, W]` -> `[T, B, C, H', W']`; of spikes, the logical or."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool every time step."""
        check_axes(input, "MaxPool2d", "T B C H W")
        if self.return_indices:
            raise ValueError("MaxPool2d got return_indices=True; indices over a time axis are not supported.")
        return over_time(self._pool, input)

    def _pool(self, folded: Tensor) -> Tensor:
        """In training on a GPU by a kernel that keeps a byte per output for backward; the values are torch's."""
        window = None if self.ceil_mode or self.dilation not in (1, (1, 1)) else _square(self)
        if window is not None and window[1] > 0 and takes(folded, window[0], window[2]):
            return max_pool(folded, *window)
        return super().forward(folded)


class AvgPool2d(nn.AvgPool2d):
    """`torch.nn.AvgPool2d` at every time step: `[T, B, C, H, W]` -> `[T, B, C, H', W']`."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool every time step."""
        check_axes(input, "AvgPool2d", "T B C H W")
        return over_time(self._pool, input)

    def _pool(self, folded: Tensor) -> Tensor:
        """In training on a GPU by a kernel whose backward gathers vectors of channels; the values are torch's."""
        window = None if self.ceil_mode or self.divisor_override is not None else _square(self)
        if window is not None and takes_average(folded, *window):
            return average_pool(folded, *window, self.count_include_pad)
        return super().forward(folded)


def _square(pool: nn.MaxPool2d | nn.AvgPool2d) -> tuple[int, int, int] | None:
    """Kernel, stride and padding if both sides have the same, else None."""
    window = pool.kernel_size, pool.kernel_size if pool.stride is None else pool.stride, pool.padding
    kernel, stride, padding = (set(v) if isinstance(v, (tuple, list)) else {v} for v in window)
    if not len(kernel) == len(stride) == len(padding) == 1:
        return None
    return kernel.pop(), stride.pop(), padding.pop()


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` at every time step: `[T, B, C, H, W]` -> `[T, B, C, H', W']`."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool every time step."""
        check_axes(input, "AdaptiveAvgPool2d", "T B C H W")
        return over_time(super().forward, input)


class Flatten(nn.Flatten):
    """`torch.nn.Flatten` of every time step: `[T, B, C, H, W]` -> `[T, B, CHW]`.

    `start_dim` and `end_dim` count from the batch, as in torch, where the batch is axis 0. The order is C, H, W as in
    torch, so channels-last input larger than one pixel is rearranged (the one copy in this file).
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__(start_dim, end_dim)
        if start_dim == 0:
            raise ValueError("Flatten got start_dim=0, the batch; expected 1 (the first axis after it) or later.")

    def forward(self, input: Tensor) -> Tensor:
        """Merge axes of every time step."""
        if input.ndim < 3:
            check_axes(input, "Flatten", "T B C")
        return over_time(super().forward, input)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with one mask for all time steps: `[T, B, ...]`, an element is dropped for the whole sequence.

    A fresh mask per step would average out over time; one mask per sequence keeps the regularisation of the static case
    (as in Gal & Ghahramani 2016, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks").
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements with probability p and scale the others by 1 / (1 - p), in training only."""
        if input.ndim < 3:
            check_axes(input, "Dropout", "T B C")
        if not self.training or self.p == 0:
            return input
        mask = nn.functional.dropout(torch.ones_like(input[0]), self.p)
        return input.mul_(mask) if self.inplace else input * mask
