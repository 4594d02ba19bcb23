"""The operators `spikeloom::selective_scan` and `spikeloom::selective_scan_backward`: dispatch, shapes, autograd.

    selective_scan(u, delta, A, B, C, D?, z?, delta_bias?, initial_state?, softplus, reversed_channels, keep)
        -> [y, last state, states kept for backward]

A GPU keeps the state in front of every 32 tokens if `keep`, a CPU nothing. Backward finds those gradients alone that
its mask asks for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels.op import once_only
from spikeloom.kernels.scan import cpu, cuda
from spikeloom.kernels.scan.given import INPUTS, Scan

_TENSORS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state"
)
_library = torch.library.Library("spikeloom", "FRAGMENT")
_library.define(f"selective_scan({_TENSORS}, bool softplus, int reversed_channels, bool keep) -> Tensor[]")
_library.define(
    f"selective_scan_backward(Tensor? grad, Tensor? grad_last, Tensor kept, {_TENSORS}, bool softplus, "
    "int reversed_channels, str wanted) -> Tensor[]"
)


def run(*given: Any) -> list[Tensor]:
    """Call the operator on the tensors of `given.INPUTS`, softplus and reversed_channels: y and the last state."""
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given[: len(INPUTS)])
    found: list[Tensor] = torch.ops.spikeloom.selective_scan(*given, keep)
    return found[:2]


def _forward_cpu(*given: Any) -> list[Tensor]:
    return cpu.forward(Scan(*given[:-1]))


def _forward_cuda(*given: Any) -> list[Tensor]:
    return cuda.forward(Scan(*given[:-1]), given[-1])


def _forward_fake(*given: Any) -> list[Tensor]:
    scan, keep = Scan(*given[:-1]), given[-1]
    kept = cuda.kept_shape(scan) if keep and scan.u.device.type == "cuda" else (0,)
    return [scan.sequence(), scan.states(), scan.u.new_empty(kept, dtype=scan.real)]


def _backward_cpu(grad: Tensor | None, grad_last: Tensor | None, kept: Tensor, *given: Any) -> list[Tensor]:
    return cpu.backward(Scan(*given[:-1]), grad, grad_last, given[-1])


def _backward_cuda(grad: Tensor | None, grad_last: Tensor | None, kept: Tensor, *given: Any) -> list[Tensor]:
    return cuda.backward(Scan(*given[:-1]), grad, grad_last, kept, given[-1])


def _backward_fake(grad: Tensor | None, grad_last: Tensor | None, kept: Tensor, *given: Any) -> list[Tensor]:
    pairs = zip(given[: len(INPUTS)], given[-1], strict=True)
    return [t.new_empty(t.shape) for t, w in pairs if w == "1"]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            y, last, kept = torch.ops.spikeloom.selective_scan(*given)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(kept, *given[: len(INPUTS)])
        ctx.options = given[len(INPUTS) : -1]
        ctx.mark_non_differentiable(kept)
        return y, last, kept

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None, _: Any) -> Any:
        once_only("pass backend='reference' to selective_scan to differentiate twice")
        kept, *tensors = ctx.saved_tensors
        wanted = "".join("01"[need] for need in ctx.needs_input_grad[: len(INPUTS)])
        found = iter(torch.ops.spikeloom.selective_scan_backward(grad, grad_last, kept, *tensors, *ctx.options, wanted))
        return (*(next(found) if w == "1" else None for w in wanted), None, None, None)


def _forward_autograd(*given: Any) -> list[Tensor]:
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given[: len(INPUTS)]):
        return list(_Scan.apply(*given))
    with torch._C._AutoDispatchBelowAutograd():
        result: list[Tensor] = torch.ops.spikeloom.selective_scan(*given)
    return result


_library.impl("selective_scan", _forward_cpu, "CPU")
_library.impl("selective_scan", _forward_cuda, "CUDA")
_library.impl("selective_scan", _forward_autograd, "Autograd")
_library.impl("selective_scan_backward", _backward_cpu, "CPU")
_library.impl("selective_scan_backward", _backward_cuda, "CUDA")
torch.library.register_fake("spikeloom::selective_scan", _forward_fake, lib=_library)
torch.library.register_fake("spikeloom::selective_scan_backward", _backward_fake, lib=_library)
