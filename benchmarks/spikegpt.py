"""SpikeGPT on a GPU: its token mixer against others', a training step, and the time of a token far into a text.

    python benchmarks/spikegpt.py wkv --out benchmarks/results/spikegpt_wkv_h100.json
    python benchmarks/spikegpt.py train --profile --out benchmarks/results/spikegpt_train_h100.json
    python benchmarks/spikegpt.py generate --out benchmarks/results/spikegpt_generate_h100.json
    python benchmarks/spikegpt.py train --device cpu --models tiny --context 16 --batch 2      does it run at all?

`wkv`: forward without gradients, and forward and backward, from memory (other memory is read in front of every timed
call, until the L2 cache holds nothing else). `x limit` is the device's time over that of moving k, v and y (3 tensors;
with backward 8) at the bandwidth of a large copy in the same run. `difference`: the largest of y and the gradients,
norm over norm, from a loop in double precision. Implementations: ours in chunks of tokens; ours as a loop; the
published kernel's algorithm, written for this comparison (_wkv_two_pass.py), in float32 whatever the type;
flash-linear-attention's RWKV-4 operator where it is installed, which keeps the state behind every token, in k's type.

`train`: random ids, autocast, the published loss, clipping and fused AdamW, each step once as calls and once as a CUDA
graph, events around it with an idle queue. Peak memory holds parameters, gradients and optimizer, counted from
what was allocated before. --profile: GPU time of the calls by kind of layer, and the matrix products by kernel.

`generate`: the text enters in pieces up to a position; from there each token is the most probable one after the last,
timed until the host has it. What went before is in the state alone. `graph`: a token as a CUDA graph. `x limit`: over
the time of reading all weights but the embedding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

import _wkv as mixers  # noqa: E402
from _budget import PRODUCTS, REST, KindOf, budget, budget_lines, product_lines  # noqa: E402
from _contest import contest, free  # noqa: E402
from _language import MODELS, Greedy, network, train_step, weight_bytes  # noqa: E402
from _report import conditions, show, write  # noqa: E402
from _steps import captured, warm_up  # noqa: E402
from _timing import copy_bandwidth, failure_text  # noqa: E402

from spikeloom.models.read_out import padded  # noqa: E402

SHAPES = "12x1024x768,8x1024x2048,1x8192x768"
POSITIONS = "10,100,1000,10000,60000"
EAGER, GRAPH = "spikeloom", "spikeloom graph"
KINDS = (
    ("WKV", ("_WKV",)),
    ("neurons, token shifts and gates", ("_Weave", "spikeloom::weave")),
    ("layer norm", ("aten::native_layer_norm",)),
    ("sum, layer norm and token shift", ("_ShiftNorm",)),
    ("loss", ("_TokenLoss", "aten::_log_softmax", "aten::nll_loss", "aten::max", "aten::scatter", "_Penalised")),
    ("embedding", ("aten::embedding", "aten::index_select")),
    ("optimizer and clipping", ("aten::_fused_adam", "aten::_foreach", "aten::linalg_vector_norm")),
)
"""Kinds of layers and the beginnings of their operators' names, beside the products."""


def main() -> None:
    """Run what was asked for; print tables; write JSON after every row."""
    options = parsed()
    device = torch.device(options.device)
    record = conditions(device, HERE.parent, options.commit) | {"what": options.what, "rows": []}
    warm_up(device)
    rows = {"wkv": wkv_rows, "train": train_rows, "generate": generate_rows}[options.what]
    for row in rows(options, device):
        record["rows"].append(row)
        print(row, flush=True)
        if options.out:
            write(options.out, record)
    table = {"wkv": wkv_table, "train": train_table, "generate": generate_table}[options.what]
    show(f"SpikeGPT, {options.what}", *table(record["rows"]))


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, lists as lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    wkv, train, generate = (parts.add_parser(name) for name in ("wkv", "train", "generate"))
    wkv.add_argument("--shapes", default=SHAPES, help="BxTxC")
    wkv.add_argument("--dtypes", default="float32,bfloat16")
    wkv.add_argument("--only", default=",".join(mixers.IMPLEMENTATIONS), help="implementations")
    for part in (train, generate):
        part.add_argument("--models", default="spikegpt_46m,spikegpt_216m", help=f"some of {','.join(MODELS)}")
    train.add_argument("--dtypes", default="bfloat16", help="of autocast")
    train.add_argument("--context", type=int, default=1024)
    train.add_argument("--batch", type=int, default=12)
    train.add_argument("--profile", action="store_true")
    generate.add_argument("--dtypes", default="float32", help="of the weights")
    generate.add_argument("--positions", default=POSITIONS)
    generate.add_argument("--batch", type=int, default=1)
    generate.add_argument("--tokens", type=int, default=100, help="timed at each position")
    for part in (wkv, train, generate):
        part.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
        part.add_argument("--repetitions", type=int, default=11)
        part.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
        part.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    _settle_lists(parser, options)
    return options


def _settle_lists(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Make lists of what is separated by commas; what there is not ends the program."""
    known = {"dtypes": ("float32", "bfloat16"), "only": mixers.IMPLEMENTATIONS, "models": tuple(MODELS)}
    for name in known.keys() & vars(options).keys():
        values = getattr(options, name).split(",")
        if wrong := [value for value in values if value not in known[name]]:
            parser.error(f"--{name} has {', '.join(wrong)}; expected some of {','.join(known[name])}")
        setattr(options, name, values)
    if getattr(options, "profile", False) and options.device == "cpu":
        parser.error("--profile is of kernels of a GPU; expected --device cuda")
    try:
        if options.what == "wkv":
            options.shapes = [mixers.Shape(*map(int, text.split("x"))) for text in options.shapes.split(",")]
        elif options.what == "generate":
            options.positions = [int(text) for text in options.positions.split(",")]
    except (ValueError, TypeError):
        parser.error("expected --shapes such as 12x1024x768 (B x T x C) and --positions such as 10,1000")
    if options.what == "generate" and not _far_apart(options.positions, options.tokens):
        parser.error(
            f"--positions are {options.positions} and --tokens {options.tokens}; expected positions from 1, ascending, "
            "and at least 1 token"
        )


def _far_apart(positions: list[int], tokens: int) -> bool:
    """Whether positions ascend; the tokens that are timed are a branch of the text, so these may overlap."""
    return tokens >= 1 and positions[0] >= 1 and all(a < b for a, b in pairwise(positions))


def wkv_rows(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row per shape, type and pass."""
    bandwidth = copy_bandwidth(device, 5)["median"] * 1e9
    for shape in options.shapes:
        for dtype in (getattr(torch, name) for name in options.dtypes):
            differences = _differences(options, shape, dtype, device)
            for part in (mixers.FORWARD, mixers.BOTH):
                reasons = {name: mixers.missing(name, device) for name in options.only}
                makers = {
                    name: mixers.maker(name, shape, dtype, part, device) for name in options.only if not reasons[name]
                }
                bytes_moved = shape.must_move(part, dtype)
                row = {"shape": vars(shape), "dtype": str(dtype).removeprefix("torch."), "pass": part}
                row |= {"bytes": bytes_moved, "limit_ms": bytes_moved / bandwidth * 1e3, "difference": differences}
                found = contest(makers, device, options.repetitions)
                found |= {name: {"skipped": reason} for name, reason in reasons.items() if reason}
                yield row | {"results": {name: found[name] for name in options.only}}


def _differences(
    options: argparse.Namespace, shape: mixers.Shape, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """How far each implementation's y and gradients are from the exact ones."""
    names, found = [name for name in options.only if not mixers.missing(name, device)], {}
    try:
        expected = mixers.exact(shape, dtype, device)
    except Exception as error:  # the run goes on without a comparison, and says so
        return {name: {"failure": failure_text(error)} for name in names}
    for name in names:
        try:
            found[name] = mixers.differences(mixers.results(name, shape, dtype, device), expected)
        except Exception as error:  # a peer may raise anything; the run goes on without it
            found[name] = {"failure": failure_text(error)}
    free(device)
    return found


def train_rows(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row per network and type."""
    for name in options.models:
        for dtype_name in options.dtypes:
            case = (name, options.context, options.batch, device, getattr(torch, dtype_name))
            makers = {EAGER: lambda case=case: train_step(*case)}
            if device.type == "cuda":
                makers[GRAPH] = lambda case=case: captured(train_step(*case))
            row: dict[str, Any] = {"model": name, "dtype": dtype_name}
            row |= {"context": options.context, "batch": options.batch}
            row["results"] = contest(makers, device, options.repetitions)
            if options.profile:
                row["budget"] = _profiled(case, device)
            yield row


def _profiled(case: tuple[Any, ...], device: torch.device) -> dict[str, Any]:
    step = train_step(*case)
    for _ in range(3):
        step.call()
    found = budget(step, copy_bandwidth(device, 5)["median"], kind_of(step.keep[0].config.vocab_size))
    show(f"{case[0]}, training step by kind of layer", *budget_lines(found))
    show(f"{case[0]}, matrix products by kernel", *product_lines(found))
    del step
    free(device)
    return found


def kind_of(vocab_size: int) -> KindOf:
    """Kind of layer of a kernel in a language model; its read-out's products have the vocabulary among their sizes, or
    the next multiple to which it is padded."""
    sizes = {vocab_size, padded(vocab_size)}

    def kind(name: str, dims: list[Any], kernel: str) -> str:
        if name in PRODUCTS:
            read_out = any(sizes.intersection(axes) for axes in dims if isinstance(axes, list))
            return "products: read-out" if read_out else "products: blocks"
        return next((kind for kind, beginnings in KINDS if name.startswith(beginnings)), REST)

    return kind


def generate_rows(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row per network, type and position."""
    bandwidth = copy_bandwidth(device, 5)["median"] * 1e9
    for name in options.models:
        for dtype in options.dtypes:
            net = network(name, device).eval().to(getattr(torch, dtype))
            row = {"model": name, "dtype": dtype, "batch": options.batch, "tokens": options.tokens}
            row["limit_ms"] = weight_bytes(net) / bandwidth * 1e3
            for found in _positions(net, options, device):
                yield row | found
            del net
            free(device)


@torch.no_grad()
def _positions(net: torch.nn.Module, options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Read on to each position; from there time two branches of the text, as calls and as graphs."""
    generator = torch.Generator(device).manual_seed(0)
    text, graphed, here = Greedy(net, options.batch, device), Greedy(net, options.batch, device), 0
    for position in options.positions:
        size: Any = net.config.vocab_size
        text.read(torch.randint(size, (position - here, options.batch), generator=generator, device=device))
        here = position
        branch = Greedy(net, options.batch, device)
        branch.follow(text)
        branch.timed(3, device)
        branch.follow(text)
        row: dict[str, Any] = {"position": position, "state_bytes": text.state_bytes()}
        row["results"] = {EAGER: _tokens(branch, options.tokens, device)}
        if device.type == "cuda":
            try:
                graphed.follow(text)
                if graphed.graph is None:
                    graphed.capture()
                row["results"][GRAPH] = _tokens(graphed, options.tokens, device)
            except Exception as error:  # the run goes on without graphs, and says so
                row["results"][GRAPH] = {"failure": failure_text(error)}
        said = [found.pop("said") for found in row["results"].values() if "said" in found]
        row["same_tokens"] = all(tokens == said[0] for tokens in said)
        row["state_bytes_behind"] = branch.state_bytes()
        yield row


def _tokens(text: Greedy, tokens: int, device: torch.device) -> dict[str, Any]:
    """Time of a token, and on a GPU how far the tokens raise the memory and what is allocated behind them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    timing, said = text.timed(tokens, device)
    found: dict[str, Any] = {"eager": vars(timing), "said": said}
    if device.type == "cuda":
        found["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
        found["allocated_mib"] = torch.cuda.memory_allocated(device) / 2**20
    return found


Table = tuple[list[str], list[list[str]]]


def wkv_table(rows: list[dict[str, Any]]) -> Table:
    """A line per implementation."""
    lines = []
    for row in rows:
        case = f"{mixers.Shape(**row['shape']).label()} {row['dtype']} {row['pass']}"
        for name, found in row["results"].items():
            away = row["difference"].get(name, {})
            largest = away.get("failure") or (f"{max(away.values()):.1e}" if away else "")
            line = [case, name, "", "", f"{row['bytes'] / 1e6:.0f}", "", "", largest, _remark(found)]
            time = found.get("gpu") or found.get("eager")
            if time:
                line[2] = f"{time['median']:.3f} ({time['low']:.3f}-{time['high']:.3f})"
                line[3] = f"{found['eager']['median']:.3f}" if "eager" in found else ""
                line[5] = f"{time['median'] / row['limit_ms']:.2f}"
            if "peak_mib" in found:
                line[6] = f"{found['peak_mib']:.0f}"
            lines.append(line)
    return ["case", "implementation", "ms", "with host ms", "MB", "x limit", "peak MiB", "difference", "remark"], lines


def train_table(rows: list[dict[str, Any]]) -> Table:
    """A line per implementation."""
    lines = []
    for row in rows:
        case = f"{row['model']} {row['dtype']}, context {row['context']}, batch {row['batch']}"
        for name, found in row["results"].items():
            line = [case, name, "", "", "", _remark(found)]
            if time := found.get("eager"):
                line[2] = f"{time['median']:.2f} ({time['low']:.2f}-{time['high']:.2f})"
                line[3] = f"{row['context'] * row['batch'] / time['median'] * 1e3:,.0f}"
            if "peak_mib" in found:
                line[4] = f"{found['peak_mib'] / 1024:.2f}"
            lines.append(line)
    return ["case", "implementation", "ms", "tokens/s", "peak GiB", "remark"], lines


def generate_table(rows: list[dict[str, Any]]) -> Table:
    """A line per position and implementation."""
    lines = []
    for row in rows:
        case = f"{row['model']} {row['dtype']}, batch {row['batch']}"
        for name, found in row["results"].items():
            line = [case, name, f"{row['position']:,}", "", "", f"{row['state_bytes']:,}", "", "", _remark(found)]
            if time := found.get("eager"):
                line[3] = f"{time['median']:.3f} ({time['low']:.3f}-{time['high']:.3f})"
                line[4] = f"{time['median'] / row['limit_ms']:.2f}"
                line[7] = "yes" if row["same_tokens"] else "NO"
            if "peak_mib" in found:
                line[6] = f"{found['peak_mib']:.0f}"
            lines.append(line)
    header = ["case", "implementation", "position", "ms/token", "x limit", "state bytes", "peak MiB", "same text"]
    return [*header, "remark"], lines


def _remark(found: dict[str, Any]) -> str:
    return found.get("failure") or found.get("skipped") or "timed alone" * found.get("timed_alone", False)


if __name__ == "__main__":
    main()
