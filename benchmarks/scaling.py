"""Training on one and several GPUs: images per second with DDP, memory and tokens per second with FSDP2.

    python benchmarks/scaling.py --processes 1 2 --out benchmarks/results/scaling.json
    python benchmarks/scaling.py --what fsdp --processes 2 --out benchmarks/results/scaling_1b.json
    python benchmarks/scaling.py --tiny --processes 1 2          (two CPU processes, to try it)

DDP: Max-Former-10-384 as its ImageNet recipe trains it, 64 images per process, which lie on the device. With CUDA
graphs, which hold the exchange of gradients as well, and without. FSDP2: a SpikeGPT of 1.09 B parameters, windows of
1,024 tokens, 8 per process, a step of forward, backward, clipping and AdamW in the trainer. Each setting runs in fresh
processes; `--repeats` blocks of `--steps` steps behind `--warmup` are timed, and the median counts. `scaling` is the
throughput of all processes over that of one, of which the faster of graphs and none is taken. All processes have the
same batch, so `loss`, after all steps, does not depend on their number.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))


class Repeated:
    """The same batch, as often as is asked: in the place of a data set."""

    tokens_per_character = None

    def __init__(self, pairs: list[tuple[Any, Any]], split: Any, count: int, samples: int, steps: int) -> None:
        self.pairs, self.split, self._count, self._samples, self._steps = pairs, split, count, samples, steps

    def __len__(self) -> int:
        return self._steps

    def count(self, batch: int) -> int:
        """Rows of a batch."""
        return self._count

    def samples(self, batch: int) -> int:
        """Images or tokens of a batch."""
        return self._samples

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """The pairs of each step."""
        for _ in range(start, self._steps):
            yield from self.pairs


def recipe_of(what: str, processes: int, options: argparse.Namespace) -> Any:
    """What is trained."""
    from spikeloom.training import Data, Recipe, get_recipe

    each = options.batch or ((2 if options.tiny else 64) if what == "ddp" else (2 if options.tiny else 8))
    if what == "ddp":
        first = get_recipe("maxformer_10_384_imagenet_paper")
        changes: dict[str, Any] = {}
        if options.tiny:
            arguments = {"embed_dim": 32, "depths": [1, 1, 1], "num_heads": 2}
            changes = {"model_args": arguments, "data": replace(first.data, image_size=32, T=1)}
        return replace(first, batch_size=each * processes, ema=None, epochs=1000, **changes)
    sizes = {"depth": 2, "embed_dim": 32} if options.tiny else {"depth": 20, "embed_dim": 2048}
    context = 16 if options.tiny else 1024
    first = get_recipe("spikegpt_char")
    return Recipe(
        model="spikegpt_46m",
        model_args={**sizes, "dropout": 0.0},
        data=Data("king_james", context=context, windows=10_000),
        optim=replace(first.optim, lr=2e-4),
        task="language",
        batch_size=each * processes,
        epochs=1000,
        shard=True,
    )


def measured(what: str, options: argparse.Namespace) -> dict[str, Any]:
    """One setting, in this process, with all others of its group."""
    import torch
    from _report import conditions

    from spikeloom.training import network
    from spikeloom.training.devices import pick_device
    from spikeloom.training.loop import Training, settle, start, train_epoch
    from spikeloom.training.split import split_of
    from spikeloom.training.team import current_team, joined, local_device

    device = pick_device(local_device("cpu" if options.tiny else "auto"))
    with joined(device):
        team = current_team()
        recipe = replace(recipe_of(what, team.size, options), cuda_graph=options.graph)
        torch.manual_seed(0)
        training: Training = start(recipe, network.build(recipe, 1000 if what == "ddp" else 256), device, None, team)
        split, size = split_of(recipe, team), recipe.batch_size // team.size
        if what == "ddp":
            pixels = torch.randn(size, 3, recipe.data.image_size, recipe.data.image_size, device=device)
            pair = pixels.to(memory_format=torch.channels_last), torch.randint(1000, (size,), device=device)
            samples = recipe.batch_size
        else:
            ids = torch.randint(256, (recipe.data.context + 1, size), device=device)
            pair, samples = (ids[:-1].contiguous(), ids[1:].contiguous()), recipe.batch_size * recipe.data.context
        blocks = [options.warmup] + [options.steps] * options.repeats
        batches: Any = Repeated([pair], split, recipe.batch_size, samples, sum(blocks))
        steps, speeds, losses = train_epoch(training, batches), [], []
        for block in blocks:
            began = time.perf_counter()
            for _ in range(block):
                tally = next(steps)
            settle(training)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            speeds.append(block * samples / (time.perf_counter() - began))
            losses.append(tally.mean_loss)
        if training.updates is not None:
            training.updates.release()  # graphs hold messages of the processes' group, which ends before them
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return {
            "what": what,
            "processes": team.size,
            "per_process": size,
            "graph": options.graph,
            "parameters": sum(p.numel() for p in training.model.parameters()),
            "unit": "images/s" if what == "ddp" else "tokens/s",
            "speed": statistics.median(speeds[1:]),
            "speeds": speeds[1:],
            "peak_mib": team.largest(peak) / 2**20,
            "loss": losses[-1],
            "steps": sum(blocks),
            "conditions": conditions(device, HERE.parent, options.commit),
        }


def launched(what: str, processes: int, graph: str, options: argparse.Namespace) -> dict[str, Any]:
    """Start the processes of a setting, and read what the first one found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        numbers = {name: str(getattr(options, name)) for name in ("warmup", "steps", "repeats", "batch", "commit")}
        words = [sys.executable, __file__, "--child", what, "--graph", graph, "--out", str(found)]
        words += [word for name, value in numbers.items() for word in (f"--{name}", value)] + ["--tiny"] * options.tiny
        place = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        running = [
            subprocess.Popen(words, env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(processes)
        ]
        try:
            codes = [process.wait(timeout=options.timeout) for process in running]
        finally:
            for process in running:
                process.kill()
        if any(codes):
            raise SystemExit(f"{what} with {processes} processes ended with {codes}")
        row: dict[str, Any] = json.loads(found.read_text())
        return row


def add_scaling(rows: list[dict[str, Any]]) -> None:
    """Throughput over that of one process, the faster one."""
    for row in rows:
        ones = [one["speed"] for one in rows if one["what"] == row["what"] and one["processes"] == 1]
        if ones:
            row["scaling"] = row["speed"] / max(ones)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("ddp", "fsdp", "both"), default="both")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=0, help="images or windows per process; 0: 64 and 8")
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=540)
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU (gloo)")
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--child", choices=("ddp", "fsdp"), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--graph", choices=("auto", "off"), default="auto", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        row = measured(options.child, options)
        if os.environ.get("RANK", "0") == "0":
            options.out.write_text(json.dumps(row))
        return
    rows = []
    for what in ("ddp", "fsdp") if options.what == "both" else (options.what,):
        for processes in options.processes:
            graphs = ("auto", "off") if what == "ddp" and not options.tiny else ("off",)
            for graph in graphs:
                rows.append(launched(what, processes, graph, options))
                add_scaling(rows)
                print({name: value for name, value in rows[-1].items() if name != "conditions"}, flush=True)
                if options.out is not None:
                    options.out.write_text(json.dumps({"benchmark": "scaling", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
