"""Whether a GPU that trains Max-Former on recordings as large as CIFAR10-DVS's waits for them.

    python benchmarks/idle.py --out benchmarks/results/idle_h100.json

The trainer runs the recipe `maxformer_cifar10_dvs_paper` (16 frames of 128 x 128, batches of 16, mirrored, moved and
mixed) on an event store of simulated recordings, about 200,000 events each. It has a few hundred of the data set's
9,000, whose frames, unlike those of all, would fit into `MAX_CACHE_BYTES`; that is set to 0, so that each batch is read
from the file, binned and changed as it would be. The file stays in the page cache. Recordings come again and again in
one long epoch, of which the middle is timed.

    store      the trainer's own batches from the store
    repeated   the same steps on one of these batches, which lies on the GPU

1 - repeated / store is the share of a step's time that data cost. Idle is what no kernel covers of the time from the
first to the last kernel of a trace, the median of three: all of it, and what lies in gaps above 20 us, where the GPU
was waiting (shorter gaps are between kernels of a step). read_ms: a thread, of those that read ahead, needs so long for
a batch, at the first time with checksums. made_ms: the thread that makes batches of it needs so long for one.
waited_ms: the main thread waits so long for one, which is ready unless making takes longer than a step.
"""

from __future__ import annotations

import argparse
import faulthandler
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

from _report import conditions, show, verdicts, write  # noqa: E402
from _trace import traced  # noqa: E402

from spikeloom.datasets import Events, StorePart, pack_store  # noqa: E402
from spikeloom.training import event_batches, network  # noqa: E402
from spikeloom.training.data import Batches, load_train, outputs_of  # noqa: E402
from spikeloom.training.loop import Training, start, train_epoch  # noqa: E402
from spikeloom.training.recipe import Recipe  # noqa: E402
from spikeloom.training.recipes import get_recipe  # noqa: E402

RECIPE, CLASSES = "maxformer_cifar10_dvs_paper", 10
SPAN_US, NOISE = 1_300_000, 0.2
BOUND = 0.05
TRACES = 3  # the one of median idleness counts: a trace itself may hold the host up
WARM = 8  # steps, where kernels are loaded and steps captured
DIFFERENT = 16  # recordings; they come again under other numbers, which for reading makes no difference


@dataclass(frozen=True)
class Size:
    """How much is written and measured. side: of the sensor; warm, timed, traced: steps."""

    recordings: int = 256
    events: int = 200_000
    side: int = 128
    warm: int = 32
    timed: int = 40
    traced: int = 20

    @property
    def steps(self) -> int:
        """All steps of a measurement, and some that only keep the epoch from ending."""
        return self.warm + self.timed + TRACES * self.traced + 8


TINY = Size(recordings=8, events=2_000, side=32, warm=1, timed=3, traced=1)
TINY_NET = {"embed_dim": 32, "num_heads": 2, "input_size": (32, 32)}


def recording(seed: int, events: int, side: int) -> Events:
    """Simulated: the rim of a disc that is swept to and fro, as the images of CIFAR10-DVS were, and noise."""
    rng = np.random.default_rng(seed)
    count = int(events * rng.uniform(0.75, 1.25))
    t = np.sort(rng.integers(0, SPAN_US, count))
    angle = rng.uniform(0, 2 * np.pi, count)
    radius = side * (0.25 + 0.03 * rng.standard_normal(count))
    sweep = 0.12 * side * np.sin(6 * np.pi * t / SPAN_US)
    places = [side / 2 + sweep + radius * np.cos(angle), side / 2 + sweep + radius * np.sin(angle)]
    stray = rng.random(count) < NOISE
    x, y = (np.where(stray, rng.uniform(0, side, count), place).clip(0, side - 1).astype(np.int64) for place in places)
    return Events.from_arrays(t, x, y, rng.integers(0, 2, count), side, side)


def pack(folder: Path, size: Size) -> None:
    """Stores of a train and a (small) test part."""
    names = [f"class {number}" for number in range(CLASSES)]
    different = min(DIFFERENT, size.recordings)
    made = [recording(seed, size.events, size.side) for seed in range(different + 1)]
    numbered = [(made[number % different], number % CLASSES) for number in range(size.recordings)]
    pack_store(folder / "train.events", numbered, size.side, size.side, classes=names)
    pack_store(folder / "test.events", [(made[different], 0)], size.side, size.side, classes=names)


def _timed(made: Iterator[Any], into: list[float]) -> Iterator[Any]:
    """The same, and how many milliseconds each took."""
    while True:
        began = time.perf_counter()
        batch = next(made, None)
        if batch is None:
            return
        into.append((time.perf_counter() - began) * 1e3)
        yield batch


class Fed(Batches):
    """Batches, or one of them again and again; made_ms, waited_ms: how long each took its thread and the caller."""

    def __init__(self, batches: Batches, repeated: bool) -> None:
        self.__dict__.update(vars(batches))
        self.made_ms: list[float] = []
        self.waited_ms: list[float] = []
        self._held = next(batches.shuffled(0, 0)) if repeated else None

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch."""
        if self._held is not None:
            yield from repeat(self._held, len(self) - start)
        else:
            yield from _timed(super().shuffled(seed, epoch, start), self.waited_ms)

    def _events_shuffled(self, *given: Any) -> Generator[tuple[Tensor, Tensor]]:
        yield from _timed(super()._events_shuffled(*given), self.made_ms)


def _take(steps: Iterator[Any], count: int, device: torch.device) -> None:
    for _ in islice(steps, count):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize()


def measured(training: Training, batches: Fed, size: Size) -> dict[str, Any]:
    """Times of steps in the middle of an epoch, and a trace of others; a step ends when the one before it is done."""
    training.epoch = training.batch = 0
    steps = train_epoch(training, batches)
    _take(steps, size.warm, training.device)
    _take(steps, 2, training.device)  # so that reading ahead is under way again
    batches.made_ms.clear()
    batches.waited_ms.clear()
    ends = [time.perf_counter() for _ in islice(steps, size.timed + 1)]
    made, waited = (statistics.median(times) if times else None for times in (batches.made_ms, batches.waited_ms))
    each = np.diff(ends) * 1e3
    found = {
        "step_ms": float(each.mean()),
        "median_ms": float(np.median(each)),
        "slowest_ms": float(each.max()),
        "made_ms": made,
        "waited_ms": waited,
    }
    traces = [traced(lambda: _take(steps, size.traced, training.device), training.device) for _ in range(TRACES)]
    found["trace"] = sorted(traces, key=lambda trace: trace["idle"] if trace else 0.0)[TRACES // 2]
    found["idle_of_traces"] = [trace["idle"] if trace else None for trace in traces]
    steps.close()  # type: ignore[attr-defined]
    if training.updates is not None and training.updates.graphs is not None:
        found |= {"graphs": training.updates.graphs.recorded, "captured": not training.updates.graphs.gave_up}
    return found


def reading(recipe: Recipe, device: torch.device) -> dict[str, float]:
    """Milliseconds to gather the words of a batch, with checksums and when these have been compared."""
    part = load_train(recipe.data)[0]
    assert isinstance(part, StorePart)
    groups = torch.arange(len(part)).split(recipe.batch_size)[:16]
    times: dict[str, list[float]] = {"first": [], "later": []}
    for found in times.values():
        for group in groups:
            began = time.perf_counter()
            part.gathered(group, pin=device.type == "cuda")
            found.append((time.perf_counter() - began) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


def compared(recipe: Recipe, size: Size, device: torch.device) -> dict[str, Any]:
    """Both ways to feed one network, in turn."""
    part = load_train(recipe.data)[0]
    assert isinstance(part, StorePart)
    needed = -(-size.steps * recipe.batch_size // len(part))
    long = part.select(torch.arange(len(part)).repeat(needed))
    batches = Batches(long, recipe.data, recipe.batch_size, device, recipe.augment)
    torch.manual_seed(recipe.seed)
    training = start(recipe, network.build(recipe, outputs_of(recipe.data)), device)
    found: dict[str, Any] = {}
    for name in ("store", "repeated"):
        found[name] = measured(training, Fed(batches, name == "repeated"), size)
        print(recipe.cuda_graph, name, found[name], flush=True)
        size = replace(size, warm=min(size.warm, WARM))
    found["data_share"] = 1 - found["repeated"]["step_ms"] / found["store"]["step_ms"]
    if device.type == "cuda" and recipe.cuda_graph != "off":  # called steps wait for the host, whatever the data
        trace = found["store"]["trace"]
        value = None if trace is None else trace["idle"]
        met = value is not None and value < BOUND
        found["targets"] = [{"what": "idle, from store", "value": value, "bound": BOUND, "at_least": False, "met": met}]
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the store, train, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a few steps of a narrow network on the CPU, for a try")
    parser.add_argument("--limit", type=float, default=100, help="seconds after which it gives up")
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device, size = torch.device("cpu" if options.tiny else "cuda"), TINY if options.tiny else Size()
    recipe = get_recipe(RECIPE)
    if options.tiny:
        recipe = replace(recipe, data=replace(recipe.data, T=2), model_args=TINY_NET, batch_size=4)
    record: dict[str, Any] = conditions(device, HERE.parent, options.commit)
    record |= {"recipe": RECIPE, "size": vars(size), "batch": recipe.batch_size, "bf16": recipe.bf16, "results": {}}
    if device.type == "cuda":
        faulthandler.dump_traceback_later(options.limit, exit=True)
    kept, event_batches.MAX_CACHE_BYTES = event_batches.MAX_CACHE_BYTES, 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            pack(Path(folder), size)
            recipe = replace(recipe, data=replace(recipe.data, name="event_store", root=folder))
            record["read_ms"] = reading(recipe, device)
            for graphs in ("auto",) if options.tiny else ("auto", "off"):
                record["results"][graphs] = compared(replace(recipe, cuda_graph=graphs), size, device)  # type: ignore[arg-type]
                if options.out:
                    write(options.out, record)
                size = replace(size, warm=min(size.warm, WARM), timed=size.timed // 2)
    finally:
        event_batches.MAX_CACHE_BYTES = kept
        faulthandler.cancel_dump_traceback_later()
    show(f"read_ms {record['read_ms']}", *table(record))


def table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """A line for each way to feed a network, with and without graphs."""
    lines = []
    for graphs, found in record["results"].items():
        for name in ("store", "repeated"):
            row, trace = found[name], found[name]["trace"]
            shares = ["", "", ""] if trace is None else [f"{trace[key]:.2%}" for key in ("busy", "idle", "waiting")]
            made = ["" if row[key] is None else f"{row[key]:.1f}" for key in ("made_ms", "waited_ms")]
            share = f"{found['data_share']:.2%}" if name == "store" else ""
            target = verdicts(found.get("targets", ()), named=False) if name == "store" else ""
            lines.append([graphs, name, f"{row['step_ms']:.2f}", *made, *shares, share, target])
    names = [
        "graphs",
        "batches",
        "step ms",
        "made ms",
        "waited ms",
        "GPU busy",
        "idle",
        "in gaps > 20 us",
        "data's share",
        "target",
    ]
    return names, lines


if __name__ == "__main__":
    main()
