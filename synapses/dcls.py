"""Layers with DCLS kernels (see dcls_kernel.py): along time, in space, and flat in space.

Parameters have the names, shapes and starting values of the published library: `weight` [O, I / groups, c], `P` (the
positions, from the kernel's centre, in taps), `SIG` (the widths; versions max and gauss alone) and `bias` [O].

Paper: Khalfaoui-Hassani, Pellegrini, Masquelier 2023, arXiv:2112.03740; along time: Hammouamri, Khalfaoui-Hassani,
Masquelier 2024, "Learning Delays in Spiking Neural Networks using Dilated Convolutions with Learnable Spacings",
arXiv:2306.17670.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.synapses.dcls_kernel import WIDTHS, AxisOrder, check_version, construct_1d, construct_2d, construct_taps
from spikeloom.synapses.time_axis import check_axes, over_time
from spikeloom.synapses.time_conv import Method, along_time, choice

PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
METHODS = get_args(Method)
START_SIGMA = {"gauss": 0.23, "max": 0.0}


class Elements(nn.Module):
    """What the DCLS layers share: the elements of a kernel, their starting values, clamping and rounding.

    Args:
        in_channels, out_channels: I and O, both multiples of `groups`.
        kernel_count: elements per pair of channels.
        size: taps per axis of the positions.
        learn_sigma: whether SIG is trained.
    """

    SIG: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        size: Sequence[int],
        groups: int,
        bias: bool,
        version: str,
        learn_sigma: bool,
    ) -> None:
        super().__init__()
        check_version(version)
        counts = {"in_channels": in_channels, "out_channels": out_channels, "kernel_count": kernel_count}
        wrong = [f"{name}={value}" for name, value in {**counts, "groups": groups}.items() if value < 1]
        if wrong or in_channels % groups or out_channels % groups or min(size) < 1:
            raise ValueError(
                f"{type(self).__name__}: in_channels={in_channels}, out_channels={out_channels}, groups={groups}, "
                f"kernel_count={kernel_count}, kernel of {tuple(size)} taps; expected all >= 1 and both numbers of "
                "channels to be multiples of groups."
            )
        self.in_channels, self.out_channels, self.kernel_count = in_channels, out_channels, kernel_count
        self.size, self.groups, self.version = tuple(size), groups, version
        shape = (out_channels, in_channels // groups, kernel_count)
        self.weight = nn.Parameter(torch.empty(shape))
        self.P = nn.Parameter(torch.empty(len(self.size), *shape))
        widths = torch.empty(len(self.size), *shape)
        self.SIG = nn.Parameter(widths, requires_grad=learn_sigma) if version in WIDTHS else None
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh values as the library draws them, in the order weight, bias, P."""
        bound = 1 / math.sqrt(self.weight.shape[1] * self.kernel_count)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.normal_(self.P, std=0.5)
        self.clamp_positions_()
        if self.SIG is not None:
            nn.init.constant_(self.SIG, START_SIGMA[self.version])

    @torch.no_grad()
    def clamp_positions_(self) -> None:
        """P into +-(K // 2), axis by axis: call it after every step of the optimiser; `forward` never clamps."""
        for axis, taps in enumerate(self.size):
            self.P[axis].clamp_(-(taps // 2), taps // 2)

    @torch.no_grad()
    def round_positions_(self) -> None:
        """The form for inference: P at whole numbers (halves to even) and clamped, one tap per element.

        Gauss, which always leaks to its neighbours, becomes max with SIG = 0. The rest of the versions stay.
        """
        self.P.round_()
        self.clamp_positions_()
        if self.SIG is not None:
            self.SIG.zero_()
            self.version = "max"

    @torch.no_grad()
    def set_sigma_(self, sigma: float) -> None:
        """One width for all elements.

        Raises:
            ValueError: the version has no widths.
        """
        if self.SIG is None:
            raise ValueError(f"{type(self).__name__} of version {self.version!r} has no SIG; max and gauss have.")
        self.SIG.fill_(sigma)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_count={self.kernel_count}, size={self.size}, "
            f"groups={self.groups}, bias={self.bias is not None}, version={self.version!r}"
        )


class Dcls1d(Elements):
    """A convolution along time, `[T, B, I]` -> `[T', B, O]`, whose kernel has elements at learned positions.

    y[t, o] = bias[o] + sum_(i, k) Kern[o, i, k] x[stride t + k - padding, i], T' = (T + 2 padding - K) // stride + 1.

    Args:
        in_channels, out_channels, kernel_count: I, O, elements per pair.
        stride, padding: steps; padding on both sides.
        dilated_kernel_size: K, the taps; odd, or elements at P = +K / 2 lie outside.
        padding_mode: `zeros`, `reflect`, `replicate` or `circular`.
        version: `gauss`, `max`, `v1` or `v0`.
        learn_sigma: whether SIG is trained.
        method: how to convolve, see time_conv.py: `auto` chooses, `direct`, or `frequencies`, which takes stride 1,
            groups 1 and a padding below K. The attribute of that name may be changed at any time.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int = 1,
        padding: int = 0,
        dilated_kernel_size: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "gauss",
        *,
        learn_sigma: bool = True,
        method: Method = "auto",
    ) -> None:
        sizes = (dilated_kernel_size,)
        super().__init__(in_channels, out_channels, kernel_count, sizes, groups, bias, version, learn_sigma)
        _check_padding(self, padding_mode, stride, padding)
        self.stride, self.padding, self.padding_mode = stride, padding, padding_mode
        self.method: Method = method
        self._check_method()

    def kernel(self) -> Tensor:
        """The dense kernel `[O, I / groups, K]`."""
        return construct_1d(self.weight, self.P, self.SIG, self.size[0], self.version)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve along time."""
        check_steps(x, self)
        steps = x.shape[0] + 2 * self.padding
        if steps < self.size[0]:
            raise ValueError(
                f"{type(self).__name__} got {x.shape[0]} steps, {steps} with its padding, and its kernel "
                f"has {self.size[0]} taps; pass more steps or pad more."
            )
        if self.padding_mode == "zeros":
            return self.convolve(x, self.padding, self.padding)
        around = (self.padding, self.padding)
        padded = F.pad(x.permute(1, 2, 0), around, PADDING_MODES[self.padding_mode]).permute(2, 0, 1)
        return self.convolve(padded, 0, 0)

    def convolve(self, x: Tensor, before: int, behind: int) -> Tensor:
        """The convolution of x with so many steps of zeros around it; padding and padding mode are not looked at.

        Raises:
            ValueError: an unknown `method`, or `frequencies` with a stride, groups or padding that it does not take.
        """
        self._check_method()
        padding = max(before, behind)
        if self.method == "frequencies" and (self.stride > 1 or self.groups > 1 or padding >= self.size[0]):
            raise ValueError(
                f"{type(self).__name__}: method 'frequencies' got stride {self.stride}, {self.groups} groups, "
                f"{padding} steps of padding; expected 1, 1 and less than {self.size[0]}. Take 'direct'."
            )

        def kernel(dtype: torch.dtype | None) -> Tensor:
            return construct_taps(self.weight, self.P, self.SIG, self.size[0], self.version, dtype)

        method = self.method
        if method == "auto":
            serves = self.stride == self.groups == 1 and padding < self.size[0]
            channels = min(self.in_channels, self.out_channels)
            method = choice(x, self.size[0], channels, self.training) if serves else "direct"
        options: dict[str, Any] = {"stride": self.stride, "groups": self.groups, "method": method}
        return along_time(x, kernel, self.bias, before=before, behind=behind, **options)

    def _check_method(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"{type(self).__name__}: method is {self.method!r}; expected one of {', '.join(METHODS)}.")


class Dcls2d(Elements):
    """A convolution in space, `[T, B, I, H, W]` -> `[T, B, O, H', W']`, with elements at learned positions.

    Args:
        stride, padding, dilated_kernel_size: one number, or (rows, columns).
        axis_order: which axis P[0] belongs to, see `construct_2d`.
        The rest as in `Dcls1d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilated_kernel_size: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "gauss",
        *,
        axis_order: AxisOrder = "official",
        learn_sigma: bool = True,
    ) -> None:
        sizes = _pair(dilated_kernel_size)
        super().__init__(in_channels, out_channels, kernel_count, sizes, groups, bias, version, learn_sigma)
        if axis_order not in ("official", "row_col"):
            raise ValueError(f"Dcls2d: axis_order is {axis_order!r}; expected 'official' or 'row_col'.")
        self.stride, self.padding = _pair(stride), _pair(padding)
        _check_padding(self, padding_mode, *self.stride, *self.padding)
        self.padding_mode = padding_mode
        self.axis_order: AxisOrder = axis_order

    def kernel(self) -> Tensor:
        """The dense kernel `[O, I / groups, K_h, K_w]`."""
        size = self.size[0], self.size[1]
        return construct_2d(self.weight, self.P, self.SIG, size, self.version, self.axis_order)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve every time step."""
        check_axes(x, type(self).__name__, "T B C H W")
        return over_time(lambda frames: _convolve(self, frames, self.kernel()), x)


class Dcls2dK1d(Elements):
    """A kernel along one axis of space, `[T, B, I, H, W]` -> `[T, B, O, H', W']`; parameters as in `Dcls1d`.

    Args:
        dilated_kernel_size: K, the taps.
        flat_dim: 0 for a kernel of K x 1 (along H), 1 for 1 x K (along W).
        stride, padding: one number, or (rows, columns).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_count: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilated_kernel_size: int = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        version: str = "v1",
        *,
        flat_dim: int = 0,
        learn_sigma: bool = True,
    ) -> None:
        sizes = (dilated_kernel_size,)
        super().__init__(in_channels, out_channels, kernel_count, sizes, groups, bias, version, learn_sigma)
        if flat_dim not in (0, 1):
            raise ValueError(f"Dcls2dK1d: flat_dim is {flat_dim!r}; expected 0 (K x 1) or 1 (1 x K).")
        self.stride, self.padding, self.flat_dim = _pair(stride), _pair(padding), flat_dim
        _check_padding(self, padding_mode, *self.stride, *self.padding)
        self.padding_mode = padding_mode

    def kernel(self) -> Tensor:
        """The dense kernel `[O, I / groups, K, 1]` or `[O, I / groups, 1, K]`."""
        flat = construct_1d(self.weight, self.P, self.SIG, self.size[0], self.version)
        return flat.unsqueeze(-1 if self.flat_dim == 0 else -2)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve every time step."""
        check_axes(x, type(self).__name__, "T B C H W")
        return over_time(lambda frames: _convolve(self, frames, self.kernel()), x)


def check_steps(x: Tensor, layer: Elements) -> None:
    """Raise unless `x` is `[T, B, I]` with the layer's channels."""
    name = type(layer).__name__
    check_axes(x, name, "T B I")
    if x.shape[2] != layer.in_channels:
        turned = " Time is the first axis here, channels the last." if x.shape[1] == layer.in_channels else ""
        raise ValueError(f"{name} got {list(x.shape)}; expected [T, B, {layer.in_channels}].{turned}")


def _convolve(layer: Dcls2d | Dcls2dK1d, frames: Tensor, kernel: Tensor) -> Tensor:
    rows, columns = layer.padding
    padded = F.pad(frames, (columns, columns, rows, rows), PADDING_MODES[layer.padding_mode])
    return F.conv2d(padded, kernel, layer.bias, (layer.stride[0], layer.stride[1]), groups=layer.groups)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    both = (value, value) if isinstance(value, int) else tuple(value)
    if len(both) != 2:
        raise ValueError(f"DCLS in space: {value!r} for stride, padding or taps; expected one number, or two.")
    return both[0], both[1]


def _check_padding(layer: Elements, mode: str, *numbers: int) -> None:
    """Numbers: strides first, as many paddings after them."""
    half = len(numbers) // 2
    if mode not in PADDING_MODES or min(numbers[:half]) < 1 or min(numbers[half:]) < 0:
        raise ValueError(
            f"{type(layer).__name__}: stride {numbers[:half]}, padding {numbers[half:]}, padding_mode {mode!r}; "
            f"expected stride >= 1, padding >= 0 and one of {', '.join(PADDING_MODES)}."
        )
