"""One case measured: time and memory of ours and the peers, verdicts against the targets; and the cost on the host."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from _cases import FORWARD, HOST_US, L2_BYTES, TRAIN, Case, Target, saved_target, targets
from _memory import peak_bytes, saved_bytes
from _ours import Implementation, Pass, ours
from _peers import peers
from _steps import graph_of
from _timing import Job, Outcome, failure_text, host_cost, race

RIVALS = {
    "spikingjelly": ("spikingjelly", "sj fp32 state", "sj autotuned"),
    "snntorch": ("snntorch",),
    "norse": ("norse",),
}
"""The peers of the CPU target and the names of their figures; the compiled loop is not among them."""


@dataclass(frozen=True)
class Run:
    """What a run was asked for, and what it found out about the device.

    Args:
        bandwidth: of a copy, read plus write, in GB/s.
        deadline: `time.monotonic()` after which peers are left out.
    """

    device: torch.device
    peers: tuple[str, ...]
    repetitions: int
    bandwidth: float
    deadline: float


def measure(case: Case, run: Run) -> list[dict[str, Any]]:
    """A row for forward, a row for forward and backward."""
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    x = case.input(run.device)
    mine = ours(case, run.device)
    others, failures = _make_peers(case, run)
    rows = []
    for part in (FORWARD, TRAIN):
        passes = {i.name: Pass(i, x, part == TRAIN) for i in (mine, *others)}
        # Captured before any peer keeps a graph of x alive, which would tie x's gradient to another stream.
        graph = _graph_times(passes[mine.name], run) if _wants_graph(case, part, run) else None
        jobs = [Job(name, p.prepare, p.call, p.implementation.compiles) for name, p in passes.items()]
        outcomes = race(jobs, run.device, run.repetitions)
        measured = {name: outcome.as_json() for name, outcome in outcomes.items()}
        if part == TRAIN:
            for name, step in passes.items():
                measured[name] |= {} if outcomes[name].failure else _memory(step, run.device)
        row = _row(case, part, run) | {"ours": measured.pop(mine.name)}
        row["peers"] = {name: {"failure": why} for name, why in failures.items()} | measured
        if graph is not None:
            row["graph"] = graph
        _judge(case, part, row, run)
        rows.append(row)
    return rows


def _wants_graph(case: Case, part: str, run: Run) -> bool:
    return part == TRAIN and case.normed and run.device.type == "cuda"


def _row(case: Case, part: str, run: Run) -> dict[str, Any]:
    """What a row says of its case."""
    return {
        "section": case.section,
        "shape": case.shape,
        "shape_name": case.shape_name,
        "dtype": case.dtype_name,
        "channels_last": case.channels_last,
        "pass": part,
        "bytes_of_x": case.bytes,
        "in_cache": run.device.type == "cuda" and case.bytes < L2_BYTES,
        "limit_ms": case.limit_ms(part, run.bandwidth),
    }


def _make_peers(case: Case, run: Run) -> tuple[list[Implementation], dict[str, str]]:
    """The peers of a case that can be made here, and why the others cannot."""
    made, failures = [], {}
    for name, make in peers(case, run.device, run.peers):
        if time.monotonic() > run.deadline:
            failures[name] = "left out: time"
            continue
        try:
            made.append(make())
        except Exception as error:  # a peer may raise anything; the run goes on without it
            failures[name] = failure_text(error)
    return made, failures


def _memory(step: Pass, device: torch.device) -> dict[str, Any]:
    """Bytes per element of x: saved for backward beyond x, and the peak of a training step beyond x and grad_s."""
    elements = step.x.numel()
    try:
        step.prepare()
        saved = saved_bytes(step.implementation.run, step.x, step.implementation.parameters)
        peak = peak_bytes(step.prepare, step.call, device)
    except Exception as error:  # a peer may raise anything; the run goes on without it
        return {"memory_failure": failure_text(error)}
    found = {"saved_bytes_per_element": saved / elements}
    return found | ({"peak_bytes_per_element": peak / elements} if peak is not None else {})


def _graph_times(step: Pass, run: Run) -> dict[str, Any]:
    """Forward and backward replayed as a CUDA graph."""
    try:
        graph = graph_of(step)
    except Exception as error:  # whatever capture refuses is a result too
        return Outcome(failure=failure_text(error)).as_json()
    job = Job("graph", lambda: None, graph.replay)
    timed = race([job], run.device, run.repetitions)["graph"].as_json()
    step.prepare()
    return timed


def _judge(case: Case, part: str, row: dict[str, Any], run: Run) -> None:
    """Add `x_limit` and the targets with their verdicts to a row."""
    mine = row["ours"]
    timing = mine.get("gpu") or mine.get("eager")
    values: dict[str, float] = {}
    if timing:
        row["x_limit"] = values["limit"] = timing["median"] / row["limit_ms"]
    if "eager" in mine:
        values["eager"] = mine["eager"]["median"]
        names = [name for key in RIVALS for name in RIVALS[key]]
        rivals = [row["peers"][n]["eager"]["median"] for n in names if "eager" in row["peers"].get(n, {})]
        if rivals:
            values["peers"] = min(rivals) / mine["eager"]["median"]
    if "gpu" in row.get("graph", {}):
        values["graph"] = row["graph"]["gpu"]["median"]
    wanted = targets(case, part, run.device.type)
    if not set(RIVALS) <= set(run.peers):
        wanted.pop("peers", None)
    if part == TRAIN:
        wanted["saved"] = saved_target(case)
        if "saved_bytes_per_element" in mine:
            values["saved"] = mine["saved_bytes_per_element"]
    row["targets"] = [_verdict(target, values.get(key)) for key, target in wanted.items()]


def _verdict(target: Target, value: float | None) -> dict[str, Any]:
    """A target, the figure it is about (None: could not be measured) and whether it is met."""
    return asdict(target) | {"value": value, "met": value is not None and target.met(value)}


def host_rows(run: Run) -> list[dict[str, Any]]:
    """Host time of one forward call on a small input, without and with gradients: ours, relu, SpikingJelly's."""
    case = Case("lif", (4, 256), torch.float32)
    x = case.input(run.device)
    calls = [ours(case, run.device), Implementation("torch.relu", torch.relu)]
    calls += [peer for peer in _make_peers(case, run)[0] if peer.name == "spikingjelly"]
    return [_host_row(implementation, x, grad, run.device) for implementation in calls for grad in (False, True)]


def _host_row(implementation: Implementation, x: torch.Tensor, grad: bool, device: torch.device) -> dict[str, Any]:
    def call() -> None:
        implementation.reset()
        implementation.run(x)

    with torch.set_grad_enabled(grad):
        timing = host_cost(call, device, 2000)
    judged = device.type == "cuda" and implementation.name == "spikeloom"
    return {
        "name": implementation.name + (" and reset_net" if implementation.name == "spikingjelly" else ""),
        "gradients": grad,
        "shape": tuple(x.shape),
        "us": asdict(timing),
        "targets": [_verdict(HOST_US, timing.median)] if judged else [],
    }
