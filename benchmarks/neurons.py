"""Time and memory of spikeloom's neurons against SpikingJelly, snnTorch, Norse and a compiled loop, in one run.

    python benchmarks/neurons.py --device cuda --out benchmarks/results/neurons_h100.json
    python benchmarks/neurons.py --device cpu --only lif --peers none --quick

README.md beside this file says what is measured and what the columns mean.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
# The helpers beside this file, also under PYTHONSAFEPATH; and spikeloom where it is not installed.
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

from _cases import SECTIONS, STEPS, cases  # noqa: E402
from _measure import Run, host_rows, measure  # noqa: E402
from _peers import PEERS  # noqa: E402
from _report import conditions, show_host, show_section, spikingjelly_implementation, write  # noqa: E402
from _timing import copy_bandwidth  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GPU_BUDGET_S = 330.0


def main() -> None:
    """Run the sections that were asked for; print tables; rewrite the JSON after every case."""
    options = parse()
    began = time.monotonic()
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    bandwidth = copy_bandwidth(device, options.repetitions)
    run = Run(device, tuple(options.peers), options.repetitions, bandwidth["median"], began + options.budget)
    record = conditions(device, HERE.parent, options.commit) | {
        "warm_up": "3 calls (2 where one takes more than 2 s)",
        "repetitions": options.repetitions,
        "copy_bandwidth_gb_per_s": bandwidth,
        "spikingjelly_lif": spikingjelly_implementation(device),
        "targets_hold_for": "NVIDIA H100" if options.device == "cuda" else "CPU, 2 threads",
        "units": "time in ms, host cost in us; median and quartiles (low, high)",
        "rows": [],
    }
    print(f"{record['device']}, {record['threads']} threads, torch {torch.__version__}, commit {record['commit']}")
    print(f"copy {bandwidth['median']:.4g} GB/s ({bandwidth['low']:.4g}-{bandwidth['high']:.4g})", flush=True)
    if "host" in options.only:
        record["host"] = host_rows(run)
        show_host(record["host"])
    for section in [name for name in SECTIONS if name in options.only]:
        rows = []
        for case in cases(section, options.device, [DTYPES[d] for d in options.dtypes], options.steps, options.quick):
            rows += measure(case, run)
            record |= {"seconds": round(time.monotonic() - began, 1), "load_average_at_end": os.getloadavg()[0]}
            if options.out:
                write(options.out, record | {"rows": [*record["rows"], *rows]})
            progress = f"{record['seconds']:6.0f} s  {section} {case.shape_name} {case.dtype_name}"
            print(progress, file=sys.stderr, flush=True)
        record["rows"] += rows
        show_section(section, rows)
    if options.out:
        write(options.out, record)
        print(f"wrote {options.out}")


def parse() -> argparse.Namespace:
    """The command line, completed with the defaults of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), required=True)
    add("--quick", action="store_true", help="tiny inputs and 5 repetitions: does it run at all?")
    add(
        "--only",
        type=_words("host", *SECTIONS),
        default=["host", *SECTIONS],
        help="some of host,lif,bn_lif,if,plif,alif",
    )
    add("--peers", type=_words("none", *PEERS), default=list(PEERS), help=f"none, or some of {','.join(PEERS)}")
    add("--dtypes", type=_words(*DTYPES), default=["float32", "bfloat16"], help=f"some of {','.join(DTYPES)}")
    add("--steps", type=_words(*STEPS), default=list(STEPS), help=f"values of T, some of {','.join(map(str, STEPS))}")
    add("--repetitions", type=int, help="default: 21 on a GPU, 9 on a CPU")
    add("--threads", type=int, help="CPU threads of torch and of our kernels; default: torch's own choice")
    add(
        "--budget",
        type=float,
        help=f"seconds after which peers are left out; default: {GPU_BUDGET_S:g} on a GPU, else none",
    )
    add("--commit", default="", help="the commit to record where there is no git checkout")
    add("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; use --device cpu")
    options.repetitions = options.repetitions or (5 if options.quick else 21 if on_gpu else 9)
    options.budget = options.budget or (GPU_BUDGET_S if on_gpu else float("inf"))
    return options


def _words(*known: str | int) -> Callable[[str], list[str | int]]:
    """A parser of `a,b,c` that says which words it knows."""
    by_name = {str(word): word for word in known}

    def parse_words(text: str) -> list[str | int]:
        words = text.split(",")
        if unknown := [word for word in words if word not in by_name]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(by_name)}")
        return [by_name[word] for word in words]

    return parse_words


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)  # norse scripts its functions when it is imported
    main()
