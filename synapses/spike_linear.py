"""`SpikeLinear`: a linear map that keeps the spikes it reads as bits for backward, a sixteenth of bfloat16's memory.

The result and the gradients are those of `torch.nn.functional.linear`; only what is stored between forward and backward
differs. It pays on a GPU, so only there it is done, and only where autograd records: under `torch.compile` and while
operators are watched (energy counting) the plain operator runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.kernels import backends
from spikeloom.kernels.bits import check_spikes, pack, unpack
from spikeloom.kernels.op import dispatched, is_plain, once_only
from spikeloom.synapses.layers import Linear

TWICE = "on a CPU the plain operator runs, which can be differentiated twice"


class SpikeLinear(Linear):
    """`Linear` for inputs that are known to be zeros and ones: `[T, B, ..., D]` -> `[T, B, ..., D']`.

    Args:
        in_features, out_features, bias, device, dtype: as in `torch.nn.Linear`.
        check: raise a ValueError for an input that holds other values, for which the host waits for the device: to
            find a mistake. Unchecked, the gradient of the weight takes every value but 0 for a one.
    """

    absorbs_bias = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        check: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.check = check

    def forward(self, input: Tensor, *, bias: bool = True) -> Tensor:
        """Multiply every vector along the last axis; `bias=False`: see `Linear`."""
        if self.check:
            check_spikes(input, type(self).__name__)
        if keeps_bits(input, self.weight):
            return spike_linear(input, self.weight, self.bias if bias else None)
        return super().forward(input, bias=bias)


def keeps_bits(spikes: Tensor, *others: Tensor) -> bool:
    """Whether what backward needs of `spikes` is kept as bits here: on a GPU, where autograd records any of these.

    Not without a working backend (`kernels.backends`), for tensor subclasses and while operators are watched.
    """
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (spikes, *others))
    plain = recorded and all(map(is_plain, (spikes, *others))) and not dispatched()
    return spikes.is_cuda and plain and backends.choose("auto", "cuda") == "cuda"


def spike_linear(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(spikes, weight, bias)` for spikes `[..., D]`, which are zeros and ones, with their bits kept."""
    result: Tensor = _SpikeLinear.apply(*autocast(spikes, weight, bias))
    return result


def autocast(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands in the type in which autocast has a linear map or a convolution computed."""
    dtype = autocast_type(spikes)
    if dtype is None:
        return spikes, weight, bias
    return spikes.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type in which autocast has a product with x computed; None: as it is, without autocast or in float64."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return None
    return torch.get_autocast_dtype(x.device.type)


class _SpikeLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, spikes: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.shape, ctx.dtype, ctx.has_bias = spikes.shape, spikes.dtype, bias is not None
        ctx.save_for_backward(pack(spikes.contiguous()) if ctx.needs_input_grad[1] else None, weight)
        with torch.autocast(spikes.device.type, enabled=False):
            return F.linear(spikes, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        once_only(TWICE)
        bits, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        needs_spikes, needs_weight, needs_bias = ctx.needs_input_grad
        of_weight = None
        if needs_weight:
            of_weight = rows.t() @ unpack(bits, torch.Size((rows.shape[0], ctx.shape[-1])), ctx.dtype)
        return (
            (rows @ weight).view(ctx.shape) if needs_spikes else None,
            of_weight,
            rows.sum(0) if needs_bias and ctx.has_bias else None,
        )
