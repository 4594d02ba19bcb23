"""A convolution along time, `[T, B, I]` -> `[T', B, O]`, in the form that is fast where it runs.

    y[t, b, o] = bias[o] + sum_(i, k) kernel[o, k, i] x[stride t + k - before, b, i],   x = 0 outside of 0 ... T - 1

`direct`: `[T, B, I]` in memory is a channels-last image of T rows and B columns, so a kernel `[O, K, I]` makes it a
convolution of that image with kernels of K x 1: neither x nor the result nor gradients are transposed. Where that is
slow the lines `[B, I, T]` are convolved. A layer of 512 x 512 channels and 31 taps on 131 x 256 outputs takes 2.7e11
products forward and twice that backward. `frequencies`: 11 times fewer, see frequency_conv.py. Layers choose by
`choice`: frequencies for wide layers in training in float32 on a GPU, where they take half of the time
(benchmarks/delays.py), else direct: evaluation, streams, autocast and the CPU never leave the plain sum.

In what precision torch multiplies, TF32 included (`torch.backends.cudnn.allow_tf32`), is its setting and left alone.
Under autocast the direct form rounds x and kernel to a half type: spikes are exact in it, but behind dropout they are
1 / (1 - p), which is rounded too (4 / 3 in bfloat16: 1.3359375, 0.2 % too much).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels.op import dispatched
from spikeloom.synapses.frequency_conv import frequency_conv
from spikeloom.synapses.spike_linear import autocast_type

Form = Literal["direct", "frequencies"]
Method = Literal["auto", "direct", "frequencies"]
WIDE_TAPS, WIDE_CHANNELS = 15, 128
"""From so many taps and channels, in and out, `choice` takes frequencies. Measured: 31 taps, 140 to 512 channels."""


def choice(x: Tensor, taps: int, channels: int, training: bool) -> Form:
    """The faster form for a layer of stride 1 without groups.

    Args:
        channels: the fewer of those that come in and go out.
        training: of the module.
    """
    plain = x.is_cuda and x.dtype == torch.float32 and autocast_type(x) is None
    wide = taps >= WIDE_TAPS and channels >= WIDE_CHANNELS
    return "frequencies" if training and plain and wide and torch.is_grad_enabled() else "direct"


def along_time(
    x: Tensor,
    kernel: Callable[[torch.dtype | None], Tensor],
    bias: Tensor | None,
    *,
    before: int,
    behind: int,
    stride: int = 1,
    groups: int = 1,
    method: Form = "direct",
) -> Tensor:
    """Convolve with zeros before and behind x; T' = (T + before + behind - K) // stride + 1.

    The convolution's own padding, equal on both sides, stands for as many of the zeros as it can, and the rest is
    copied: no row is computed that is not asked for.

    Args:
        x: `[T, B, I]`.
        kernel: makes the kernel `[O, K, I / groups]` in a type; None: that of its parameters.
        bias: `[O]`.
        before, behind: steps of zeros; for `frequencies` less than K.
        method: `frequencies` for stride and groups of 1; while operators are watched the direct form runs.
    """
    if method == "frequencies" and not dispatched():
        return _by_frequencies(x, kernel(None), bias, before, behind)
    padding = min(before, behind)
    if before > padding:
        x = torch.cat([x.new_zeros(before - padding, *x.shape[1:]), x])
    elif behind > padding:
        x = torch.cat([x, x.new_zeros(behind - padding, *x.shape[1:])])
    if not _as_image(x):
        taps_last = kernel(None).transpose(1, 2)
        return F.conv1d(x.permute(1, 2, 0), taps_last, bias, stride, padding, groups=groups).permute(2, 0, 1)
    image = x.contiguous().unsqueeze(0).permute(0, 3, 1, 2)  # [1, I, T, B]
    made = kernel(autocast_type(x)).contiguous().unsqueeze(2).permute(0, 3, 1, 2)  # [O, I / groups, K, 1]
    y = F.conv2d(image, made, bias, (stride, 1), (padding, 0), groups=groups)
    return y.permute(0, 2, 3, 1).squeeze(0)


def _by_frequencies(x: Tensor, kernel: Tensor, bias: Tensor | None, before: int, behind: int) -> Tensor:
    y = frequency_conv(x, kernel, before, x.shape[0] + before + behind - kernel.shape[1] + 1)
    y = y if bias is None else y + bias
    half = autocast_type(x)
    return y if half is None else y.to(half)


def _as_image(x: Tensor) -> bool:
    """On a GPU with cuDNN, but for double precision; on a CPU with oneDNN, in float32 without autocast. Not while
    operators are watched, unless by a compiler.

    Without these libraries torch writes out every window of an image at once; of lines, those of a sample at a time.
    """
    if x.device.type == "cuda":
        fast = x.dtype != torch.float64
    else:
        fast = x.device.type == "cpu" and x.dtype == torch.float32 and autocast_type(x) is None
    watched = dispatched() and not torch.compiler.is_compiling()
    return fast and 0 < x.numel() < 2**31 and not watched and _has_library(x.device.type)


@torch.compiler.assume_constant_result
def _has_library(device: str) -> bool:
    """Whether convolutions on this type of device go to cuDNN or oneDNN."""
    if device == "cuda":
        return bool(torch.backends.cudnn.is_available() and torch.backends.cudnn.enabled)
    return bool(torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled())
