"""A rounded layer of delays at inference: the kernels of whole-number delays against the dense convolution.

    python benchmarks/_integer_delays.py --out benchmarks/results/delays_inference_cpu.json
    python benchmarks/_integer_delays.py --device cuda --threads 0 --out benchmarks/results/delays_inference_h100.json

One layer of the size of a hidden layer of delays_ssc_3l_1kc, random delays and weights, inputs of zeros and ones at a
density. `call`: T steps in one call. `ticks`: a `Stream`, step by step, time per step. `spikeloom` is
IntegerDelayConv1d. `convolution` is F.conv1d with a kernel that is ready, `DelayConv1d` builds its kernel in every call
as the layer does. `spikes` and `outputs` are the two walks of the CPU kernel, of which `spikeloom` takes one.
Implementations take turns; the wall clock on a CPU, events on a GPU (with an idle queue: the host's time is in it).
`difference`: the largest of y from the convolution in double precision, as a share of the largest y.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.append(str(HERE))
    sys.path.append(str(HERE.parent))

from _report import conditions, show, verdicts, write  # noqa: E402
from _timing import Job, race  # noqa: E402

from spikeloom import Stream  # noqa: E402
from spikeloom.kernels.delays import Tables, delayed_sum  # noqa: E402
from spikeloom.synapses import DelayConv1d, IntegerDelayConv1d, IntegerDelays  # noqa: E402

OURS, DENSE, LAYER, SPIKES, OUTPUTS = "spikeloom", "convolution", "DelayConv1d", "spikes", "outputs"
CALL, TICKS = "call", "ticks"
FEW = 8
"""Ticks of the layer that builds its kernel in each of them."""
FASTER, AT = 3.0, 0.05
"""What is wanted of ours: times the speed of the convolution, at this density."""


class Ready(nn.Module):
    """The convolution with a kernel that is built once, `[T, B, I]` -> `[T, B, O]`; carries the last K - 1 inputs."""

    streams = True

    def __init__(self, layer: DelayConv1d) -> None:
        super().__init__()
        self.register_buffer("kernel", layer.kernel().detach().contiguous())

    def forward(self, x: Tensor, *, state: Tensor | None = None, return_state: bool = False) -> Any:
        kernel = self.get_buffer("kernel")
        K = kernel.shape[2]
        lines = torch.cat([x.new_zeros(K - 1, *x.shape[1:]) if state is None else state, x])
        y = F.conv1d(lines.permute(1, 2, 0), kernel).permute(2, 0, 1)
        return (y, lines[len(lines) - K + 1 :]) if return_state else y


class Walk(nn.Module):
    """One walk of the CPU kernel."""

    def __init__(self, layer: DelayConv1d, form: str) -> None:
        super().__init__()
        exact = IntegerDelays.of(layer)
        self.elements: tuple[Tensor, Tensor, None, Tables] = (exact.weight, exact.delay, None, exact.tables)
        self.size, self.form = exact.size, form

    def forward(self, x: Tensor) -> Tensor:
        return delayed_sum(x, None, *self.elements, size=self.size, form=self.form)[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `inference` reads of its options beside `device`, `repetitions` and `steps`."""
    parser.add_argument("--densities", default="0.01,0.05,0.2")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--width", type=int, default=512, help="inputs and outputs")
    parser.add_argument("--taps", type=int, default=31, help="K, odd")
    parser.add_argument("--threads", default="2,1", help="of the CPU; 0: as torch has them")


def inference(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row per number of threads, batch, density and way of running."""
    before = torch.get_num_threads()
    layer = rounded_layer(options.width, options.taps, device)
    ways = _implementations(layer, device)
    for threads in (int(text) for text in options.threads.split(",")):
        torch.set_num_threads(threads or before)
        for B in (int(text) for text in options.batches.split(",")):
            for density in (float(text) for text in options.densities.split(",")):
                x = spikes(options.steps, B, options.width, density, device)
                for way in (CALL, TICKS):
                    yield _row(layer, ways, x, way, density, options.repetitions, device)
    torch.set_num_threads(before)


def rounded_layer(width: int, taps: int, device: torch.device) -> DelayConv1d:
    """Delays uniform over the whole kernel, as those of a network that has not been trained."""
    torch.manual_seed(0)
    layer = DelayConv1d(width, width, max_delay=taps, tail="none").requires_grad_(False)
    layer.P.uniform_(-taps / 2, taps / 2)
    layer.round_positions_()
    return layer.to(device)


def spikes(T: int, B: int, width: int, density: float, device: torch.device) -> Tensor:
    """Zeros and ones `[T, B, width]`."""
    return (torch.rand(T, B, width, generator=torch.Generator().manual_seed(1)) < density).float().to(device)


def _implementations(layer: DelayConv1d, device: torch.device) -> dict[str, nn.Module]:
    found = {OURS: IntegerDelayConv1d.of(layer), DENSE: Ready(layer), LAYER: layer}
    if device.type == "cpu":
        found |= {SPIKES: Walk(layer, "spikes"), OUTPUTS: Walk(layer, "outputs")}
    return found


def _row(
    layer: DelayConv1d,
    ways: dict[str, nn.Module],
    x: Tensor,
    way: str,
    density: float,
    repetitions: int,
    device: torch.device,
) -> dict[str, Any]:
    names = list(ways) if way == CALL else [OURS, DENSE, LAYER]
    steps = {name: 1 if way == CALL else min(len(x), FEW if name == LAYER else len(x)) for name in names}
    jobs = [Job(name, lambda: None, _runner(ways[name], x, steps[name], way)) for name in names]
    with torch.no_grad():
        outcomes = race(jobs, device, repetitions)
    found: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        eager, n = outcome.eager, steps[name]
        failed = outcome.failure or "not timed"
        found[name] = (
            {"ms": eager.median / n, "low": eager.low / n, "high": eager.high / n} if eager else {"failure": failed}
        )
    faster = found[DENSE]["ms"] / found[OURS]["ms"] if "ms" in found[DENSE] and "ms" in found[OURS] else None
    target = {"what": "faster", "bound": FASTER, "at_least": True, "value": faster}
    target["met"] = faster is not None and faster >= FASTER
    row = {"way": way, "threads": torch.get_num_threads(), "T": len(x), "B": x.shape[1], "density": density}
    row |= {"results": found, "faster": faster, "difference": _difference(layer, ways[OURS], x)}
    return row | {"targets": [target] if density == AT else []}


def _runner(module: nn.Module, x: Tensor, steps: int, way: str) -> Callable[[], None]:
    def ticks() -> None:
        stream = Stream(module)
        for t in range(steps):
            stream(x[t : t + 1])

    return ticks if way == TICKS else lambda: module(x)


def _difference(layer: DelayConv1d, ours: nn.Module, x: Tensor) -> float:
    few = x[:, :2]
    with torch.no_grad():
        exact = F.conv1d(
            F.pad(few.double(), (0, 0, 0, 0, layer.size[0] - 1, 0)).permute(1, 2, 0), layer.kernel().double()
        )
        exact = exact.permute(2, 0, 1)
        return float((ours(few).double() - exact).abs().max() / exact.abs().max())


def inference_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the rows."""
    names = (OURS, DENSE, LAYER, SPIKES, OUTPUTS)
    columns = [
        "way",
        "threads",
        "T",
        "B",
        "density",
        *(f"{name}, ms" for name in names),
        "faster",
        "difference",
        "target",
    ]
    table = []
    for row in rows:
        cells = [row["way"], str(row["threads"]), str(row["T"]), str(row["B"]), f"{row['density']:g}"]
        for name in names:
            found = row["results"].get(name, {})
            cells.append(f"{found['ms']:.3g}" if "ms" in found else found.get("failure", ""))
        faster = "" if row["faster"] is None else f"{row['faster']:.3g}x"
        table.append([*cells, faster, f"{row['difference']:.1g}", verdicts(row["targets"])])
    return columns, table


def main() -> None:
    """Run; print a table; write JSON after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=101, help="T")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    record = conditions(device, HERE.parent, options.commit) | {"what": "inference", "rows": []}
    for row in inference(options, device):
        record["rows"].append(row)
        if options.out:
            write(options.out, record)
    show("A rounded layer of delays, inference", *inference_table(record["rows"]))


if __name__ == "__main__":
    main()
