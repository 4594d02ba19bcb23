"""The operators `spikeloom::dcls_construct` and `spikeloom::dcls_construct_backward`: dispatch, shapes, autograd.

`dcls_construct(weight [O, I, c], P [1, O, I, c], SIG?, size, version, dtype) -> kernel [O, K, I]`, contiguous. Backward
keeps the parameters alone and computes profiles anew. On a GPU a kernel of our own runs (cuda.py), elsewhere the
formulas in plain PyTorch (reference.py), some output channels at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import backends
from spikeloom.kernels.dcls import cuda, reference
from spikeloom.kernels.op import dispatched, is_plain

_library = torch.library.Library("spikeloom", "FRAGMENT")
_library.define(
    "dcls_construct(Tensor weight, Tensor P, Tensor? SIG, int size, str version, ScalarType dtype) -> Tensor"
)
_library.define(
    "dcls_construct_backward(Tensor grad, Tensor weight, Tensor P, Tensor? SIG, int size, str version, str wanted) "
    "-> Tensor[]"
)
_KERNELS = (torch.float32, torch.bfloat16, torch.float16)


def construct(weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str, dtype: torch.dtype) -> Tensor:
    """The kernel `[O, K, I]` in `dtype`; arithmetic is that of the weights' type.

    A second derivative is that of the formulas in plain PyTorch, with their memory.

    A half type costs one rounding of the kernel, as autocast's conversion of a float32 kernel would.

    Args:
        weight: `[O, I, c]`. P, SIG: `[1, O, I, c]`; SIG None where the version has no width.
        size: K, in taps.
        version: one of `reference.VERSIONS`.
    """
    made: Tensor = torch.ops.spikeloom.dcls_construct(weight, P, SIG, size, version, dtype)
    return made


def serves(weight: Tensor, P: Tensor, SIG: Tensor | None) -> bool:
    """Whether the operator is the faster road: float32 parameters on a CPU, or on a GPU with a working backend; under a
    compiler too, but not for those who watch operators one by one (energy counting, function transforms) or
    differentiate forwards."""
    tensors = [t for t in (weight, P, SIG) if t is not None]
    device = weight.device
    if device.type not in ("cpu", "cuda") or any(t.dtype != torch.float32 or t.device != device for t in tensors):
        return False
    if not torch.compiler.is_compiling() and (dispatched() or not all(map(is_plain, tensors))):
        return False
    return device.type == "cpu" or backends.choose("auto", "cuda") == "cuda"


def _forward_cuda(weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str, dtype: torch.dtype) -> Tensor:
    if not (weight.dtype == P.dtype == torch.float32 and dtype in _KERNELS):
        return reference.construct_in_parts(weight, P, SIG, size, version).to(dtype)
    return cuda.construct(weight, P, SIG, size, version, dtype)


def _forward_cpu(weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str, dtype: torch.dtype) -> Tensor:
    return reference.construct_in_parts(weight, P, SIG, size, version).to(dtype)


def _forward_fake(weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str, dtype: torch.dtype) -> Tensor:
    return weight.new_empty((weight.shape[0], size, weight.shape[1]), dtype=dtype)


def _backward_cuda(
    grad: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str, wanted: str
) -> list[Tensor]:
    if not (weight.dtype == P.dtype == torch.float32 and grad.dtype in _KERNELS):
        return _backward_cpu(grad, weight, P, SIG, size, version, wanted)
    return [g for g in cuda.gradients(grad, weight, P, SIG, version, wanted) if g is not None]


def _backward_cpu(
    grad: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str, wanted: str
) -> list[Tensor]:
    found = reference.gradients(grad, weight, P, SIG, size, version)
    return [g for g, w in zip(found, wanted, strict=True) if w == "1" and g is not None]


def _backward_fake(
    grad: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str, wanted: str
) -> list[Tensor]:
    pairs = zip((weight, P, SIG), wanted, strict=True)
    return [t.new_empty(t.shape) for t, w in pairs if w == "1" and t is not None]


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, P, SIG, ctx.size, ctx.version, _ = inputs
    ctx.save_for_backward(weight, P, SIG)


def _backward(ctx: Any, grad: Tensor) -> Any:
    weight, P, SIG = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    wanted = "".join("01"[need and t is not None] for need, t in zip(needs, (weight, P, SIG), strict=True))
    if torch.is_grad_enabled():
        leaves = [t for t, w in zip((weight, P, SIG), wanted, strict=True) if w == "1"]
        kernel = reference.construct(weight, P, SIG, ctx.size, ctx.version).to(grad.dtype)
        found = iter(torch.autograd.grad(kernel, leaves, grad, create_graph=True))
    else:
        call = torch.ops.spikeloom.dcls_construct_backward
        found = iter(call(grad, weight, P, SIG, ctx.size, ctx.version, wanted))
    return (*(next(found) if w == "1" else None for w in wanted), None, None, None)


_library.impl("dcls_construct", _forward_cpu, "CPU")
_library.impl("dcls_construct", _forward_cuda, "CUDA")
_library.impl("dcls_construct_backward", _backward_cpu, "CPU")
_library.impl("dcls_construct_backward", _backward_cuda, "CUDA")
torch.library.register_fake("spikeloom::dcls_construct", _forward_fake, lib=_library)
torch.library.register_fake("spikeloom::dcls_construct_backward", _backward_fake, lib=_library)
torch.library.register_autograd("spikeloom::dcls_construct", _backward, setup_context=_set_up, lib=_library)
