"""`DepthwiseConv2d`: a convolution of every channel by itself, on a GPU by kernels for channels-last maps.

torch's own kernels for this take three to ten times as long as the maps take to be read. Which convolutions ours
compute is a matter of `kernels.depthwise.serves`: of stride 1 with odd square kernels, outside torch.compile and while
nobody watches operators. Everything else, and every other device, is `torch.nn.functional.conv2d`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels.depthwise import convolve, depthwise, serves
from spikeloom.synapses.layers import Conv2d
from spikeloom.synapses.spike_linear import autocast


class DepthwiseConv2d(Conv2d):
    """`Conv2d` with groups = channels, as large as its input: `[T, B, C, H, W]` -> `[T, B, C, H, W]`.

    Parameters and state-dict keys are those of `torch.nn.Conv2d`.

    Args:
        channels: C.
        kernel: side of the kernel, odd; the map is padded with half of it, of zeros.
        bias, device, dtype: as in `torch.nn.Conv2d`.

    Raises:
        ValueError: the kernel is not odd.
    """

    absorbs_bias = True

    def __init__(
        self, channels: int, kernel: int, *, bias: bool = True, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(
                f"DepthwiseConv2d got kernel={kernel}; expected an odd size (an even one changes the map's size)."
            )
        super().__init__(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=bias, device=device, dtype=dtype
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert not isinstance(self.padding, str)
        served = attempt(input, weight, bias, self.stride, self.padding, self.dilation)
        return super()._conv_forward(input, weight, bias) if served is None else served


def attempt(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any) -> Tensor | None:
    """`F.conv2d(x, ..., groups=C)` of maps `[M, C, H, W]` by our kernels, under autocast too; None: they do not.

    The convolution is recorded where autograd records; it keeps x for the gradient of the weight.
    """
    if not x.is_cuda or weight.shape[1] != 1:
        return None
    x, weight, bias = autocast(x, weight, bias)
    if not serves(x, weight, bias, stride, padding, dilation):
        return None
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias) if t is not None):
        return depthwise(x, weight, bias)
    return convolve(x, weight, bias)
