"""Several implementations of one step: peak memory of each as it is built, then times in turn."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from _steps import Step, built
from _timing import Job, failure_text, race

Results = dict[str, dict[str, Any]]
OUT_OF_MEMORY = "out of memory"
STATE = (
    "SpikingJelly's neurons take the dtype of x for their state, so under bfloat16 autocast they run as a loop of "
    "torch operations, which torch.compile fuses and eager calls do not; a float32 state takes their Triton kernels"
)
"""What is to be said beside every figure of SpikingJelly's modules under bfloat16 autocast."""


def contest(makers: Mapping[str, Callable[[], Step]], device: torch.device, repetitions: int) -> Results:
    """Time and, on a GPU, peak memory and seconds until the third step.

    One is built after the other, and its peak counted from what was allocated before. What finds no memory beside the
    others is built and timed alone, after them, and `timed_alone` says so.
    """
    results = _round(makers, device, repetitions)
    for name, make in makers.items():
        if device.type == "cuda" and len(makers) > 1 and results[name].get("failure") == OUT_OF_MEMORY:
            free(device)
            results[name] = _round({name: make}, device, repetitions)[name] | {"timed_alone": True}
    free(device)
    return results


def free(device: torch.device) -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _round(makers: Mapping[str, Callable[[], Step]], device: torch.device, repetitions: int) -> Results:
    """Build all and time them in turn."""
    results: Results = {}
    jobs = []
    for name, make in makers.items():
        try:
            step, results[name] = built(make, device)
        except Exception as error:  # a peer may raise anything; the run goes on without it
            results[name] = {"failure": failure_text(error)}
            free(device)
            continue
        if device.type == "cuda":
            print(name, results[name], flush=True)
        jobs.append(Job(name, step.prepare, _held(step), True))
    for name, outcome in race(jobs, device, repetitions).items():
        results[name] |= outcome.as_json()
    return results


def _held(step: Step) -> Callable[[], Any]:
    """The step's call, which keeps alive what the step does."""

    def call() -> Any:
        return step.call()

    return call
