"""A convolution along time by frequencies: a product of matrices per frequency in the place of one per tap.

    y[t, b, o] = sum_(i, k) kernel[o, k, i] x[t + k - lead, b, i],   t = 0 ... steps - 1, x = 0 outside of 0 ... T - 1

A discrete Fourier transform over n steps, n large enough that no asked-for output is reached from both ends, turns it
into complex products X W per frequency, each of three real ones (Gauss):

    re = X_re + X_im times W_re   -   X_im times W_re + W_im
    im = X_re + X_im times W_re   +   X_re times W_im - W_re

The sums belong to the transforms, which are products with tables here, so with R = about 3 n / 2 rows

    y = back [steps, R] (ahead [R, T] x  *  of_kernel [R, K] kernel),   * a matrix product over i, row by row

For T = 116, 31 taps, lead 30 and 131 steps R is 218: of 512 x 512 channels and 256 samples 1.5e10 products, and 9e9 of
the transforms, where taps have 2.7e11. Results are those of the taps but for rounding, which here is relative to the
largest values of a line: what is exactly 0 tap by tap is about 1e-7 of them in float32, steps before the first spike
too. Under autocast all is computed in float32; in which precision products are taken is torch's setting for products
of matrices (`torch.backends.cuda.matmul`), not that for convolutions.

Backward keeps x and the kernel. Rows are handled some at a time, which bounds the memory of what is in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels.op import dispatched, once_only

_AT_ONCE = 2**26
"""Numbers that rows handled together may hold."""
_read_by_graphs: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
"""Tables that a CUDA graph reads at every replay: they stay, though `tables` may forget them."""


def frequency_conv(x: Tensor, kernel: Tensor, lead: int, steps: int) -> Tensor:
    """Convolve `[T, B, I]` with `[O, K, I]`: `[steps, B, O]`, in the wider type of both; differentiable once.

    Args:
        lead: steps of zeros in front of x that the first output sees, 0 ... K - 1.
        steps: outputs.

    Raises:
        ValueError: an empty x, or lead or steps out of range.
    """
    K = kernel.shape[1]
    if x.shape[0] < 1 or steps < 1 or not 0 <= lead < K or steps > x.shape[0] + lead:
        raise ValueError(
            f"frequency_conv got x {list(x.shape)}, {K} taps, lead={lead}, steps={steps}; expected at least a step, "
            "lead from 0 to K - 1, and steps from 1 to T + lead."
        )
    with torch.autocast(x.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(x.dtype, kernel.dtype), torch.float32)
        y: Tensor = _FrequencyConv.apply(x, kernel.to(wide), lead, steps)
    return y


class _FrequencyConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, lead: int, steps: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.lead = lead
        (_, B, I), O = x.shape, kernel.shape[0]  # noqa: E741
        flat, taps = x.to(kernel.dtype).flatten(1), kernel.transpose(0, 1).flatten(1)
        y = flat.new_zeros(steps, B * O)
        for ahead, of_kernel, back in _rows(x, kernel, lead, steps):
            seen = (ahead @ flat).view(len(ahead), B, I)
            weight = (of_kernel @ taps).view(len(ahead), O, I)
            y.addmm_(back, (seen @ weight.mT).flatten(1))
        return y.view(steps, B, O)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only("method='direct' can be differentiated twice")
        x, kernel = ctx.saved_tensors
        (T, B, I), (O, K, _) = x.shape, kernel.shape  # noqa: E741
        flat, taps = x.to(kernel.dtype).flatten(1), kernel.transpose(0, 1).flatten(1)
        of_y = grad.to(kernel.dtype).reshape(len(grad), B * O)
        of_x = flat.new_zeros(T, B * I) if ctx.needs_input_grad[0] else None
        of_taps = flat.new_zeros(K, O * I) if ctx.needs_input_grad[1] else None
        for ahead, of_kernel, back in _rows(x, kernel, ctx.lead, len(grad)):
            of_product = (back.t() @ of_y).view(len(ahead), B, O)
            if of_x is not None:
                weight = (of_kernel @ taps).view(len(ahead), O, I)
                of_x.addmm_(ahead.t(), (of_product @ weight).flatten(1))
                del weight
            if of_taps is not None:
                seen = (ahead @ flat).view(len(ahead), B, I)
                of_taps.addmm_(of_kernel.t(), (of_product.mT @ seen).flatten(1))
        return (
            None if of_x is None else of_x.view(T, B, I).to(x.dtype),
            None if of_taps is None else of_taps.view(K, O, I).transpose(0, 1),
            None,
            None,
        )


def _rows(x: Tensor, kernel: Tensor, lead: int, steps: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some rows of the tables at a time."""
    (T, B, I), (O, K, _) = x.shape, kernel.shape  # noqa: E741
    make = tables.__wrapped__ if dispatched() else tables  # a tracer's tensors are not to be kept
    ahead, of_kernel, back = found = make(T, K, lead, steps, kernel.dtype, kernel.device)
    if _capturing(kernel):
        _read_by_graphs[id(found)] = found
    parts = -(-len(ahead) * (I * O + B * (I + O)) // _AT_ONCE)
    rows = -(-len(ahead) // parts)
    for begin in range(0, len(ahead), rows):
        part = slice(begin, begin + rows)
        yield ahead[part], of_kernel[part], back[:, part]


def _capturing(like: Tensor) -> bool:
    """Whether a CUDA graph is being recorded."""
    return like.is_cuda and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=256)
def tables(
    T: int, K: int, lead: int, steps: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The tables `ahead` [R, T], `of_kernel` [R, K] and `back` [steps, R], worked out in double precision.

    Frequency 0, and n / 2 where n is even, have no imaginary part and one row each.
    """
    with torch.inference_mode(False), torch.no_grad():
        n = max(T + lead, steps + K - 1 - lead)
        waves = torch.arange((n - 1) // 2 + 1)
        real = torch.tensor([0] if n % 2 else [0, n // 2])
        both = waves[1:]

        def turned(places: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor]:
            angle = (frequency[:, None] * places % n).double() * (2 * torch.pi / n)
            return angle.cos(), -angle.sin()

        def three(places: Tensor, first: tuple[int, int], second: tuple[int, int], third: tuple[int, int]) -> Tensor:
            cosine, sine = turned(places, both)
            parts = [a * cosine + b * sine for a, b in (first, second, third)]
            return torch.cat([turned(places, real)[0], *parts])

        ahead = three(torch.arange(T), (1, 1), (1, 0), (0, 1))
        of_kernel = three(torch.arange(K - 1, -1, -1), (1, 0), (-1, 1), (1, 1))
        # P1 = (re + im) W_re, P2 = re (W_im - W_re), P3 = im (W_re + W_im);  re' = P1 - P3, im' = P1 + P2
        back = three(torch.arange(steps) + K - 1 - lead, (1, 1), (0, 1), (-1, 0))
        back[: len(real)] /= n
        back[len(real) :] *= 2 / n
        made = ahead, of_kernel, back.t().contiguous()
        ahead, of_kernel, back = (table.to(device, dtype) for table in made)
        return ahead, of_kernel, back
