"""The energy counter: what counting costs, and how far other counters are from exact counts.

    python benchmarks/energy.py overhead --device cpu --out benchmarks/results/energy_overhead_cpu.json
    python benchmarks/energy.py overhead --device cuda --out benchmarks/results/energy_overhead_h100.json
    python benchmarks/energy.py tools --tools-path build/tools --out benchmarks/results/energy_tools.json

`overhead`: wall time and memory of a Spikformer-4-384 at 32 x 32, T=4, counted and not, by turns.
`tools`: SpikingJelly, syops, NeuroBench, sinabs and the FLOPs x T x rate rule on the networks of tests/golden, against
brute force. What is not installed is said with its pip line; `--tools-path` is the folder that this line makes.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

from _report import conditions, show, write  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Run what was asked for; print a table; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("overhead", "tools"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtypes", default="float32", help=f"some of {','.join(DTYPES)}")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--tools-path", type=Path, help="a folder with counters that are not in this environment")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    record = conditions(device, HERE.parent, options.commit)
    if options.what == "tools":
        from _energy_table import counts, missing
        from _energy_tools import compare_tools

        record["rows"] = compare_tools(options.tools_path)
        show("AC / MAC of all steps and samples (energy at 0.9 / 4.6 pJ, times exact)", *counts(record["rows"]))
        for line in missing(record["rows"]):
            print(line)
    else:
        names = options.dtypes.split(",")
        arguments = options.batch, options.steps, options.repetitions
        graphs = (False, True) if options.device == "cuda" else (False,)
        record["rows"] = [overhead(device, name, *arguments, graph) for name in names for graph in graphs]
    if options.out:
        write(options.out, record)
        print(f"wrote {options.out}")


def overhead(
    device: torch.device, dtype_name: str, batch: int, steps: int, repetitions: int, graph: bool = False
) -> dict[str, Any]:
    """Times and memory of one network, counted and not."""
    from spikeloom.energy import count
    from spikeloom.models import create_model

    torch.manual_seed(0)
    net = create_model("spikformer_cifar_4_384", T=steps).to(device, DTYPES[dtype_name])
    images = torch.rand(batch, 3, 32, 32, device=device, dtype=DTYPES[dtype_name])
    frames = images.expand(steps, *images.shape).contiguous()
    settle(net, frames)
    plain, counted = [], []
    with torch.no_grad():
        for turn in range(repetitions + 2):
            plain.append(timed(net, frames))
            with count(net, cuda_graph=graph):
                for _ in range(4 if graph else 1):  # the first batches of a run find out what is static, and capture
                    net(frames)
                counted.append(timed(net, frames))
            if turn < 2:
                plain.clear()
                counted.clear()
        memory = memory_by_batches(net, frames, graph)
    ratios = sorted(c / p for c, p in zip(counted, plain, strict=True))
    row = {
        "network": "Spikformer-4-384, 32 x 32",
        "shape": list(frames.shape),
        "dtype": dtype_name,
        "cuda_graph": graph,
        "plain_ms": statistics.median(plain) * 1e3,
        "counted_ms": statistics.median(counted) * 1e3,
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[len(ratios) // 4],
        "ratio_high": ratios[(3 * len(ratios)) // 4],
        "memory": memory,
    }
    print(
        f"{options_line(row)}: {row['plain_ms']:.1f} ms plain, {row['counted_ms']:.1f} ms counted, "
        f"ratio {row['ratio']:.3f} ({row['ratio_low']:.3f}-{row['ratio_high']:.3f})"
    )
    print(f"  memory {memory}", flush=True)
    return row


def options_line(row: dict[str, Any]) -> str:
    """What a row measured, in a few words."""
    return f"{row['network']} {row['shape']} {row['dtype']}{' cuda_graph' if row['cuda_graph'] else ''}"


def settle(net: nn.Module, frames: Tensor) -> None:
    """Give every normalisation the statistics of this input, so that all layers fire."""
    norms = [m for m in net.modules() if hasattr(m, "running_mean")]
    for norm in norms:
        norm.momentum = None
        nn.init.constant_(norm.weight, 1.2)
    with torch.no_grad():
        net.train()(frames)
    net.eval()


def timed(net: nn.Module, frames: Tensor) -> float:
    """Seconds of one call, the device's work included."""
    if frames.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    net(frames)
    if frames.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def memory_by_batches(net: nn.Module, frames: Tensor, graph: bool) -> dict[str, float]:
    """Peak memory in MiB: plain, and counted after 1, 4 and 16 batches."""
    from spikeloom.energy import count

    def peak() -> float:
        if frames.is_cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    found: dict[str, float] = {}
    if frames.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    net(frames)
    found["plain"] = round(peak(), 1)
    with count(net, cuda_graph=graph):
        for index in range(16 if frames.is_cuda else 4):
            net(frames)
            if index + 1 in (1, 4, 16):
                found[f"after_{index + 1}"] = round(peak(), 1)
    return found


if __name__ == "__main__":
    main()
