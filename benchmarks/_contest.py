"""Several implementations of one step: peak memory of each alone, then times in turn."""

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

    Each is built alone for its peak and dropped; then all are built and timed in turn. What finds no memory beside the
    others is timed alone, after them, and `timed_alone` says so.
    """
    results: Results = {name: {} for name in makers}
    if device.type == "cuda":
        for name, make in makers.items():
            results[name] = _alone(make, device)
            print(name, results[name], flush=True)
            free(device)
    left = {name: make for name, make in makers.items() if "failure" not in results[name]}
    for name, found in _race(left, device, repetitions).items():
        results[name] |= found
    for name, make in left.items():
        if device.type == "cuda" and len(left) > 1 and results[name].get("failure") == OUT_OF_MEMORY:
            free(device)
            del results[name]["failure"]
            results[name] |= _race({name: make}, device, repetitions)[name] | {"timed_alone": True}
    free(device)
    return results


def free(device: torch.device) -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _alone(make: Callable[[], Step], device: torch.device) -> dict[str, Any]:
    try:
        return built(make, device)[1]
    except Exception as error:  # a peer may raise anything; the run goes on without it
        return {"failure": failure_text(error)}


def _race(makers: Mapping[str, Callable[[], Step]], device: torch.device, repetitions: int) -> Results:
    """Build all, time them in turn, and let go of them."""
    found: Results = {}
    jobs = []
    for name, make in makers.items():
        try:
            step = make()
        except Exception as error:
            found[name] = {"failure": failure_text(error)}
            continue
        jobs.append(Job(name, step.prepare, _held(step), True))
    return found | {name: outcome.as_json() for name, outcome in race(jobs, device, repetitions).items()}


def _held(step: Step) -> Callable[[], Any]:
    """The step's call, which keeps alive what the step does."""

    def call() -> Any:
        return step.call()

    return call
