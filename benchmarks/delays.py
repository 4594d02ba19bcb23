"""Networks with learned delays: a training step of ours and of the published construction, and the convolution's forms.

    python benchmarks/delays.py train --out benchmarks/results/delays_train_h100.json
    python benchmarks/delays.py forms --out benchmarks/results/delays_forms_h100.json
    python benchmarks/delays.py train --device cpu --tiny --batch 4 --steps 20          does it run at all?

`train`: forward, the published loss, backward, two Adams, clamping of positions, on counts of spikes. `published` is
the network from its parts: `Dcls1d` of the package dcls 0.1.1, torch's BatchNorm1d, SpikingJelly's LIF and dropout,
with our parameters (`difference`: how far its outputs are from ours). `published without cuDNN` (--only) has cuDNN off,
as the authors' code does. `spikeloom graph`: our step as a CUDA graph. `spikeloom` has the form of the convolution that
the layers choose; `spikeloom direct` and `spikeloom frequencies` have one everywhere, the latter in float32 also under
autocast, its products with TF32 only under --tf32-products on.

Implementations take turns; events around each call with an idle queue, so the host's time is in it. Memory is the peak
of a step over what was allocated before it was built: that of parameters, gradients and optimisers is in
it. TF32 in convolutions is as --tf32 says, the same for all, and recorded; --search has cuDNN try its algorithms (for
all). Targets are for one H100.

SpikingJelly's neurons take the dtype of x for their state; see `note` for autocast to bfloat16.

`forms`: forward and backward of one hidden layer's convolution along time with a given kernel: as lines [B, I, T], as a
channels-last image of T rows and B columns with its zeros before and behind copied or computed, tap by tap, and by
frequency (`fourier`: cuFFT; `frequencies`: synapses/frequency_conv.py; both in float32 alone). `errors`: those of few
samples, from double precision.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

import _delays as nets  # noqa: E402
from _contest import STATE, contest, free  # noqa: E402
from _report import _version, conditions, show, verdicts, write  # noqa: E402
from _steps import Step, captured, warm_up  # noqa: E402
from _timing import failure_text  # noqa: E402

from spikeloom.synapses.time_conv import Method  # noqa: E402

OURS, GRAPH, PUBLISHED, PLAIN = "spikeloom", "spikeloom graph", "published", "published without cuDNN"
DIRECT, WAVES = "spikeloom direct", "spikeloom frequencies"
DTYPES = ("float32", "bfloat16")
FASTER, SMALLER = 2.0, 0.6
"""What is wanted of ours: times the published step's speed, at most this share of its peak memory."""


def _options(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "forms"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtypes", default="float32,bfloat16", help="float32, or of autocast; forms: of the tensors")
    parser.add_argument("--model", default="delays_ssc_3l_2kc")
    parser.add_argument("--tiny", action="store_true", help="16 neurons, 7 taps: to see whether it runs")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=101, help="T of the input")
    parser.add_argument("--only", default="", help="names of implementations, comma-separated, spaces as _")
    parser.add_argument("--tf32", choices=("on", "off"), default="on", help="in float32 convolutions (torch: on)")
    parser.add_argument("--tf32-products", choices=("on", "off"), default="off", help="in matrix products (torch: off)")
    parser.add_argument("--search", action="store_true", help="torch.backends.cudnn.benchmark")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    options.dtypes = options.dtypes.split(",")
    if wrong := [name for name in options.dtypes if name not in DTYPES]:
        parser.error(f"--dtypes has {', '.join(wrong)}; expected some of {','.join(DTYPES)}")
    known = list(_known(options))
    options.only = [n.replace("_", " ") for n in options.only.split(",")] if options.only else known
    if options.what == "train" and not options.only[0]:
        parser.error("--only names nothing")
    if wrong := [name for name in options.only if name not in {*known, PLAIN}]:
        parser.error(f"--only has {'; '.join(wrong)}; expected some of {'; '.join([*known, PLAIN])}")
    return options


def _known(options: argparse.Namespace) -> list[str]:
    """Names of what runs unless told otherwise."""
    if options.what == "forms":
        return list(nets.FORMS)
    return [OURS, *([GRAPH] if options.device == "cuda" else []), DIRECT, WAVES, PUBLISHED]


def main(given: Sequence[str] | None = None) -> None:
    """Run what was asked for; print a table; write JSON."""
    options = _options(given)
    device = torch.device(options.device)
    record = conditions(device, HERE.parent, options.commit)
    torch.backends.cudnn.benchmark = options.search
    torch.backends.cudnn.allow_tf32 = options.tf32 == "on"
    torch.backends.cuda.matmul.allow_tf32 = options.tf32_products == "on"
    record |= {"options": {**vars(options), "out": None}, "settings": settings(), "rows": []}
    record["versions"]["dcls"] = _version("dcls")
    warm_up(device)
    run, table = (train_row, train_table) if options.what == "train" else (form_row, form_table)
    for dtype in options.dtypes:
        record["rows"].append(run(options, device, getattr(torch, dtype)))
        if options.out:
            write(options.out, record)
    show(f"{options.what}, T={options.steps}, batch {options.batch}, {record['settings']}", *table(record["rows"]))


def settings() -> dict[str, Any]:
    """What convolutions and products are allowed to do."""
    return {
        "cudnn": torch.backends.cudnn.enabled and torch.backends.cudnn.is_available(),
        "cudnn_version": torch.backends.cudnn.version(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "tf32_products": torch.backends.cuda.matmul.allow_tf32,
    }


def train_row(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Time and peak memory of every implementation, and how far the published outputs are from ours."""
    sizes = nets.TINY if options.tiny else {}
    reason = nets.missing()
    every = makers(options, device, dtype)
    ready = {name: every[name] for name in options.only if not (reason and name.startswith(PUBLISHED))}
    row: dict[str, Any] = {"what": "train", "dtype": str(dtype).removeprefix("torch."), "model": options.model}
    row["note"] = STATE if dtype == torch.bfloat16 else ""
    found = contest(ready, device, options.repetitions)
    row["results"] = {name: found.get(name, {"skipped": reason}) for name in options.only}
    if any(name.startswith(PUBLISHED) for name in ready):
        try:
            config = nets.ours(options.model, torch.device("cpu"), **sizes).config
            few = nets.batch(options.steps, min(8, options.batch), config.in_features, config.num_classes, device)
            row["difference"] = nets.difference(options.model, few[0], **sizes)
        except Exception as error:  # the run goes on without it, and says so
            row["difference"] = {"failure": failure_text(error)}
        free(device)
    row["targets"] = {name: targets(row["results"], name) for name in options.only if name.startswith(OURS)}
    for name, each in row["results"].items():
        print(name, row["dtype"], each, flush=True)
    return row


def makers(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Step]]:
    """A training step of each implementation."""
    sizes = nets.TINY if options.tiny else {}

    def built(peer: bool = False, method: Method = "auto") -> Step:
        net = nets.ours(options.model, device, method, **sizes)
        config = net.config
        given = nets.batch(options.steps, options.batch, config.in_features, config.num_classes, device)
        return nets.train_step(nets.published(net) if peer else net, given, dtype)

    def plain() -> Step:
        step = built(peer=True)

        def call() -> None:
            with _no_cudnn():
                step.call()

        return Step(call, step.prepare, keep=step.keep)

    return {
        OURS: built,
        GRAPH: lambda: captured(built()),
        DIRECT: lambda: built(method="direct"),
        WAVES: lambda: built(method="frequencies"),
        PUBLISHED: lambda: built(peer=True),
        PLAIN: plain,
    }


@contextmanager
def _no_cudnn() -> Iterator[None]:
    was = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = was


def targets(results: dict[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Speed and memory of one of ours against the published step; nothing without both."""
    ours, theirs = results.get(name, {}), results.get(PUBLISHED, {})
    found = []
    if "eager" in ours and "eager" in theirs:
        value = theirs["eager"]["median"] / ours["eager"]["median"]
        found.append({"what": "times as fast", "value": value, "bound": FASTER, "at_least": True})
    if "peak_mib" in ours and "peak_mib" in theirs:
        value = ours["peak_mib"] / theirs["peak_mib"]
        found.append({"what": "share of the peak", "value": value, "bound": SMALLER, "at_least": False})
    for target in found:
        value, bound = target["value"], target["bound"]
        target["met"] = value >= bound if target["at_least"] else value <= bound
    return found


def form_row(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Time, peak memory and errors of every form, for a hidden layer behind another."""
    config = nets.ours(options.model, torch.device("cpu"), **(nets.TINY if options.tiny else {})).config
    K = config.max_delay
    shape = options.steps + (K - 1) // 2, options.batch, config.hidden, config.hidden, K
    ready = {name: make for name, make in nets.form_makers(shape, dtype, device) if name in options.only}
    row: dict[str, Any] = {"what": "forms", "dtype": str(dtype).removeprefix("torch."), "shape": shape}
    row["macs_forward"] = (shape[0] + (K - 1) // 2) * shape[1] * shape[2] * shape[3] * K
    row["results"] = contest(ready, device, options.repetitions)
    row["errors"] = nets.form_errors(shape, dtype, device)
    return row


Table = tuple[list[str], list[list[str]]]


def train_table(rows: list[dict[str, Any]]) -> Table:
    """A line per implementation."""
    lines = []
    for row in rows:
        ours = row["results"].get(OURS, {})
        for name, found in row["results"].items():
            line = [row["dtype"], name, *_figures(found, ours), _remark(found)]
            lines.append([*line, verdicts(row["targets"].get(name, []))])
    return ["dtype", "implementation", "ms", "x ours", "peak MiB", "x ours", "remark", "targets"], lines


def form_table(rows: list[dict[str, Any]]) -> Table:
    """A line per form."""
    lines = []
    for row in rows:
        base = row["results"].get("lines", {})
        for name, found in row["results"].items():
            errors = ", ".join(f"{error:.1e}" for error in row["errors"].get(name, {}).values())
            lines.append([row["dtype"], name, *_figures(found, base), errors, _remark(found)])
    header = ["dtype", "form", "ms", "x lines", "peak MiB", "x lines", "errors of y, grad x, grad kernel", "remark"]
    return header, lines


def _figures(found: dict[str, Any], base: dict[str, Any]) -> list[str]:
    time, other = found.get("eager"), base.get("eager")
    peak, own = found.get("peak_mib"), base.get("peak_mib")
    return [
        f"{time['median']:.2f} ({time['low']:.2f}-{time['high']:.2f})" if time else "",
        f"{time['median'] / other['median']:.2f}" if time and other else "",
        f"{peak:.0f}" if peak else "",
        f"{peak / own:.2f}" if peak and own else "",
    ]


def _remark(found: dict[str, Any]) -> str:
    return found.get("failure") or found.get("skipped") or "timed alone" * found.get("timed_alone", False)


if __name__ == "__main__":
    main()
