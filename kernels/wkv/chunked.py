"""WKV `[T, B, C]` on a GPU in chunks of tokens: the recurrence of `spiking_attention.wkv`, parallel over T as well.

The state is an associative sum. Three launches go forward: what every chunk adds to a state, a scan over the chunks,
every chunk from its true state. Three go backward, in which the gradients of p and q in front of a chunk are

    gp_before = f gp_behind + a_p,    gq_before = f gq_behind + a_q,    f = e^(w n + o_before - o_behind) <= 1

for a chunk of n tokens: these maps, a scan from the last chunk to the first, every chunk from its true gradients (see
wkv.cu). o is a scale that cancels and has no gradient. Backward keeps k, v and the states between chunks. Sums have a
fixed order, so results are the same in every run on the same GPU.

Arithmetic is float32 with the GPU's own exponential and reciprocal (errors of about 1e-7: exponents are <= 0, the
larger of two weights is 1). What float32 cannot give is exponents closer than |o| 2^-24, as in a loop over the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeloom.kernels import backends, layout
from spikeloom.kernels.cuda import build
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.op import dispatched, is_plain, once_only
from spikeloom.kernels.watch import WATCHERS

NOTHING = -1e38
"""Exponent of an empty sum: e^(o - m) is exactly 0, and w + o still a finite number in single precision."""
SHORTEST = 64
"""Tokens below which one launch of the loop over them is as fast."""
STEPS = 8
"""Tokens whose loads are under way together."""
_THREADS = 128
_RESIDENT = 6
"""Blocks per multiprocessor: 80 registers a thread, for the states and the tokens of a batch."""
_REAL = torch.float32
_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_ADDRESSES = (
    *("k", "v", "grad", "y", "grad_k", "grad_v", "time_decay", "time_first", "p", "q", "o", "end_p", "end_q", "end_o"),
    *("grad_end_p", "grad_end_q", "grad_p", "grad_q", "borders", "kept", "slopes", "sums"),
)
_LAYOUT = f"{len(_ADDRESSES)}Qq3I3i"


def takes(k: Any, v: Any, time_decay: Any, time_first: Any, state: Any) -> bool:
    """Whether `weighted_means` serves this call: on a GPU with a working backend, at least `SHORTEST` tokens, float32
    or half, values that fit together, nobody watching operators or neurons."""
    return (
        isinstance(k, Tensor)
        and k.is_cuda
        and not dispatched()
        and not WATCHERS
        and k.ndim == 3
        and k.dtype in _TYPES
        and SHORTEST <= k.shape[0] < 2**30
        and 0 < k[0].numel() < 2**28
        and _plain_of(k.shape, k, k, v)
        and k.dtype == v.dtype
        and _plain_of(k.shape[2:], k, time_decay, time_first)
        and (state is None or (isinstance(state, (tuple, list)) and len(state) == 3))
        and _plain_of(k.shape[1:], k, *(state or ()))
        and backends.choose("auto", "cuda") == "cuda"
    )


def _plain_of(shape: torch.Size, like: Tensor, *tensors: Any) -> bool:
    """Whether these are floating-point tensors of a shape, on the device of `like`."""
    return all(
        isinstance(t, Tensor) and is_plain(t) and t.shape == shape and t.is_floating_point() and t.device == like.device
        for t in tensors
    )


def weighted_means(
    k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor, state: Sequence[Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Means y `[T, B, C]` and the state (p, q, o) behind the last token, float32 `[B, C]` each.

    Differentiable once, with respect to all but o. `takes` has said yes.

    Args:
        k, v: keys and values `[T, B, C]` of one dtype. Contiguous or batch-first in memory; else they are copied.
        time_decay, time_first: `[C]`.
        state: (p, q, o) in front of the first token; None is the empty sum.
    """
    params = [t.to(_REAL).contiguous() for t in (time_decay, time_first)]
    start = [s.to(_REAL).contiguous() for s in state or ()]
    if torch.is_grad_enabled() and any(t.requires_grad for t in (k, v, *params, *start)):
        y, *end = _WKV.apply(k, v, *params, *start)
    else:
        _, (y, *end) = _forward(k, v, params, start)
    return y, tuple(end)


class _WKV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, time_decay: Tensor, time_first: Tensor, *state: Tensor) -> Any:
        kept, results = _forward(k, v, (time_decay, time_first), state)
        ctx.save_for_backward(*kept, time_decay, time_first)
        ctx.mark_non_differentiable(results[3])
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_p: Tensor | None, grad_q: Tensor | None, _: Any) -> Any:
        once_only()
        k, v, borders, time_decay, time_first = ctx.saved_tensors
        wants_state = len(ctx.needs_input_grad) > 4
        grad = torch.zeros_like(k) if grad is None else layout.in_order(grad, k.stride())
        ends = [None if g is None else g.contiguous() for g in (grad_p, grad_q)]
        found = _backward(k, v, grad, (time_decay, time_first), borders, ends, wants_state)
        return (*found, None) if wants_state else found


def _forward(
    k: Tensor, v: Tensor, params: Sequence[Tensor], state: Sequence[Tensor]
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """What backward needs (k and v laid out alike, and the states between chunks), and y, p, q, o."""
    if not (k.is_contiguous() or k.transpose(0, 1).is_contiguous()):
        k = k.contiguous()
    v = layout.in_order(v, k.stride())
    call = _Call(k)
    y = layout.empty_dense(k, k.dtype)
    borders = call.empty(call.chunks, 3)
    end = [call.empty() for _ in range(3)]
    given = {"k": k, "v": v, "y": y, "time_decay": params[0], "time_first": params[1], "borders": borders}
    given |= dict(zip(("p", "q", "o"), state, strict=False)) | dict(zip(("end_p", "end_q", "end_o"), end, strict=True))
    arguments = call.arguments(given)
    if call.chunks > 1:
        call.launch("wkv_summaries", call.chunks - 1, arguments)
    call.launch("wkv_scan", 1, arguments)
    call.launch("wkv_replay", call.chunks, arguments)
    return (k, v, borders), (y, *end)


def _backward(
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    params: Sequence[Tensor],
    borders: Tensor,
    ends: Sequence[Tensor | None],
    wants_state: bool,
) -> tuple[Tensor, ...]:
    """Gradients of k, v, time_decay, time_first and, if wanted, p and q."""
    call = _Call(k)
    of_k, of_v = (layout.empty_dense(k, k.dtype) for _ in range(2))
    of_state = [call.empty() for _ in range(2)] if wants_state else []
    slopes, kept = call.empty(call.chunks, 3), call.empty(-(-k.shape[0] // STEPS), 3)
    sums = call.empty(2, call.chunks)
    given = {"k": k, "v": v, "grad": grad, "grad_k": of_k, "grad_v": of_v, "borders": borders, "kept": kept}
    given |= {"time_decay": params[0], "time_first": params[1], "slopes": slopes, "sums": sums}
    given |= {name: g for name, g in zip(("grad_end_p", "grad_end_q"), ends, strict=True) if g is not None}
    given |= dict(zip(("grad_p", "grad_q"), of_state, strict=False))
    arguments = call.arguments(given)
    call.launch("wkv_adjoints", call.chunks, arguments)
    call.launch("wkv_scan_back", 1, arguments)
    call.launch("wkv_gradients", call.chunks, arguments)
    of_decay, of_first = sums.flatten(1, 2).sum(1)
    return of_k, of_v, of_decay, of_first, *of_state


class _Call:
    """Sizes of a call and how it is cut; k lies as all tensors [T, B, C] do."""

    def __init__(self, k: Tensor) -> None:
        T, B, C = k.shape
        self.k, self.shape = k, (B, C)
        self.length, self.chunks = cut(T, B * C, _processors(k.device))
        self.sizes = (k.stride(1), k.stride(0), B * C, C, T, self.length, self.chunks)

    def empty(self, *rows: int) -> Tensor:
        """Uninitialised numbers `[*rows, B, C]`, as states are."""
        return torch.empty((*rows, *self.shape), dtype=_REAL, device=self.k.device)

    def arguments(self, given: dict[str, Tensor]) -> list[int]:
        """The fields of `Arguments`; tensors that are not given are null."""
        addresses = [given[name].data_ptr() if name in given else 0 for name in _ADDRESSES]
        return [*addresses, *self.sizes]

    def launch(self, name: str, chunks: int, arguments: list[int]) -> None:
        """A thread per lane and chunk."""
        B, C = self.shape
        _kernel(name, self.k.dtype, self.k.device.index, -(-chunks * B * C // _THREADS))(arguments)


def cut(T: int, lanes: int, processors: int) -> tuple[int, int]:
    """Tokens per chunk, a multiple of `STEPS`, and number of chunks: as many as fill the GPU once.

    Few lanes get no more chunks than the scan over them is worth. Lanes that fill the GPU alone get one chunk.
    """
    most = max(1, processors * _RESIDENT * _THREADS // lanes)
    length = max(-(-T // most), isqrt(T) // 2)
    length = -(-length // STEPS) * STEPS
    return length, -(-T // length)


@lru_cache(maxsize=64)
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@lru_cache(maxsize=1024)
def _kernel(name: str, dtype: torch.dtype, device: int, blocks: int) -> Kernel:
    return Kernel(source(dtype), name, device, blocks, _THREADS, _LAYOUT)


@lru_cache(maxsize=8)
def source(dtype: torch.dtype) -> str:
    """CUDA source of the six kernels for keys and values of a dtype."""
    real, io = STORAGE[str(dtype).removeprefix("torch.")]
    prelude = (Path(build.__file__).parent / "prelude.cuh").read_text()
    values = {"STEPS": STEPS, "THREADS": _THREADS, "RESIDENT": _RESIDENT, "NOTHING": NOTHING}
    defined = "".join(f"#define {name} {value}\n" for name, value in values.items())
    body = Path(__file__).with_name("wkv.cu").read_text()
    return f"typedef {real} real; typedef unsigned index_t;\n{prelude}\ntypedef {io} io;\n{defined}{body}"
