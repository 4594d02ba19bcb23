"""Read damaged recordings of every format, many thousands: nothing but Events or ValueError may come of any.

    python scripts/fuzz_readers.py --cases 100000                 every format, one after another
    python scripts/fuzz_readers.py --formats evt3 npz --seed 7

Each format runs in a process of its own with a bound on its memory and a time limit per case, so that an abort of a
library, a hang or a size that a file merely claims is found and reported with the file that did it (in --keep).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
GIBIBYTE = 2**30


def recordings() -> ModuleType:
    """tests/datasets/recordings.py: sound samples and how they are damaged."""
    spec = importlib.util.spec_from_file_location("recordings", HERE.parent / "tests" / "datasets" / "recordings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fuzz(name: str, first: int, cases: int, seed: int, folder: str, memory: int, seconds: int, found: Any) -> None:
    """Cases `first` to `first + cases - 1` of a format; the last file tried is always in `folder`."""
    import warnings

    import numpy as np

    warnings.simplefilter("ignore")
    tools = recordings()
    suffix, sound = tools.samples()[name]
    path = Path(folder) / f"{name}{suffix}"
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + memory,) * 2)
    counts: Counter[str] = Counter()
    slowest = 0.0
    for case in range(first, first + cases):
        path.write_bytes(tools.damage(sound, np.random.default_rng((seed, case))))
        found["case"] = case
        signal.alarm(seconds)
        start = time.perf_counter()
        try:
            tools.read(path, 1_000_000)
            counts["read"] += 1
        except ValueError as error:
            counts["refused"] += 1
            if isinstance(error.__cause__, MemoryError):
                counts["MemoryError inside"] += 1
        except Exception as error:
            kind = type(error).__name__
            counts[f"{kind}: {str(error)[:80]}"] += 1
            path.with_name(f"{name}-{kind}{suffix}").write_bytes(path.read_bytes())
        slowest = max(slowest, time.perf_counter() - start)
    signal.alarm(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    found["result"] = {"counts": dict(counts), "slowest_s": round(slowest, 3), "peak_gib": round(peak, 2)}


def main() -> int:
    """Fuzz; print a line a format; 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--formats", nargs="*", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=float, default=1.0, help="GiB that reading may take")
    parser.add_argument("--seconds", type=int, default=10, help="for one file")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz_readers")
    parser.add_argument("--out", type=Path, default=None, help="JSON of the results")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    results, bad = {}, 0
    for name in options.formats or list(recordings().samples()):
        results[name] = one_format(name, options)
        bad += len(set(results[name]["counts"]) - {"read", "refused", "MemoryError inside"}) + results[name]["deaths"]
        print(f"{name:12}", json.dumps(results[name]), flush=True)
        if options.out:
            options.out.write_text(json.dumps({"cases": options.cases, "seed": options.seed, "formats": results}))
    return 1 if bad else 0


def one_format(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All cases of a format; where the process dies, go on behind the case that killed it."""
    context = multiprocessing.get_context("spawn")
    counts: Counter[str] = Counter()
    case, deaths, slowest, peak, start = 0, 0, 0.0, 0.0, time.perf_counter()
    with context.Manager() as manager:
        while case < options.cases and deaths < 20:
            found = manager.dict()
            left = min(options.cases - case, 20_000)
            memory = int(options.memory * GIBIBYTE)
            given = (name, case, left, options.seed, str(options.keep), memory, options.seconds, found)
            process = context.Process(target=fuzz, args=given)
            process.start()
            process.join()
            if "result" in found:
                counts.update(found["result"]["counts"])
                slowest, peak = max(slowest, found["result"]["slowest_s"]), max(peak, found["result"]["peak_gib"])
                case += left
                continue
            deaths += 1
            culprit = found.get("case", case)
            for file in list(options.keep.glob(f"{name}.*")):
                file.rename(file.with_name(f"{name}-death-{culprit}{file.suffix}"))
            print(f"{name}: exit {process.exitcode} at case {culprit}", file=sys.stderr, flush=True)
            counts["before a death (not counted apart)"] += culprit - case
            case = culprit + 1
    took = round(time.perf_counter() - start)
    return {"cases": case, "deaths": deaths, "counts": dict(counts), "slowest_s": slowest, "peak_gib": peak, "s": took}


if __name__ == "__main__":
    sys.exit(main())
