"""Residual sum, layer normalisation and token shift `[T, B, C]` on a GPU in one pass, parallel over the tokens.

    z = (x + added) kept / (1 - p);   y = LN(z)              added: spikes;  kept: dropout's mask
    made_j[t] = m_j y[t] + (1 - m_j) y[t-1]                  y[-1] = 0;  without m: y itself

x and z are float32, as the stream of residuals is under autocast; what is made is of the type that the matrix products
read. y stays in registers: the token before a block's first is normalised again, and backward computes y anew from z
and two numbers per token. Backward walks from the last token to the first and adds the gradient of the stream, so that
no sum of gradients is left to autograd. Sums over tokens are made per block, then over blocks, in a fixed order.

Bytes per element and layer normalisation with n mixtures in bfloat16, forward + backward (masks, once in two, aside):

    torch's operators and the loom: sum 10 + 6, normalisation 8 + 12, token shift 4 (1 + n) + 4 (2 + n), n casts 6 n +
    6 n, and the sum of the stream's two gradients 12: n = 3: 52 + 68, n = 2: 42 + 58;  dropout, once in two, 9 + 9
    here: 10 + 2 n  and  14 + 2 n: n = 3: 16 + 20, n = 2: 14 + 18;  dropout's mask, drawn and read, 2 + 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import backends
from spikeloom.kernels.cuda import build
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.op import dispatched, is_plain, once_only
from spikeloom.kernels.watch import WATCHERS

MOST_MIXES = 3
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDEST = 4096
"""Channels: a thread has four, a block 1024 threads at most."""
_BLOCKS = 6
"""Blocks per multiprocessor: enough loads under way, and few rows of partial sums."""

_RESIDENT = 576
"""Threads of the gradient's kernel on a multiprocessor: 112 registers each, for this token and the next one's loads."""


@dataclass(frozen=True)
class Added:
    """What is added to x: values [T, B, C]; then a mask of the sum (uint8, 0 or 1; None: all kept, as it is), and the
    factor of what is kept."""

    values: Tensor
    kept: Tensor | None = None
    scale: float = 1.0


def takes(x: Tensor, *params: Tensor | None) -> bool:
    """Whether `shift_norm` serves a stream `[T, B, C]` here, with parameters [C].

    On a GPU with a working backend, all in float32, channels in fours, nobody watching operators or neurons.
    """
    return (
        x.is_cuda
        and x.ndim == 3
        and x.numel() > 0
        and x.shape[2] % 4 == 0
        and x.shape[2] <= _WIDEST
        and is_plain(x)
        and x.dtype == torch.float32
        and not dispatched()
        and not WATCHERS
        and all(_fits(p, x) for p in params)
        and backends.choose("auto", "cuda") == "cuda"
    )


def _fits(param: Tensor | None, x: Tensor) -> bool:
    if param is None or not is_plain(param):
        return False
    lies_well = param.is_contiguous() and param.data_ptr() % 16 == 0
    return lies_well and param.shape == x.shape[2:] and param.dtype == torch.float32 and param.device == x.device


def shift_norm(
    x: Tensor,
    added: Added | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    mixes: Sequence[Tensor],
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """z, float32, and what is made of it: a mixture for each of `mixes`, or y alone; all `[T, B, C]`.

    Differentiable once. `takes` has said yes to x and all parameters.

    Args:
        dtype: of what is made.

    Raises:
        ValueError: more than `MOST_MIXES` mixtures, or what is added is not float32 or half in the shape of x.
    """
    if len(mixes) > MOST_MIXES:
        raise ValueError(f"shift_norm got {len(mixes)} mixing weights; expected at most {MOST_MIXES}.")
    values, kept, scale = (None, None, 1.0) if added is None else (added.values, added.kept, added.scale)
    for name, tensor, types in (("values", values, _TYPES), ("kept", kept, (torch.uint8,))):
        if tensor is not None and (tensor.shape != x.shape or tensor.dtype not in types or tensor.device != x.device):
            raise ValueError(
                f"shift_norm got Added.{name} {list(tensor.shape)} of {tensor.dtype} on {tensor.device} for x "
                f"{list(x.shape)} on {x.device}; expected that shape and device, and {' or '.join(map(str, types))}."
            )
    options = (float(eps), float(scale), dtype)
    given = (x, values, kept, weight, bias, *mixes)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        recorded: tuple[Tensor, ...] = _ShiftNorm.apply(options, *given)
        return recorded
    return _forward(options, given)[0]


class _ShiftNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: Any, *given: Tensor | None) -> Any:
        results, stats = _forward(options, given)
        values, kept, *params = given[1:]
        ctx.save_for_backward(results[0], stats, kept, *params)
        ctx.options, ctx.added_dtype = options, None if values is None else values.dtype
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        once_only("on a CPU torch's operators run, which can be differentiated twice")
        z, stats, kept, weight, bias, *mixes = ctx.saved_tensors
        wants_added = ctx.needs_input_grad[2]
        of_x = torch.empty_like(z)
        of_added = torch.empty_like(z, dtype=ctx.added_dtype) if wants_added else None
        call = _Call(z, len(mixes), ctx.options, ctx.added_dtype or torch.float32)
        parts = torch.empty((call.blocks, 2 + len(mixes), z.shape[2]), dtype=torch.float32, device=z.device)
        arrived = [None if g is None else _aligned(g.contiguous()) for g in grads]
        named = {"kept": kept, "sum": z, "stats": stats, "weight": weight, "bias": bias, "grad_sum": arrived[0]}
        named |= {"grad_x": of_x, "grad_added": of_added, "parts": parts}
        call.launch("shift_norm_gradient", named, mix=mixes, grad=arrived[1:])
        return (None, of_x, of_added, None, *parts.sum(0).unbind(0))


def _forward(options: Any, given: Sequence[Tensor | None]) -> tuple[tuple[Tensor, ...], Tensor]:
    """The results, and of every token its mean and 1 / deviation."""
    x, values, kept, weight, bias, *mixes = given
    assert x is not None
    x = _aligned(x.contiguous())
    call = _Call(x, len(mixes), options, torch.float32 if values is None else values.dtype)
    z = torch.empty_like(x)
    made = [torch.empty_like(x, dtype=options[2]) for _ in range(call.made)]
    stats = torch.empty((*x.shape[:2], 2), dtype=torch.float32, device=x.device)
    named = {"x": x, "sum": z, "stats": stats, "weight": weight, "bias": bias}
    named |= {name: _aligned(t.contiguous()) for name, t in (("added", values), ("kept", kept)) if t is not None}
    call.launch("shift_norm", named, mix=mixes, made=made)
    return (z, *made), stats


def _aligned(t: Tensor) -> Tensor:
    """At an address from which four elements are read in one access."""
    return t if t.data_ptr() % 16 == 0 else t.clone()


class _Call:
    """How `[T, B, C]` is cut into blocks, and a launch on them."""

    def __init__(self, x: Tensor, mixes: int, options: Any, added: torch.dtype) -> None:
        eps, scale, dtype = options
        T, B, C = x.shape
        self.x, self.mixes, self.made = x, mixes, max(mixes, 1)
        self.length, runs = cut(T, B, _processors(x.device))
        self.blocks = runs * B
        self.numbers = (T, B, C, self.length, eps, scale)
        self.types = (dtype, added)

    def launch(
        self,
        name: str,
        named: dict[str, Tensor | None],
        *,
        mix: Sequence[Tensor | None],
        made: Sequence[Tensor | None] = (),
        grad: Sequence[Tensor | None] = (),
    ) -> None:
        """A block per run of tokens; tensors that are not given are null."""
        lists = {"made": made, "mix": mix, "grad": grad}
        tensors: list[Tensor | None] = []
        for field in _FIELDS:
            if field in lists:
                tensors += [*lists[field], *[None] * (self.made - len(lists[field]))]
            else:
                tensors.append(named.get(field))
        threads = -(-self.x.shape[2] // 128) * 32
        addresses = [0 if t is None else t.data_ptr() for t in tensors]
        _kernel(name, *self.types, self.mixes, threads, self.x.device.index, self.blocks)([*addresses, *self.numbers])


_FIELDS = (
    *("x", "added", "kept", "sum", "made", "stats", "weight", "bias", "mix", "grad_sum", "grad", "grad_x"),
    *("grad_added", "parts"),
)
"""Pointers of `Arguments` in the kernel; three of them are lists."""


def cut(T: int, B: int, processors: int) -> tuple[int, int]:
    """Tokens of a run, and how many runs each text has: as many blocks as fill the GPU, of four tokens at least."""
    runs = max(1, processors * _BLOCKS // B)
    length = max(-(-T // runs), 4)
    return length, -(-T // length)


@lru_cache(maxsize=64)
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@lru_cache(maxsize=256)
def _kernel(
    name: str, dtype: torch.dtype, added: torch.dtype, mixes: int, threads: int, device: int, blocks: int
) -> Kernel:
    pointers = len(_FIELDS) - 3 + 3 * max(mixes, 1)
    return Kernel(source(dtype, added, mixes, threads), name, device, blocks, threads, f"{pointers}Q4i2f")


@lru_cache(maxsize=64)
def source(dtype: torch.dtype, added: torch.dtype, mixes: int, threads: int) -> str:
    """CUDA source of both kernels for what is made and what is added in these types."""
    io, added_t = (STORAGE[str(t).removeprefix("torch.")][1] for t in (dtype, added))
    prelude = (Path(build.__file__).parent / "prelude.cuh").read_text()
    types = f"typedef {io} io; typedef {added_t} added_t;\n"
    values = {"MIXES": mixes, "THREADS": threads, "RESIDENT": max(1, _RESIDENT // threads)}
    types += "".join(f"#define {name} {value}\n" for name, value in values.items())
    body = Path(__file__).with_name("shift_norm.cu").read_text()
    return f"typedef float real; typedef unsigned index_t;\n{prelude}\n{types}{body}"
