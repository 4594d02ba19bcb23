"""Speed of event data: binning, filters and the packed store against tonic, on one CPU core; or on a GPU, alone.

    OMP_NUM_THREADS=1 python benchmarks/data.py --out benchmarks/results/data_cpu.json
    python benchmarks/data.py --device cuda --out benchmarks/results/data_h100.json

Both libraries see the same events. tonic's transforms take a structured array, ours `Events` that were made from it
(the conversion is timed as a row of its own). Times are the best of several calls, by turns, in one process. Without
tonic (`pip install tonic`) its columns are empty. The store is read from the page cache.

On a GPU the same operations by the wall clock, without tonic, which has none; then binning alone, of events that were
made there: medians between events of the stream, the host's time and what it waits for included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

from _report import conditions, show, verdicts, write  # noqa: E402

from spikeloom.datasets import (  # noqa: E402
    Events,
    EventStore,
    PackedEvents,
    background_filter,
    frames_by_count,
    frames_by_time,
    frames_by_window,
    pack_store,
    refractory_filter,
    time_surface,
    voxel_grid,
)

SENSORS = {"34x34": (34, 34), "128x128": (128, 128), "346x260": (260, 346)}
SECOND = 1_000_000
MEV_S = 3000
"""Million events a second that a GPU is to bin at least."""


def recording(count: int, height: int, width: int, seed: int = 0) -> Events:
    """Events spread evenly over a second: no cache is kinder to one library than to the other."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, SECOND, count))
    x, y, p = rng.integers(0, width, count), rng.integers(0, height, count), rng.integers(0, 2, count)
    return Events.from_arrays(t, x, y, p, height, width)


def best(call: Callable[[], Any], repeats: int, device: str) -> float:
    """Seconds of the fastest of `repeats` calls."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


def ours(events: Events) -> dict[str, Callable[[], Any]]:
    """Our operations by the name of the comparison."""
    packed = PackedEvents.from_events([events])
    return {
        "frames of 16 equal times": lambda: frames_by_time(events, 16),
        "frames of 16 equal counts": lambda: frames_by_count(events, 16),
        "frames of 62.5 ms": lambda: frames_by_window(events, 16, SECOND // 16),
        "frames of 16 equal times, packed": lambda: frames_by_time(packed, 16),
        "voxel grid of 16": lambda: voxel_grid(events, 16),
        "time surface at 16": lambda: time_surface(events, 16, 50_000.0),
        "refractory filter 10 ms": lambda: refractory_filter(events, 10_000),
        "background filter 10 ms": lambda: background_filter(events, 10_000),
    }


def tonics(array: Any, height: int, width: int) -> dict[str, Callable[[], Any]]:
    """tonic's transforms by the same names; empty without tonic."""
    try:
        from tonic import transforms
    except ImportError:
        return {}
    size = (width, height, 2)
    calls = {
        "frames of 16 equal times": transforms.ToFrame(sensor_size=size, n_time_bins=16),
        "frames of 16 equal counts": transforms.ToFrame(sensor_size=size, n_event_bins=16),
        "frames of 62.5 ms": transforms.ToFrame(sensor_size=size, time_window=SECOND // 16),
        "voxel grid of 16": transforms.ToVoxelGrid(sensor_size=size, n_time_bins=16),
        "refractory filter 10 ms": transforms.RefractoryPeriod(10_000),
        "background filter 10 ms": transforms.Denoise(filter_time=10_000),
    }
    return {name: partial(lambda call, a: call(a.copy()), call, array) for name, call in calls.items()}


def compare(count: int, height: int, width: int, repeats: int, device: str) -> dict[str, dict[str, float | None]]:
    """Million events a second of each operation, ours and tonic's, and the ratio."""
    events = recording(count, height, width)
    array = events.to_structured()
    array_numbers = array.astype(
        [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "<i1")]
    )  # bool is counted wrongly there
    theirs = tonics(array_numbers, height, width) if device == "cpu" else {}
    rows: dict[str, dict[str, float | None]] = {}
    calls = {"from a structured array": lambda: Events.from_structured(array, height, width), **ours(events.to(device))}
    for name, call in calls.items():
        call()  # compiles, warms up
        mine, other = best(call, repeats, device), None
        if name in theirs:
            slow = "filter" in name
            other = best(theirs[name], 1 if slow else 3, "cpu")
            mine = min(mine, best(call, repeats, device))  # by turns
        rate = count / mine / 1e6
        rows[name] = {
            "ours_mev_s": round(rate, 1),
            "tonic_mev_s": None if other is None else round(count / other / 1e6, 3),
            "ratio": None if other is None else round(other / mine, 1),
        }
    return rows


def store(count: int, recordings: int) -> dict[str, float]:
    """Packing and reading a store of `recordings` recordings of `count` events, 128 x 128."""

    class Source:
        def __len__(self) -> int:
            return recordings

        def __getitem__(self, index: int) -> tuple[Events, int]:
            return made[index % len(made)], index % 10

    made = [recording(count, 128, 128, seed) for seed in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.events"
        start = time.perf_counter()
        pack_store(path, Source(), 128, 128)
        packing = time.perf_counter() - start
        opened = EventStore(path)
        batches = [list(range(i, min(i + 32, recordings))) for i in range(0, recordings, 32)]
        opened.frames(batches[0], 16)
        frames = best(lambda: [opened.frames(batch, 16, end_us=SECOND) for batch in batches], 3, "cpu")
        unpacked = best(lambda: [opened.select(batch) for batch in batches], 3, "cpu")
        verify = best(opened.verify, 1, "cpu")
        total = count * recordings
        return {
            "events": total,
            "bytes_per_event": round(path.stat().st_size / total, 3),
            "pack_mev_s": round(total / packing / 1e6, 1),
            "frames_mev_s": round(total / frames / 1e6, 1),
            "frames_recordings_s": round(recordings / frames, 1),
            "select_mev_s": round(total / unpacked / 1e6, 1),
            "verify_mev_s": round(total / verify / 1e6, 1),
        }


def binned_on(device: str, count: int, recordings: int, height: int, width: int) -> dict[str, float]:
    """Million events a second into 16 frames of each recording, on a GPU, by the way to divide; and into 16 voxels."""
    each = count // recordings
    generator = torch.Generator(device).manual_seed(0)

    def column(most: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(most, (recordings * each,), generator=generator, device=device, dtype=dtype)

    t = column(SECOND, torch.int64).view(recordings, each).sort(1).values.flatten()
    x, y, p = column(width, torch.int16), column(height, torch.int16), column(2, torch.uint8)
    offsets = torch.arange(recordings + 1, device=device) * each
    packed = PackedEvents(t, x, y, p, offsets, height, width)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "equal times": lambda: frames_by_time(packed, 16, end_us=SECOND),
        "equal counts": lambda: frames_by_count(packed, 16),
        "62.5 ms": lambda: frames_by_window(packed, 16, SECOND // 16),
    }
    if any(int(call().sum()) != recordings * each for call in calls.values()):
        raise RuntimeError(f"Not every event of {recordings} x {each} was counted.")
    calls["voxel grid"] = lambda: voxel_grid(packed, 16, end_us=SECOND)
    balance = 2 * int(p.sum()) - recordings * each  # ON minus OFF; sums of float32, rounded
    if abs(float(calls["voxel grid"]().sum(dtype=torch.float64)) - balance) > 1:
        raise RuntimeError(f"Not every event of {recordings} x {each} is in the voxels.")
    return {name: round(recordings * each / _median_us(call), 1) for name, call in calls.items()}


def _median_us(call: Callable[[], torch.Tensor], repeats: int = 11) -> float:
    """Microseconds of a call on the current GPU, by its events."""
    found = []
    for turn in range(repeats + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:  # the first ones load kernels and take memory
            found.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(found)


def binning(device: str) -> list[dict[str, Any]]:
    """Rows of `binned_on` for each sensor, 1 M and 20 M events, in one recording and in a batch of 16."""
    rows = []
    for name, (height, width) in SENSORS.items():
        for count in (SECOND, 20 * SECOND):
            for recordings in (1, 16):
                rates = binned_on(device, count, recordings, height, width)
                row: dict[str, Any] = {"sensor": name, "events": count, "recordings": recordings, "mev_s": rates}
                value = rates["equal times"]
                bound = {"what": "equal times, M events/s", "value": value, "bound": MEV_S, "at_least": True}
                rows.append(row | {"targets": [bound | {"met": value >= MEV_S}]})
    return rows


def show_binning(rows: Sequence[dict[str, Any]]) -> None:
    """Print them."""
    lines = [
        [row["sensor"], f"{row['events']:,}", str(row["recordings"])]
        + [f"{rate:,.0f}" for rate in row["mev_s"].values()]
        + [verdicts(row["targets"], named=False)]
        for row in rows
    ]
    columns = ["sensor", "events", "recordings", *rows[0]["mev_s"], "target, equal times"]
    show("16 frames on the GPU: million events/s", columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--recordings", type=int, default=128, help="of 200,000 events, in the store")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = conditions(torch.device(options.device), HERE.parent, options.commit)
    result |= {"events": options.events, "sensors": {}}
    for name, (height, width) in SENSORS.items():
        rows = compare(options.events, height, width, options.repeats, options.device)
        result["sensors"][name] = rows
        print(f"\n{name}: million events/s{'':20} ours   tonic   ratio")
        for operation, row in rows.items():
            cells = "".join(f"{'' if value is None else value:>9}" for value in row.values())
            print(f"  {operation:34}{cells}", flush=True)
    if options.device == "cpu":
        result["store"] = store(200_000, options.recordings)
        print("\nstore", result["store"])
    else:
        result["binning"] = binning(options.device)
        show_binning(result["binning"])
    if options.out:
        write(options.out, result)


if __name__ == "__main__":
    main()
