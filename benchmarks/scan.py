"""Selective scan: ours against the plain recurrence, and against the time of moving its tensors.

    python benchmarks/scan.py --out benchmarks/results/scan_h100.json
    python benchmarks/scan.py --device cpu --shapes 4x256x16x1024 --dtypes float32

Forward without gradients, and forward and backward, of u, delta, z, B, C, A, D and delta_bias. `both ways`: half of the
channels read from the last token, as in a layer that scans both ways. `x limit` is the time over that of moving u,
delta, z and y (4 tensors; with backward 11: u, delta and z once more, four gradients) at the bandwidth of a large copy
in the same run. `difference`: the largest of y and the gradients, norm over norm, from the recurrence in double
precision. The compiled recurrence is torch.compile's code for --piece tokens at a time: a loop over all tokens of a
long sequence unrolls into a graph that does not compile in reasonable time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

from _contest import contest, free  # noqa: E402
from _report import conditions, show, write  # noqa: E402
from _steps import Step, warm_up  # noqa: E402
from _timing import copy_bandwidth, failure_text  # noqa: E402

from spikeloom.kernels.scan import reference, selective_scan  # noqa: E402

OURS, BOTH_WAYS, LOOP, COMPILED = "spikeloom", "spikeloom both ways", "recurrence", "recurrence compiled"
IMPLEMENTATIONS = (OURS, BOTH_WAYS, LOOP, COMPILED)
SHAPES = "8x1024x16x2048,32x1024x16x2048,1x512x16x16384"
PASSES = {"forward": 4, "forward+backward": 11}
"""Tensors [b, d, L] that must move."""
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
PIECE = 32
CACHE_BYTES = 2**28
"""Read in front of every timed call on a GPU, so that tensors come from memory and not from the L2 cache."""


@dataclass(frozen=True)
class Shape:
    """Sequences b of L tokens with d channels of n states."""

    b: int
    d: int
    n: int
    L: int

    def label(self) -> str:
        return f"[b={self.b}, d={self.d}, n={self.n}, L={self.L}]"


def main() -> None:
    """Race; print a table; write JSON after every row."""
    options = parsed()
    device = torch.device(options.device)
    record = conditions(device, HERE.parent, options.commit) | {"what": "scan", "piece": options.piece, "rows": []}
    warm_up(device)
    for row in rows(options, device):
        record["rows"].append(row)
        print(row, flush=True)
        if options.out:
            write(options.out, record)
    show("Selective scan", *table(record["rows"]))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help="bxdxnxL, by commas")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--only", default=",".join(IMPLEMENTATIONS), help="implementations")
    parser.add_argument("--passes", default=",".join(PASSES), help="forward, forward+backward")
    parser.add_argument("--piece", type=int, default=PIECE, help="tokens of the recurrence that are compiled as one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--commit", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.shapes = [Shape(*map(int, shape.split("x"))) for shape in options.shapes.split(",")]
    options.dtypes = options.dtypes.split(",")
    for name, known in (("only", IMPLEMENTATIONS), ("passes", tuple(PASSES))):
        given = getattr(options, name).split(",")
        if unknown := set(given) - set(known):
            parser.error(f"--{name} got {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        setattr(options, name, given)
    return options


def rows(options: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row per shape, type and pass."""
    bandwidth = copy_bandwidth(device, 5)["median"] * 1e9
    for shape in options.shapes:
        for dtype in (getattr(torch, name) for name in options.dtypes):
            away = difference(shape, dtype, device)
            for part in options.passes:
                moved = PASSES[part] * shape.b * shape.d * shape.L * dtype.itemsize
                row = {"shape": vars(shape), "dtype": str(dtype).removeprefix("torch."), "pass": part}
                row |= {"bytes": moved, "limit_ms": moved / bandwidth * 1e3, "difference": away}
                makers = {name: maker(name, shape, dtype, part, device, options.piece) for name in options.only}
                yield row | {"results": contest(makers, device, options.repetitions)}


def leaves_of(shape: Shape, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Values as a layer has them early in training."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*axes: int) -> Tensor:
        return torch.randn(axes, generator=generator, device=device)

    b, d, n, L = shape.b, shape.d, shape.n, shape.L
    u, delta, z = (normal(b, d, L).to(dtype) for _ in range(3))
    B, C = (normal(b, 2, n, L).to(dtype) for _ in range(2))
    A = -torch.arange(1.0, n + 1, device=device).repeat(d, 1)
    found = dict(zip(NAMES, (u, 0.5 * delta, A, B, C, normal(d), z, normal(d) - 4), strict=True))
    return {name: tensor.requires_grad_() for name, tensor in found.items()}


def function_of(name: str, piece: int = 1) -> Callable[..., Tensor]:
    """An implementation, of the named tensors of a scan."""
    if name == COMPILED:
        return _in_pieces(torch.compile(_piece), piece)
    backend, reverse = "reference" if name == LOOP else "auto", name == BOTH_WAYS

    def run(**given: Tensor) -> Tensor:
        half = given["u"].shape[1] // 2 if reverse else 0
        y = selective_scan(**given, delta_softplus=True, reversed_channels=half, backend=backend)
        assert isinstance(y, Tensor)
        return y

    return run


def _piece(u: Tensor, delta: Tensor, z: Tensor, B: Tensor, C: Tensor, state: Tensor, *rest: Tensor) -> Any:
    A, D, delta_bias = rest
    return reference.scan(u, delta, A, B, C, D, z, delta_bias, state, True, 0)


def _in_pieces(piece: Callable[..., Any], tokens: int) -> Callable[..., Tensor]:
    def run(**given: Tensor) -> Tensor:
        cut = [given[name].split(tokens, -1) for name in ("u", "delta", "z", "B", "C")]
        u, A = given["u"], given["A"]
        state, found = A.new_zeros(u.shape[0], *A.shape), []
        for some in zip(*cut, strict=True):
            y, state = piece(*some, state, A, given["D"], given["delta_bias"])
            found.append(y)
        return torch.cat(found, -1)

    return run


def maker(
    name: str, shape: Shape, dtype: torch.dtype, part: str, device: torch.device, piece: int
) -> Callable[[], Step]:
    """What builds the step of an implementation."""
    scratch = torch.zeros(CACHE_BYTES // 4 if device.type == "cuda" else 1, device=device)

    def make() -> Step:
        run, leaves = function_of(name, piece), leaves_of(shape, dtype, device)
        grad = torch.ones_like(leaves["u"])

        def forward() -> None:
            with torch.no_grad():
                run(**leaves)

        def both() -> None:
            torch.autograd.grad(run(**leaves), list(leaves.values()), grad)

        return Step(forward if part == "forward" else both, scratch.sum, compiles=True)

    return make


def difference(shape: Shape, dtype: torch.dtype, device: torch.device) -> Any:
    """The largest relative distance of y and of the gradients from those in double precision, of a short piece."""
    short = Shape(min(shape.b, 2), min(shape.d, 64), shape.n, min(shape.L, 500))
    leaves = leaves_of(short, dtype, device)
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in leaves.items()}
    try:
        found, expected = ([y := function_of(OURS)(**t), *_grads(y, t)] for t in (leaves, exact))
        pairs = zip(found, expected, strict=True)
        return max(float((a.detach().double() - b.detach()).norm() / b.detach().norm()) for a, b in pairs)
    except Exception as error:  # the run goes on without a comparison, and says so
        return failure_text(error)
    finally:
        free(device)


def _grads(y: Tensor, leaves: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y.sum(), list(leaves.values()))


def table(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A line per implementation."""
    lines = []
    for row in found:
        case = f"{Shape(**row['shape']).label()} {row['dtype']} {row['pass']}"
        away = row["difference"]
        for name, result in row["results"].items():
            away_text = (f"{away:.1e}" if isinstance(away, float) else away) if name == OURS else ""
            line = [case, name, "", "", "", "", away_text, result.get("failure", "")]
            if time := result.get("gpu") or result.get("eager"):
                line[2] = f"{time['median']:.3f} ({time['low']:.3f}-{time['high']:.3f})"
                line[3] = f"{result['eager']['median']:.3f}" if "eager" in result else ""
                line[4] = f"{time['median'] / row['limit_ms']:.2f}"
            if "peak_mib" in result:
                line[5] = f"{result['peak_mib']:.0f}"
            lines.append(line)
    return ["case", "implementation", "ms", "with host ms", "x limit", "peak MiB", "difference", "remark"], lines


if __name__ == "__main__":
    main()
