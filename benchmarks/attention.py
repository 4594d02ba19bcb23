"""Spiking self-attention against SpikingJelly 2.0: SSA at [T=4, B=64, N=196, D=512], 8 heads, in training mode.

    python benchmarks/attention.py --out benchmarks/results/attention_block_h100.json

Forward and backward under autocast to each dtype. Whole networks: models.py.

Implementations take turns, round by round; a GPU is timed by events with an idle queue before each call, so the host's
time is in it. `graph`: the same call replayed as a CUDA graph. `compiled`: `torch.compile` of the whole layer.
SpikingJelly's state is reset outside the timed part; it takes the dtype of x, and with bfloat16 their neurons run as a
loop of torch operations, which only `compiled` has fused. Memory is the peak of a call over
what was allocated before the implementation was built: parameters and gradients are in it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

from _contest import STATE, contest  # noqa: E402
from _report import conditions, show, write  # noqa: E402
from _steps import Step, captured, warm_up  # noqa: E402

HEADS = 8
DTYPES = ("bfloat16", "float32")


def _options(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtypes", default="bfloat16", help="of autocast, some of bfloat16,float32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=196)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--only", default="", help="names of implementations, comma-separated")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(given)
    if wrong := [name for name in options.dtypes.split(",") if name not in DTYPES]:
        parser.error(f"--dtypes has {', '.join(wrong)}; expected some of {','.join(DTYPES)}")
    here = list(block_makers(options, torch.device(options.device), torch.float32))
    options.only = options.only or ",".join(here)
    if wrong := [name for name in options.only.split(",") if name not in here]:
        parser.error(f"--only has {', '.join(wrong)}; expected some of {','.join(here)} on {options.device}")
    return options


def main() -> None:
    """Run what was asked for; print a table; write JSON."""
    options = _options()
    device = torch.device(options.device)
    record = conditions(device, HERE.parent, options.commit)
    warm_up(device)
    record["rows"] = [measure(options, device, dtype) for dtype in options.dtypes.split(",")]
    show(f"SSA, T={options.steps}", *table(record["rows"]))
    if options.out:
        write(options.out, record)
        print(f"wrote {options.out}")


def measure(options: argparse.Namespace, device: torch.device, dtype: str) -> dict[str, Any]:
    """Time and peak memory of every implementation."""
    every = block_makers(options, device, getattr(torch, dtype))
    note = STATE if dtype == "bfloat16" else ""
    row: dict[str, Any] = {"what": "block", "dtype": dtype, "note": note, "options": vars(options) | {"out": None}}
    row["results"] = contest({name: every[name] for name in options.only.split(",")}, device, options.repetitions)
    for name, found in row["results"].items():
        print(name, dtype, found, flush=True)
    return row


def block_makers(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], Step]]:
    """One attention layer: ours on [T, B, N, C], SpikingJelly's on [T, B, C, N]."""
    T, B, N, C = options.steps, options.batch, options.tokens, options.dim

    def given(axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        x = (torch.rand(axes, generator=generator, device=device) < 0.2).to(dtype).requires_grad_()
        return x, torch.randn(axes, generator=generator, device=device).to(dtype)

    def step(net: nn.Module, axes: tuple[int, ...], reset: Callable[[], Any] = lambda: None) -> Step:
        x, grad = given(axes)

        def prepare() -> None:
            x.grad = None
            net.zero_grad(set_to_none=True)
            reset()

        def call() -> None:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                y = net(x)
            y.backward(grad.to(y.dtype))

        return Step(call, prepare, keep=net)

    def ours() -> Step:
        from spikeloom.spiking_attention import SSA

        return step(SSA(C, HEADS).to(device), (T, B, N, C))

    def peer(compiled: bool) -> Step:
        from spikingjelly.activation_based import functional
        from spikingjelly.activation_based.layer.attention import SpikingSelfAttention

        net = SpikingSelfAttention(C, HEADS).to(device)
        functional.set_step_mode(net, "m")
        torch.compiler.reset()
        run = torch.compile(net, dynamic=False) if compiled else net
        return step(run, (T, B, C, N), lambda: functional.reset_net(net))

    made = {"spikeloom": ours, "spikingjelly": lambda: peer(False)}
    if device.type != "cuda":
        return made
    return made | {"spikeloom graph": lambda: captured(ours()), "spikingjelly compiled": lambda: peer(True)}


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: ms, MiB, and how many times ours each is."""
    lines = []
    for row in rows:
        ours = row["results"].get("spikeloom", {})
        for name, found in row["results"].items():
            time, base = found.get("eager"), ours.get("eager")
            ratio = f"{time['median'] / base['median']:.2f}" if time and base else ""
            peak, own = found.get("peak_mib"), ours.get("peak_mib")
            times = f"{time['median']:.2f} ({time['low']:.2f}-{time['high']:.2f})" if time else found.get("failure", "")
            share = f"{peak / own:.2f}" if peak and own else ""
            lines.append([row["dtype"], name, times, ratio, f"{peak:.0f}" if peak else "", share])
    return ["dtype", "implementation", "ms", "x ours", "peak MiB", "x ours"], lines


if __name__ == "__main__":
    main()
