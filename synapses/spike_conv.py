"""`SpikeConv2d`: a convolution that keeps the spikes it reads as bits for backward, a sixteenth of bfloat16's memory.

The result and the gradients are those of `torch.nn.functional.conv2d`; only what is stored between forward and backward
differs. In backward the bits become a map again for as long as one convolution takes. When this is done is a matter of
`keeps_bits`, see `spike_linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels.bits import check_spikes, pack, unpack
from spikeloom.kernels.depthwise import convolve, input_gradient, serves, weight_gradient
from spikeloom.kernels.op import once_only
from spikeloom.synapses.depthwise import attempt
from spikeloom.synapses.layers import Conv2d
from spikeloom.synapses.spike_linear import TWICE, autocast, keeps_bits
from spikeloom.synapses.time_axis import over_time

Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding and dilation, each of height and width, and groups."""


class SpikeConv2d(Conv2d):
    """`Conv2d` for inputs that are known to be zeros and ones: `[T, B, C, H, W]` -> `[T, B, C', H', W']`.

    Padding that is given as a word ("same", "valid") or that is not of zeros has the input kept as it is.

    Args:
        arguments, keywords: as in `torch.nn.Conv2d`.
        check: raise a ValueError for an input that holds other values, for which the host waits for the device: to
            find a mistake. Unchecked, the gradient of the weight takes every value but 0 for a one.
    """

    absorbs_bias = True

    def __init__(self, *arguments: Any, check: bool = False, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.check = check

    def _all_steps(self, input: Tensor, bias: bool) -> Tensor:
        if self.check:
            check_spikes(input, type(self).__name__)
        if self.padding_mode != "zeros" or isinstance(self.padding, str) or not keeps_bits(input, self.weight):
            return super()._all_steps(input, bias)
        used = self.bias if bias else None
        window = self.stride, self.padding, self.dilation, self.groups
        return over_time(lambda folded: spike_conv(folded, self.weight, used, window), input)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        served = None
        if self.padding_mode == "zeros" and not isinstance(self.padding, str):
            served = attempt(input, weight, bias, self.stride, self.padding, self.dilation)
        return super()._conv_forward(input, weight, bias) if served is None else served


def spike_conv(spikes: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
    """`F.conv2d(spikes, weight, bias, *window)` for maps `[M, C, H, W]` of zeros and ones, with their bits kept."""
    result: Tensor = _SpikeConv.apply(*autocast(spikes, weight, bias), window)
    return result


class _SpikeConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, weight: Tensor, bias: Tensor | None, window: Window) -> Tensor:
        ctx.depthwise = serves(spikes, weight, bias, *window[:3])
        with torch.autocast(spikes.device.type, enabled=False):
            y = convolve(spikes, weight, bias) if ctx.depthwise else F.conv2d(spikes, weight, bias, *window)
        rows = spikes.permute(0, 2, 3, 1)  # of a channels-last map, this is its order in memory
        if not rows.is_contiguous():
            rows = spikes = spikes.contiguous()
        ctx.layout = spikes.shape, spikes.stride(), spikes.dtype, spikes.device
        ctx.bias, ctx.window = None if bias is None else list(bias.shape), window
        ctx.save_for_backward(pack(rows) if ctx.needs_input_grad[1] else None, weight)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only(TWICE)
        bits, weight = ctx.saved_tensors
        if ctx.depthwise:
            return *_depthwise_gradients(grad, bits, weight, ctx.needs_input_grad[:3]), None
        shape, strides, dtype, device = ctx.layout
        if bits is None:  # only the shape and the layout of the map are read
            spikes = torch.empty_strided(shape, strides, dtype=dtype, device=device)
        else:
            spikes = unpack(bits, torch.Size((shape.numel(),)), dtype).as_strided(shape, strides)
        stride, padding, dilation, groups = ctx.window
        needs_spikes, needs_weight, needs_bias, _ = ctx.needs_input_grad
        mask = [needs_spikes, needs_weight, needs_bias and ctx.bias is not None]
        found = torch.ops.aten.convolution_backward(
            grad, spikes, weight, ctx.bias, stride, padding, dilation, False, [0, 0], groups, mask
        )
        return *found, None


def _depthwise_gradients(
    grad: Tensor, bits: Tensor | None, weight: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of the spikes, the weight and the bias; the spikes are read as bits."""
    needs_spikes, needs_weight, needs_bias = needs
    of_weight = of_bias = None
    if bits is not None:
        of_weight, of_bias = weight_gradient(grad, bits, weight.shape[-1])
    elif needs_bias:
        of_bias = grad.sum((0, 2, 3))
    return (
        input_gradient(grad, weight) if needs_spikes else None,
        of_weight if needs_weight else None,
        of_bias if needs_bias else None,
    )
