"""Memory of one training step: what is kept for backward, and the peak on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_bytes(run: Callable[[Tensor], Tensor], x: Tensor, own: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward of `run(x)`, beyond x and the tensors `own` (parameters).

    Every storage counts once and whole, however many views of it are kept.
    """
    known = {_address(t) for t in (x, *own)}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(_address(tensor), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run(x)
    total = sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in known)
    del out
    return total


def peak_bytes(prepare: Callable[[], Any], call: Callable[[], Any], device: torch.device) -> int | None:
    """How far one call raises the allocated memory of a GPU at its highest; None on the CPU."""
    prepare()
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    prepare()
    return peak


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
