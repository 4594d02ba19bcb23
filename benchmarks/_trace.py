"""How much of the time a GPU computes, from a trace of its kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType

SKIPPED = 0.1
"""Of a trace, at its beginning, where the GPU had nothing to do yet."""
GAP_US = 20.0
"""Shorter gaps are between kernels of a step; in longer ones the GPU waits for the host."""


def idle(spans: Sequence[tuple[int, int]]) -> dict[str, float] | None:
    """Shares that no span (first and last nanosecond) covers, behind the first tenth; None: there are none."""
    if not spans:
        return None
    table = np.array(sorted(spans))
    table = table[table[:, 0] >= table[0, 0] + SKIPPED * (table[:, 1].max() - table[0, 0])]
    if not len(table):
        return None
    reached = np.maximum.accumulate(table[:, 1])
    wall = float(reached[-1] - table[0, 0])
    gaps = (table[1:, 0] - reached[:-1]).clip(min=0)
    return {
        "wall_ms": wall / 1e6,
        "busy": 1 - float(gaps.sum()) / wall,
        "idle": float(gaps.sum()) / wall,
        "waiting": float(gaps[gaps > GAP_US * 1e3].sum()) / wall,
        "longest_gap_us": float(gaps.max(initial=0)) / 1e3,
    }


def traced(call: Callable[[], object], device: torch.device) -> dict[str, Any] | None:
    """What the kernels of a call leave of the time; copies from and to the host are no kernels. None: no kernels."""
    if device.type != "cuda":
        call()
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize(device)
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    spans, copied = [], 0
    for event in profile.profiler.kineto_results.events():
        waits = event.name().endswith((" Sync", "Wait Event"))  # which some versions list, too
        if event.device_type() != DeviceType.CUDA or event.is_user_annotation() or waits:
            continue
        if event.name().startswith(("Memcpy HtoD", "Memcpy DtoH")):
            copied += event.duration_ns()
        else:
            spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
    found = idle(spans)
    return None if found is None else {**found, "kernels": len(spans), "copies_with_host_ms": copied / 1e6}
