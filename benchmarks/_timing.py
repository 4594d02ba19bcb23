"""Time calls on the CPU or a GPU, several implementations in turn, and the bandwidth that sets the limit.

On a GPU there are two figures. `gpu`: the stream first sleeps as long as the host needs to enqueue the call, so events
see the device's work alone. `eager`: events around the call with an idle queue, so the host's time is in it. On the CPU
there is `eager` alone, by the wall clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

SLOW_S, ENDLESS_S = 2.0, 20.0
"""A call slower than the first is timed three times, one slower than the second is not timed."""
HIDEABLE_S = 0.02
"""Longer enqueueing is not hidden behind a sleep: the driver's queue (about 1,000 launches) fills up before."""
SLEEP_CYCLES_PER_S = 2.0e9
"""At least the clock of the device, so that a sleep is not shorter than asked for."""


@dataclass(frozen=True)
class Timing:
    """Median and quartiles in ms."""

    median: float
    low: float
    high: float
    repetitions: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        ordered = sorted(samples)
        low, median, high = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
        return cls(median, low, high, len(ordered))


@dataclass(frozen=True)
class Job:
    """Something to time: `prepare` runs outside the timed part before every `call`."""

    name: str
    prepare: Callable[[], Any]
    call: Callable[[], Any]
    compiles: bool = False
    """The first call may take long, because it compiles."""


@dataclass
class Outcome:
    """What timing a job gave: figures, or why there are none."""

    eager: Timing | None = None
    gpu: Timing | None = None
    failure: str = ""
    first_call_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def failure_text(error: BaseException) -> str:
    """One line about a failure."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"


def race(jobs: Sequence[Job], device: torch.device, repetitions: int) -> dict[str, Outcome]:
    """Warm every job up, then time them in turn, round by round. A job that fails says so and the others go on."""
    outcomes = {job.name: Outcome() for job in jobs}
    plans = {job.name: _warm_up(job, outcomes[job.name], device, repetitions) for job in jobs}
    for figure in ("gpu", "eager") if device.type == "cuda" else ("eager",):
        samples: dict[str, list[float]] = {job.name: [] for job in jobs}
        for turn in range(repetitions):
            for job in jobs:
                count, sleep = plans[job.name]
                outcome = outcomes[job.name]
                if turn >= count or outcome.failure or (figure == "gpu" and sleep is None):
                    continue
                try:
                    samples[job.name].append(_once(job, device, sleep if figure == "gpu" else 0))
                except Exception as error:  # a peer may raise anything; the run goes on without it
                    outcome.failure = failure_text(error)
        for name, values in samples.items():
            if values:
                setattr(outcomes[name], figure, Timing.of(values))
    for job in jobs:
        job.prepare()
    return outcomes


def _warm_up(job: Job, outcome: Outcome, device: torch.device, repetitions: int) -> tuple[int, int | None]:
    """Call a job until it is warm; returns how often to time it and the cycles to sleep (None: cannot be hidden)."""
    try:
        outcome.first_call_s, _ = _seconds(job, device)
        if outcome.first_call_s > ENDLESS_S and not job.compiles:
            outcome.failure = f"> {ENDLESS_S:g} s"
            return 0, None
        total, enqueue = _seconds(job, device)
        if total > ENDLESS_S:
            outcome.failure = f"> {ENDLESS_S:g} s"
        elif total < SLOW_S:
            _, enqueue = _seconds(job, device)
    except Exception as error:  # a peer may raise anything; the run goes on without it
        outcome.failure = failure_text(error)
        return 0, None
    sleep = int((1.5 * enqueue + 3e-4) * SLEEP_CYCLES_PER_S) if enqueue < HIDEABLE_S else None
    return 3 if total > SLOW_S else repetitions, sleep


def _seconds(job: Job, device: torch.device) -> tuple[float, float]:
    """Wall time of one call, and of enqueueing it."""
    job.prepare()
    _synchronize(device)
    start = time.perf_counter()
    job.call()
    enqueued = time.perf_counter() - start
    _synchronize(device)
    return time.perf_counter() - start, enqueued


def _once(job: Job, device: torch.device, sleep_cycles: int | None) -> float:
    """One call in ms."""
    job.prepare()
    if device.type != "cuda":
        # Once untimed: after another library's turn the C library has given memory back to the system, and a call would
        # pay for getting it again, as no call in a training loop does. The same for everybody.
        job.call()
        job.prepare()
        began = time.perf_counter()
        job.call()
        return (time.perf_counter() - began) * 1e3
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    if sleep_cycles:
        torch.cuda._sleep(sleep_cycles)
    start.record()
    job.call()
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def copy_bandwidth(device: torch.device, repetitions: int) -> dict[str, float]:
    """Bytes read plus written per second by a large copy, in GB/s: median and quartiles."""
    count = 2**28 if device.type == "cuda" else 2**26
    source: Tensor = torch.randn(count, device=device)
    target = torch.empty_like(source)
    job = Job("copy", lambda: None, lambda: target.copy_(source))
    outcome = race([job], device, repetitions)["copy"]
    timing = outcome.gpu or outcome.eager
    if timing is None:
        raise RuntimeError(f"the copy bandwidth of {device} could not be measured: {outcome.failure}")
    gigabytes = 2 * count * source.element_size() / 1e9
    rates = {"median": timing.median, "low": timing.high, "high": timing.low}
    return {name: gigabytes / (ms * 1e-3) for name, ms in rates.items()} | {"bytes": gigabytes * 1e9}


def host_cost(call: Callable[[], Any], device: torch.device, calls: int) -> Timing:
    """Host time of one call in us, by batches of 50 calls with an empty queue before each: median and quartiles."""
    for _ in range(50):
        call()
    samples = []
    for _ in range(calls // 50):
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(50):
            call()
        samples.append((time.perf_counter() - start) / 50 * 1e6)
    _synchronize(device)
    return Timing.of(samples)
