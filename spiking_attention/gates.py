"""Element-wise products of RWKV-4's mixers, on a GPU in one kernel each: a gate, and the square of a rectified value.

    gated(r, y) = sigmoid(r) y            squared(x) = max(x, 0)^2

As torch's operators under autocast they are more: sigmoid and product are two passes, and a square is computed in
float32, so a hidden layer in bfloat16 is cast there and back. Bytes per element of bfloat16, forward + backward:

    gated      10 + 18 as two operators (each reads and writes, backward too),       6 + 10 as one
    squared    24 + 46 as relu, cast, power, cast (power's gradient: three passes),  4 + 6 as one

Arithmetic is float32 and the result is rounded once, so it may differ from two operators by one rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import backends, maximum, sigmoid, weave
from spikeloom.kernels.op import dispatched, is_plain
from spikeloom.kernels.program import Program, record
from spikeloom.kernels.watch import WATCHERS


def gated(r: Tensor, y: Tensor) -> Tensor:
    """sigmoid(r) y, of two tensors of one shape and type."""
    return _woven(GATED, r, y) if fuses(r, y) else torch.sigmoid(r) * y


def squared(x: Tensor) -> Tensor:
    """max(x, 0)^2, in the type of x; under autocast torch's operators give float32."""
    return _woven(SQUARED, x) if fuses(x) else torch.relu(x).square()


def fuses(*tensors: Tensor) -> bool:
    """Whether one kernel serves these: contiguous, of one shape and type that is not float64, on a GPU with a working
    backend, nobody watching operators or neurons."""
    first = tensors[0]
    return (
        first.is_cuda
        and first.dtype != torch.float64
        and first.numel() > 0
        and all(is_plain(t) and t.is_contiguous() for t in tensors)
        and all(t.shape == first.shape and t.dtype == first.dtype and t.device == first.device for t in tensors)
        and not dispatched()
        and not WATCHERS
        and backends.choose("auto", "cuda") == "cuda"
    )


def _woven(program: Program, *tensors: Tensor) -> Tensor:
    """One time step of many lanes: nothing here waits for the token before."""
    (result,), _ = weave(program, [t.view(1, -1) for t in tensors], {}, final=False)
    return result.view(tensors[0].shape)


def _gated(r: Any, y: Any) -> Any:
    return sigmoid(r) * y


def _squared(x: Any) -> Any:
    positive = maximum(x, 0.0)
    return positive * positive


GATED = record("gated", _gated, ["r", "y"], {}, [])
SQUARED = record("squared", _squared, ["x"], {}, [])
