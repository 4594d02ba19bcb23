"""WKV as SpikeGPT's published code computes it: a loop over the tokens in each of B C threads, in float32, on a GPU.

Forward is one loop. Backward repeats it, keeping three numbers per token in the thread's local memory, and then goes
through the tokens from the last to the first. As published, inputs of other types are converted to float32 in front and
results back behind, blocks have min(C, 32) threads, and the compiler may use approximate arithmetic (fast-math). The
published kernel is compiled for 1024 tokens; this one for the tokens that there are.

The source is written from the equations and compiled through CuPy. A driver reserves local memory for as many threads
as the GPU can hold at a time: 12 T bytes each, 3.1 GiB at T = 1024 and 25 GiB at T = 8192 on an H100, which
`peak_mib` does not see.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OPTIONS = ("--std=c++17", "--use_fast_math")


def source(tokens: int) -> str:
    """CUDA source of both kernels for at most so many tokens."""
    return f"#define TOKENS {tokens}\n" + Path(__file__).with_suffix(".cu").read_text()


def two_pass_wkv(time_decay: Tensor, time_first: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """y [B, T, C] of keys and values [B, T, C], time_decay and time_first [C]."""
    y: Tensor = _TwoPass.apply(time_decay, time_first, k, v)
    return y


class _TwoPass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, time_decay: Tensor, time_first: Tensor, k: Tensor, v: Tensor) -> Tensor:
        w, u, k32, v32 = -time_decay.float().exp(), time_first.float(), k.float().contiguous(), v.float().contiguous()
        ctx.save_for_backward(w, u, k32, v32)
        ctx.type = k.dtype
        y = torch.empty_like(k32)
        _launch("wkv_forward", [w, u, k32, v32, y])
        return y.to(k.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        w, u, k, v = ctx.saved_tensors
        of_w, of_u = (k.new_empty(k.shape[0], k.shape[2]) for _ in range(2))
        of_k, of_v = torch.empty_like(k), torch.empty_like(v)
        _launch("wkv_backward", [w, u, k, v, grads[0].float().contiguous(), of_w, of_u, of_k, of_v])
        return of_w.sum(0) * w, of_u.sum(0), of_k.to(ctx.type), of_v.to(ctx.type)


def _launch(name: str, tensors: list[Tensor]) -> None:
    """Start a kernel on torch's stream; the third tensor is k."""
    import cupy
    import numpy as np

    k = tensors[2]
    B, T, C = k.shape
    threads = min(C, 32)
    sizes = [np.int32(size) for size in (B * C, T, C)]
    with cupy.cuda.Device(k.device.index), cupy.cuda.ExternalStream(torch.cuda.current_stream(k.device).cuda_stream):
        arguments = (*sizes, *(np.uint64(tensor.data_ptr()) for tensor in tensors))
        _kernel(name, T)((-(-B * C // threads),), (threads,), arguments)


@lru_cache(maxsize=16)
def _kernel(name: str, tokens: int) -> Any:
    import cupy

    return cupy.RawKernel(source(tokens), name, options=OPTIONS)
