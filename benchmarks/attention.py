"""Spiking self-attention against SpikingJelly 2.0: one block, and a training step of Spikformer-8-512.

    python benchmarks/attention.py block --out benchmarks/results/attention_block_h100.json
    python benchmarks/attention.py model --out benchmarks/results/spikformer_8_512_h100.json

`block`: SSA at [T=4, B=64, N=196, D=512], 8 heads, forward and backward in training mode, autocast to each dtype.
`model`: forward, cross entropy of the mean logits, backward and fused AdamW at 224 x 224, T=4, batch 32, bfloat16.

Implementations take turns, round by round; a GPU is timed by events with an idle queue before each call, so the host's
time is in it. `graph`: the same call replayed as a CUDA graph. `compiled`: `torch.compile` of the whole layer or, with
`--compile blocks`, of each block and the stem. SpikingJelly's state is reset outside the timed part. Memory is the peak
of a call over what was allocated before the implementation was built: parameters, gradients and optimizer are in it.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))
sys.path.append(str(HERE.parent))

from _report import conditions, show, write  # noqa: E402
from _timing import Job, failure_text, race  # noqa: E402

HEADS = 8


@dataclass(frozen=True)
class Step:
    """Something to time: `prepare` is not timed. keep: what must stay alive. replays: memory was taken before."""

    call: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None
    compiles: bool = False
    keep: Any = None
    replays: bool = False


def main() -> None:
    """Run what was asked for; print a table; write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("block", "model"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dtypes", default="bfloat16", help="of autocast, some of bfloat16,float32")
    parser.add_argument("--batch", type=int, help="64 for the block, 32 for the model")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=196)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--only", default="", help="names of implementations, comma-separated")
    parser.add_argument("--compile", choices=("whole", "blocks"), default="whole")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--commit", default="", help="the commit to record where there is no git checkout")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    record = conditions(device, HERE.parent, options.commit)
    _warm_up(device)
    record["rows"] = [measure(options, device, dtype) for dtype in options.dtypes.split(",")]
    show(f"{options.what}, T={options.steps}", *table(record["rows"]))
    if options.out:
        write(options.out, record)
        print(f"wrote {options.out}")


def measure(options: argparse.Namespace, device: torch.device, dtype: str) -> dict[str, Any]:
    """Time and peak memory of every implementation."""
    makers = dict((block_makers if options.what == "block" else model_makers)(options, device, getattr(torch, dtype)))
    if options.only:
        makers = {name: make for name, make in makers.items() if name in options.only.split(",")}
    row: dict[str, Any] = {"what": options.what, "dtype": dtype, "options": vars(options) | {"out": None}}
    row["results"] = {name: {} for name in makers}
    steps = {}
    for name, make in makers.items():
        try:
            steps[name], row["results"][name] = built(make, device)
        except Exception as error:  # a peer may raise anything; the run goes on without it
            row["results"][name] = {"failure": failure_text(error)}
        print(name, dtype, row["results"][name], flush=True)
    jobs = [Job(name, step.prepare, step.call, True) for name, step in steps.items()]
    for name, outcome in race(jobs, device, options.repetitions).items():
        row["results"][name] |= outcome.as_json()
        print(name, dtype, row["results"][name], flush=True)
    return row


def _warm_up(device: torch.device) -> None:
    """Products of matrices in all forms, so that nobody is charged with the workspace of cuBLAS (tens of MiB)."""
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.zeros(64, 64, 64, dtype=dtype, device=device)
        F.linear(a, a[0], a[0, 0])
        a @ a


def built(make: Callable[[], Step], device: torch.device) -> tuple[Step, dict[str, Any]]:
    """An implementation, warm, and its peak in MiB over what was allocated before it was built."""
    began = time.perf_counter()
    if device.type != "cuda":
        return make(), {}
    gc.collect()
    before = torch.cuda.memory_allocated(device)
    step = make()
    for _ in range(2):
        step.prepare()
        step.call()
    torch.cuda.synchronize(device)
    start_up = time.perf_counter() - began
    torch.cuda.reset_peak_memory_stats(device)
    step.prepare()
    step.call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return step, {"start_up_s": start_up} | ({} if step.replays else {"peak_mib": peak / 2**20})


def block_makers(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Callable[[], Step]]]:
    """One attention layer: ours on [T, B, N, C], SpikingJelly's on [T, B, C, N]."""
    T, B, N, C = options.steps, options.batch or 64, options.tokens, options.dim

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

    yield "spikeloom", ours
    if device.type == "cuda":
        yield "spikeloom graph", lambda: captured(ours())
    yield "spikingjelly", lambda: peer(False)
    if device.type == "cuda":
        yield "spikingjelly compiled", lambda: peer(True)


def model_makers(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, Callable[[], Step]]]:
    """A training step of Spikformer-8-512."""
    T, B, size = options.steps, options.batch or 32, options.size
    classes = 1000

    def step(net: nn.Module, run: Callable[[Tensor], Tensor], reset: Callable[[], Any] = lambda: None) -> Step:
        generator = torch.Generator(device).manual_seed(0)
        images = torch.randn(B, 3, size, size, generator=generator, device=device)
        labels = torch.randint(classes, (B,), generator=generator, device=device)
        fused = device.type == "cuda"
        optimizer = torch.optim.AdamW(net.parameters(), 5e-4, fused=fused, capturable=fused)

        def call() -> None:
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = run(images)
            F.cross_entropy(logits.float().mean(0), labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return Step(call, reset, keep=(net, optimizer))

    def ours() -> Step:
        from spikeloom.models import create_model

        model = create_model("spikformer_8_512", T=T, embed_dim=options.dim, depth=options.depth)
        net = model.to(device).to(memory_format=torch.channels_last)
        return step(net, net)

    def peer(compiled: bool) -> Step:
        from spikingjelly.activation_based import functional
        from spikingjelly.activation_based.model.spikformer import Spikformer

        net = Spikformer(
            T=T, img_size_h=size, img_size_w=size, embed_dims=options.dim, num_heads=HEADS, depths=options.depth
        ).to(device)
        torch.compiler.reset()
        run: Any = net
        if compiled and options.compile == "whole":
            run = torch.compile(net, dynamic=False)
        elif compiled:
            for part in (net.patch_embed, *net.blocks):
                part.compile(dynamic=False)
        return step(net, run, lambda: functional.reset_net(net))

    yield "spikeloom", ours
    if device.type == "cuda":
        yield "spikeloom graph", lambda: captured(ours())
    yield "spikingjelly", lambda: peer(False)
    if device.type == "cuda":
        yield "spikingjelly compiled", lambda: peer(True)


def captured(step: Step) -> Step:
    """The step as a CUDA graph; its gradients stay where the capture put them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.prepare()
            step.call()
    torch.cuda.current_stream().wait_stream(stream)
    step.prepare()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.call()
    return Step(graph.replay, keep=(graph, step), replays=True)


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
