"""Implementations of WKV to race: ours in chunks, ours as a loop, the published kernel's algorithm, and others'.

Each has its own layout: ours [T, B, C], the others [B, T, C]. Numbers are the same: `given` draws them as [T, B, C].
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from _steps import Step
from _wkv_two_pass import two_pass_wkv
from torch import Tensor

from spikeloom.kernels.wkv import takes, weighted_means
from spikeloom.spiking_attention.wkv import wkv

CHUNKED, SERIAL, TWO_PASS, FLA = "spikeloom chunks", "spikeloom loop", "published algorithm", "fla fused_recurrent"
IMPLEMENTATIONS = (CHUNKED, SERIAL, TWO_PASS, FLA)
FORWARD, BOTH = "forward", "forward+backward"
STREAMS = {FORWARD: 3, BOTH: 8}
"""Tensors of the size of k that must move: k, v, y; and k, v, the gradient of y, those of k and v."""
CACHE_BYTES = 2**28
"""Read in front of every timed call on a GPU, so that k and v come from memory and not from the L2 cache."""
NAMES = ("y", "k", "v", "time_decay", "time_first")


@dataclass(frozen=True)
class Shape:
    """Sequences B of T tokens with C channels."""

    B: int
    T: int
    C: int

    def must_move(self, part: str, dtype: torch.dtype) -> int:
        """Bytes of a pass that no implementation can do without."""
        return STREAMS[part] * self.B * self.T * self.C * dtype.itemsize

    def label(self) -> str:
        return f"[B={self.B}, T={self.T}, C={self.C}]"


Function = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(k, v, time_decay, time_first) -> y, in the layout of the implementation."""


def missing(name: str, device: torch.device) -> str:
    """Why an implementation cannot run here; empty: it can."""
    if name == FLA and _absent("fla"):
        return "flash-linear-attention (fla) is not installed"
    if name != SERIAL and device.type != "cuda":
        return "needs a GPU"
    if name == TWO_PASS and _absent("cupy"):
        return "CuPy is not installed"
    return ""


def _absent(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def function_of(name: str) -> Function:
    """An implementation."""
    return {CHUNKED: _chunked, SERIAL: _serial, TWO_PASS: _two_pass, FLA: _fla}[name]


def _chunked(k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor) -> Tensor:
    if not takes(k, v, time_decay, time_first, None):
        raise ValueError(f"the chunked kernels do not take k {list(k.shape)} of {k.dtype} on {k.device}")
    return weighted_means(k, v, time_decay, time_first)[0]


def _serial(k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor) -> Tensor:
    y: Tensor = wkv(k, v, time_decay=time_decay, time_first=time_first)[0]
    return y


def _two_pass(k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor) -> Tensor:
    return two_pass_wkv(time_decay, time_first, k, v)


def _fla(k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor) -> Tensor:
    """Its first argument is time_decay itself; its state (p, q, o) is [B, 3, 1, C] and must be given."""
    run = importlib.import_module("fla.ops.rwkv4").fused_recurrent_rwkv4
    state = k.new_zeros(k.shape[0], 3, 1, k.shape[2])
    state[:, 2] = -1e38
    y: Tensor = run(time_decay, time_first, k, v, state)[0]
    return y


def given(shape: Shape, dtype: torch.dtype, device: torch.device, name: str) -> tuple[list[Tensor], Tensor]:
    """Leaves (k, v, time_decay, time_first) and the gradient of y, in the layout of an implementation."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*axes: int) -> Tensor:
        return torch.randn(axes, generator=generator, device=device)

    tensors = [normal(shape.T, shape.B, shape.C).to(dtype) for _ in range(3)]
    if name not in (CHUNKED, SERIAL):
        tensors = [tensor.transpose(0, 1).contiguous() for tensor in tensors]
    leaves = [*tensors[:2], normal(shape.C) - 1, normal(shape.C)]
    return [leaf.requires_grad_() for leaf in leaves], tensors[2]


def maker(name: str, shape: Shape, dtype: torch.dtype, part: str, device: torch.device) -> Callable[[], Step]:
    """What builds the step of an implementation."""
    scratch = _scratch(device)  # before memory is measured

    def make() -> Step:
        run = function_of(name)
        leaves, grad = given(shape, dtype, device, name)

        def forward() -> None:
            with torch.no_grad():
                run(*leaves)

        def both() -> None:
            torch.autograd.grad(run(*leaves), leaves, grad)

        return Step(forward if part == FORWARD else both, scratch.sum, compiles=True)

    return make


@lru_cache(maxsize=1)
def _scratch(device: torch.device) -> Tensor:
    return torch.zeros(CACHE_BYTES // 4 if device.type == "cuda" else 1, device=device)


def results(name: str, shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """y and the gradients of k, v, time_decay and time_first, as [T, B, C] and [C], in double precision."""
    leaves, grad = given(shape, dtype, device, name)
    y = function_of(name)(*leaves)
    found = [y.detach(), *torch.autograd.grad(y, leaves, grad)]
    if name not in (CHUNKED, SERIAL):
        found[:3] = [tensor.transpose(0, 1) for tensor in found[:3]]
    return [tensor.double() for tensor in found]


def exact(shape: Shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The same by our loop in double precision, of the same inputs."""
    leaves, grad = given(shape, dtype, device, SERIAL)
    leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    y = _serial(*leaves)  # type: ignore[arg-type]
    return [y.detach(), *torch.autograd.grad(y, leaves, grad.double())]


def differences(found: Sequence[Tensor], expected: Sequence[Tensor]) -> dict[str, float]:
    """Norm of the difference over the norm, of y and of each gradient."""
    pairs: Any = zip(NAMES, found, expected, strict=True)
    return {name: float((a - b).norm() / b.norm()) for name, a, b in pairs}
