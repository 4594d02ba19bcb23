"""Convolutions of frames with learned delays: elements at learned places in time, rows and columns.

    y[t, o, h, w] = bias[o] + sum_(i, k, r, c) Kern[o, i, k, r, c] x[t - (K_t - 1) + k, i, s h + r - p, s w + c - p]

with x = 0 before the first step and outside of the frame; stride s and padding p may differ by axis. Kern is a DCLS
kernel whose profiles are products of one per axis, normalised over all (`construct_3d`); P[0] is time, P[1] rows, P[2]
columns. Time is that of delay_conv.py: tap k delays by K_t - 1 - k steps, an element by K_t // 2 - P[0], between 0 and
K_t - 1.

Our construction: delays as in Hammouamri, Khalfaoui-Hassani, Masquelier 2024, arXiv:2306.17670, profiles as in
Khalfaoui-Hassani, Pellegrini, Masquelier 2023, arXiv:2112.03740 and arXiv:2306.00817; we know of no published network
with this layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.synapses.dcls import Elements
from spikeloom.synapses.dcls_kernel import construct_3d
from spikeloom.synapses.delay_conv import Ring, Tail, advanced, check_ring, check_tail, in_order, steps_of
from spikeloom.synapses.time_axis import check_axes


class DelayConv2d(Elements):
    """A convolution of frames with delays, `[T, B, I, H, W]` -> `[T + tail, B, O, H', W']`.

    H' = (H + 2 padding - K_h) // stride + 1, and W' likewise. Frames that are channels-last in memory stay so.

    Args:
        in_channels, out_channels, kernel_count: I, O, elements per pair of channels.
        max_delay: K_t, the taps in time; delays are 0 ... K_t - 1 steps. Odd.
        kernel_size: taps in space, one number or (K_h, K_w). Odd.
        stride, padding: in space, one number or (rows, columns); padding is zeros on both sides.
        tail: as in `DelayConv1d`.
        groups, bias, version, learn_sigma: as in `Dcls1d`.

    Raises:
        ValueError: an even number of taps, as an element at the end of an axis would be lost; other impossible sizes.
    """

    streams = True
    """Takes `state` and `return_state` in `forward`, so that `Stream` can carry the inputs that are on the way."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int = 1,
        max_delay: int = 25,
        kernel_size: int | Sequence[int] = 3,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        tail: Tail = "official",
        groups: int = 1,
        bias: bool = False,
        version: str = "gauss",
        learn_sigma: bool = True,
    ) -> None:
        sizes = (max_delay, *_pair("kernel_size", kernel_size))
        super().__init__(in_channels, out_channels, kernel_count, sizes, groups, bias, version, learn_sigma)
        if any(taps % 2 == 0 for taps in sizes):
            raise ValueError(
                f"DelayConv2d: max_delay is {max_delay}, kernel_size {sizes[1:]}; expected odd numbers of taps, as an "
                "element at the end of an even axis is lost. One tap more holds the same places."
            )
        self.stride, self.padding = _pair("stride", stride), _pair("padding", padding)
        if min(self.stride) < 1 or min(self.padding) < 0:
            raise ValueError(
                f"DelayConv2d: stride {self.stride}, padding {self.padding}; expected stride >= 1 and padding >= 0."
            )
        check_tail("DelayConv2d", tail)
        self.tail: Tail = tail

    @property
    def tail_steps(self) -> int:
        """Steps that a sequence grows by."""
        return steps_of(self.tail, self.size[0])

    def kernel(self) -> Tensor:
        """The dense kernel `[O, I / groups, K_t, K_h, K_w]`."""
        taps, rows, columns = self.size
        return construct_3d(self.weight, self.P, self.SIG, (taps, rows, columns), self.version)

    def forward(
        self, x: Tensor, *, state: Ring | None = None, return_state: bool = False, tail: bool | None = None
    ) -> Any:
        """Run all time steps.

        Args:
            x: `[T, B, I, H, W]`.
            state, return_state, tail: as in `DelayConv1d.forward`.

        Returns:
            `[T, B, O, H', W']`, with a tail `[T + tail_steps, B, O, H', W']`; with `return_state` a pair of it and the
            state.

        Raises:
            ValueError: x of another shape, or frames smaller than the kernel.
        """
        self._check(x)
        check_ring("DelayConv2d", state, (self.size[0], *x.shape[1:]))
        last = x[0].is_contiguous(memory_format=torch.channels_last) and not x[0].is_contiguous()
        ends = tail if tail is not None else state is None and not return_state
        if ends and self.tail_steps:
            x = F.pad(x, (*(0, 0) * (x.ndim - 1), 0, self.tail_steps))
        before = x.new_zeros(self.size[0] - 1, *x.shape[1:]) if state is None else in_order(state)[1:].to(x.dtype)
        y = self._convolve(torch.cat([before, x]), last)
        return (y, advanced(x, state, self.size[0])) if return_state else y

    def _convolve(self, x: Tensor, last: bool) -> Tensor:
        """`[S, B, I, H, W]` -> `[S - K_t + 1, B, O, H', W']`, with channels innermost in memory or not."""
        volume = x.permute(1, 2, 0, 3, 4)
        if last:
            volume = volume.contiguous(memory_format=torch.channels_last_3d)
        y = F.conv3d(volume, self.kernel(), self.bias, (1, *self.stride), (0, *self.padding), groups=self.groups)
        return y.permute(2, 0, 1, 3, 4)

    def delays(self) -> Tensor:
        """The delay of every element as it would be after rounding, int64 `[O, I / groups, c]`, in steps."""
        return self.size[0] - 1 - self._taps(0)

    def places(self) -> Tensor:
        """The row and the column of every element in the kernel after rounding, int64 `[2, O, I / groups, c]`."""
        return torch.stack([self._taps(1), self._taps(2)])

    def _taps(self, axis: int) -> Tensor:
        """The tap of every element along an axis after rounding."""
        half = self.size[axis] // 2
        return self.P.detach()[axis].round().clamp(-half, half).long() + half

    def _check(self, x: Tensor) -> None:
        check_axes(x, "DelayConv2d", "T B C H W")
        if x.shape[2] != self.in_channels:
            turned = " Channels come before rows and columns here." if x.shape[4] == self.in_channels else ""
            raise ValueError(f"DelayConv2d got {list(x.shape)}; expected [T, B, {self.in_channels}, H, W].{turned}")
        frame = [side + 2 * padding for side, padding in zip(x.shape[3:], self.padding, strict=True)]
        if frame[0] < self.size[1] or frame[1] < self.size[2]:
            raise ValueError(
                f"DelayConv2d got frames of {list(x.shape[3:])}, {frame} with its padding, and its kernel has "
                f"{list(self.size[1:])} taps; pass larger frames or pad more."
            )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, stride={self.stride}, padding={self.padding}, tail={self.tail!r}"


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2:
        raise ValueError(f"DelayConv2d: {name} is {value!r}; expected one number, or (rows, columns).")
    return both[0], both[1]
