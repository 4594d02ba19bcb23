"""Steps to time on a GPU: what is called, what is prepared outside of the timed part, their memory and CUDA graphs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Step:
    """Something to time: `prepare` is not timed. keep: what must stay alive. replays: memory was taken before."""

    call: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None
    compiles: bool = False
    keep: Any = None
    replays: bool = False


def warm_up(device: torch.device) -> None:
    """Products of matrices in all forms, so that nobody is charged with the workspace of cuBLAS (tens of MiB)."""
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.zeros(64, 64, 64, dtype=dtype, device=device)
        F.linear(a, a[0], a[0, 0])
        a @ a


def built(make: Callable[[], Step], device: torch.device) -> tuple[Step, dict[str, Any]]:
    """An implementation, warm, and its peak in MiB over what was allocated before it was built."""
    began = time.perf_counter()
    if device.type != "cuda":
        return make(), {}
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    step = make()
    for _ in range(2):
        step.prepare()
        step.call()
    torch.cuda.synchronize(device)
    start_up = time.perf_counter() - began
    torch.cuda.reset_peak_memory_stats(device)
    step.prepare()
    step.call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return step, {"start_up_s": start_up} | ({} if step.replays else {"peak_mib": peak / 2**20})


class Prepared(Protocol):
    """A call, and what is done before it outside of the timed part."""

    @property
    def prepare(self) -> Callable[[], Any]: ...
    @property
    def call(self) -> Callable[[], Any]: ...


def graph_of(step: Prepared) -> torch.cuda.CUDAGraph:
    """One call of the step as a CUDA graph, gradients in the graph's own memory."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.prepare()
            step.call()
    torch.cuda.current_stream().wait_stream(stream)
    step.prepare()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.call()
    return graph


def captured(step: Step) -> Step:
    """The step as a CUDA graph; its gradients stay where the capture put them."""
    graph = graph_of(step)
    return Step(graph.replay, keep=(graph, step), replays=True)
