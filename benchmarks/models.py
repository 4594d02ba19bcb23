"""Whole networks against SpikingJelly 2.0 on a GPU: throughput, memory, start-up, scaling, and where the time goes.

    python benchmarks/models.py race maxformer_10_384 --modes train,infer --out benchmarks/results/models_h100.json
    python benchmarks/models.py start maxformer_10_384      fresh processes, from their start to the first step's end
    python benchmarks/models.py scaling maxformer_10_384 --steps 1,2,4,8,16 --batches 64
    python benchmarks/models.py budget maxformer_10_384     a training step by kind of layer, against its limit

A training step is forward under bfloat16 autocast, cross entropy of the mean logits, backward, fused AdamW, on images
that lie on the device. Implementations take turns; events around each call with an idle queue, so the host's time is in
it. `graph`: the same step replayed as a CUDA graph, as the trainer does. `compiled`: `torch.compile` of the whole
network. SpikingJelly's state is reset outside of the timed part. Peak memory holds parameters, gradients and optimizer;
each is counted from what was allocated before it was built.

SpikingJelly's neurons take the dtype of x for their state. Under bfloat16 autocast that is not what their kernels take,
so they run as a loop of torch operations: `spikingjelly compiled` has it fused, `spikingjelly` is slow with it, and
`spikingjelly fp32 state` (`PrecisionConfig(neuron_storage="fp32")`, eager) runs their Triton kernels.
`spikingjelly graph`, the eager step as a CUDA graph, runs only where --only names it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

from _budget import budget, budget_lines  # noqa: E402
from _contest import STATE, contest, free  # noqa: E402
from _networks import (  # noqa: E402
    FP32_STATE,
    GRAPH,
    IMPLEMENTATIONS,
    MODES,
    NEED_GPU,
    NETWORKS,
    ON_REQUEST,
    OURS,
    Case,
    maker,
)
from _report import conditions, show, write  # noqa: E402
from _steps import built, warm_up  # noqa: E402
from _timing import copy_bandwidth  # noqa: E402


def main() -> None:
    """Run what was asked for; print tables; write JSON after every row."""
    options = _options()
    device = torch.device(options.device)
    record = conditions(device, HERE.parent, options.commit) | {"what": options.what, "rows": []}
    warm_up(device)
    for row in _rows(options, device):
        record["rows"].append(row)
        if options.out:
            write(options.out, record)
    if options.what != "budget":
        show(options.what, *table(record["rows"]))


def _options(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("race", "start", "scaling", "budget", "once"))
    parser.add_argument("networks", nargs="+", choices=list(NETWORKS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--modes", help=f"some of {','.join(MODES)}; default both, of start train, its only one")
    parser.add_argument("--steps", default="4", help="time steps T")
    parser.add_argument("--batches", help="the network's own")
    names = f"{','.join(IMPLEMENTATIONS)} (default), {','.join(ON_REQUEST)}"
    parser.add_argument("--only", help=f"implementations: some of {names}")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    if options.device == "cpu" and options.what == "budget":
        parser.error("budget profiles kernels of a GPU; expected --device cuda")
    _settle_names(parser, options)
    return options


def _settle_names(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Make `only` and `modes` what will run; names that there are not, or not here, end the program."""
    allowed = MODES[:1] if options.what == "start" else MODES
    options.modes = options.modes or ",".join(allowed)
    if wrong := [name for name in options.modes.split(",") if name not in allowed]:
        parser.error(f"--modes has {', '.join(wrong)}; expected some of {','.join(allowed)} for {options.what}")
    here = [n for n in (*IMPLEMENTATIONS, *ON_REQUEST) if options.device == "cuda" or n not in NEED_GPU]
    usual = [n for n in here if n not in ON_REQUEST and not (n == FP32_STATE and options.dtype == "float32")]
    options.only = options.only or ",".join(usual)
    if wrong := [name for name in options.only.split(",") if name not in here]:
        parser.error(f"--only has {', '.join(wrong)}; expected some of {','.join(here)} on {options.device}")


def _rows(options: argparse.Namespace, device: torch.device) -> Any:
    dtype = getattr(torch, options.dtype)
    for name in options.networks:
        batches = [int(b) for b in options.batches.split(",")] if options.batches else [NETWORKS[name].batch]
        for T in map(int, options.steps.split(",")):
            for batch in batches:
                if options.what == "once":
                    maker(Case(name, "train", T, batch), options.only, device, dtype)().call()
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    continue
                for mode in options.modes.split(","):
                    yield _row(options, Case(name, mode, T, batch), device, dtype)
                    free(device)


def _row(options: argparse.Namespace, case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    names = options.only.split(",")
    notes = [NETWORKS[case.network].same, *([STATE] if dtype == torch.bfloat16 else [])]
    row: dict[str, Any] = {"case": vars(case), "note": "; ".join(notes), "results": {}}
    if options.what == "start":
        row["results"] = {name: start_up(case, name, options) for name in names}
    elif options.what == "budget":
        step, row["results"][OURS] = built(maker(case, OURS, device, dtype), device)
        row["budget"] = budget(step, copy_bandwidth(device, 5)["median"])
        show(case.label(), *budget_lines(row["budget"]))
    else:
        makers = {name: maker(case, name, device, dtype) for name in names}
        row["results"] = contest(makers, device, options.repetitions)
    print(case.label(), {name: _short(case, found) for name, found in row["results"].items()}, flush=True)
    return row


def start_up(case: Case, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of a process to the end of its first training step, without and with compiled kernels."""
    command = [sys.executable, __file__, "once", case.network, "--only", name, "--dtype", options.dtype]
    command += ["--batches", str(case.batch), "--steps", str(case.T), "--device", options.device]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        caches = ("SPIKELOOM_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUPY_CACHE_DIR")
        environment = os.environ | {cache: f"{scratch}/{cache}" for cache in caches}
        for label in ("first_start_s", "second_start_s"):
            began = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                return {"failure": done.stderr.strip().splitlines()[-1]}
            found[label] = time.perf_counter() - began
    return found


def _short(case: Case, found: dict[str, Any]) -> str:
    if "eager" not in found:
        return str(found)
    ms = found["eager"]["median"]
    peak = f", {found['peak_mib'] / 1024:.2f} GiB" if "peak_mib" in found else ""
    return f"{ms:.1f} ms, {case.batch / ms * 1e3:.0f} img/s{peak}{', timed alone' * found.get('timed_alone', False)}"


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A line per implementation: time, images per second, how many times as long as our graph, memory, start-up."""
    lines = []
    for row in rows:
        case = Case(**row["case"])
        best = (row["results"].get(GRAPH) or {}).get("eager") or (row["results"].get(OURS) or {}).get("eager")
        for name, found in row["results"].items():
            remark = found.get("failure") or "timed alone" * found.get("timed_alone", False)
            line = [case.label(), name, "", "", "", "", "", remark]
            if "eager" in found:
                time_ms = found["eager"]
                line[2] = f"{time_ms['median']:.2f} ({time_ms['low']:.2f}-{time_ms['high']:.2f})"
                line[3] = f"{case.batch / time_ms['median'] * 1e3:,.0f}"
                line[4] = f"{time_ms['median'] / best['median']:.2f}" if best else ""
            if "peak_mib" in found:
                line[5] = f"{found['peak_mib'] / 1024:.2f}"
            starts = [f"{found[key]:.0f}" for key in ("first_start_s", "second_start_s") if key in found]
            line[6] = " / ".join(starts) or (f"{found['start_up_s']:.0f}" if "start_up_s" in found else "")
            lines.append(line)
    return ["case", "implementation", "ms", "img/s", "x ours", "peak GiB", "start s", "remark"], lines


if __name__ == "__main__":
    main()
