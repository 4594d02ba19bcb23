"""Where the time of a step goes: kernel times by kind of layer, beside the least time their bytes or products need.

The profiler names, for every kernel, the operator that launched it and the shapes of its tensors. The limit of an
operator is the larger of two times: bytes of its tensors, each read or written as often as the algorithm must, over the
bandwidth of a copy measured in the same run; and operations over the rate of dense bfloat16 products (measured too).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _steps import Step
from torch.profiler import ProfilerActivity, profile

KINDS = (
    ("BatchNorm + neuron", ("_NormWeave",)),
    ("neuron", ("_Weave", "spikeloom::weave")),
    ("BatchNorm + max pool", ("_NormPool", "_MaxPool", "aten::native_batch_norm", "aten::max_pool2d")),
    ("attention", ("_Attention", "_Mix", "_Mixed", "aten::bmm")),
    ("depth-wise convolution", ("_Depthwise",)),
    ("convolution", ("aten::cudnn_convolution", "aten::convolution", "aten::_convolution")),
    ("linear", ("aten::addmm", "aten::mm", "aten::linear")),
    ("optimizer", ("aten::_fused_adamw_",)),
)
"""Kinds of layers and the beginnings of their operators' names; what is none of these is "copies and sums"."""
BITS, REST = "spikes to bits and back", "copies and sums"

KindOf = Callable[[str, list[Any], str], str]
"""(operator, shapes, kernel) -> kind of layer."""
PRODUCTS = ("aten::addmm", "aten::mm", "aten::bmm")


def budget(step: Step, gigabytes_per_s: float, kind_of: KindOf | None = None) -> dict[str, Any]:
    """Profile one call: ms by kind, with the number of kernels and the limit where the shapes give one; and the kernels
    of matrix products by name."""
    kind_of = kind_of or image_kind
    rate = _product_rate()
    kinds: dict[str, dict[str, float]] = defaultdict(lambda: {"ms": 0.0, "kernels": 0, "limit_ms": 0.0})
    products: dict[str, dict[str, float]] = defaultdict(lambda: {"ms": 0.0, "kernels": 0})
    counted = set()
    step.prepare()
    for name, dims, options, kernel, ms, call in _kernels(step):
        kind = kind_of(name, dims, kernel)
        kinds[kind]["ms"] += ms
        kinds[kind]["kernels"] += 1
        if name in PRODUCTS:
            products[kernel]["ms"] += ms
            products[kernel]["kernels"] += 1
        if call not in counted:
            counted.add(call)
            moved, operations = cost(name, dims, options)
            kinds[kind]["limit_ms"] += max(moved / gigabytes_per_s / 1e6, operations / rate / 1e9)
    total = sum(found["ms"] for found in kinds.values())
    speeds = {"copy_gb_s": gigabytes_per_s, "product_tflop_s": rate}
    return {"kinds": dict(kinds), "products": dict(products), "total_ms": total, **speeds}


def _kernels(step: Step) -> list[tuple[str, list[Any], list[str], str, float, Any]]:
    """Operator, shapes, its other arguments, kernel, ms and the call's number of every kernel of one call."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True) as trace:
        step.call()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    calls = {e["args"].get("External id"): e for e in events if e.get("cat") == "cpu_op"}
    found = []
    for event in events:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            number = event["args"].get("External id")
            call = calls.get(number, {"name": "", "args": {}})
            dims, options = (call["args"].get(key, []) for key in ("Input Dims", "Concrete Inputs"))
            found.append((call["name"], dims, options, event["name"], event["dur"] / 1e3, number))
    return found


def image_kind(name: str, dims: list[Any], kernel: str) -> str:
    """Kind of layer of a kernel in a network of images."""
    if kernel in ("pack", "unpack"):
        return BITS
    if name.startswith(("aten::cudnn_convolution", "aten::convolution")) and _depthwise(name, dims):
        return "depth-wise convolution"
    for kind, beginnings in KINDS:
        if name.startswith(beginnings):
            return kind
    return REST


def _depthwise(name: str, dims: list[Any]) -> bool:
    weight = dims[2] if name.endswith("backward") else dims[1]
    return len(weight) == 4 and weight[1] == 1


def cost(name: str, dims: list[Any], options: list[str]) -> tuple[float, float]:
    """Bytes (bfloat16) and operations that an operator needs at least; 0 where it is not known, as of neurons that
    carry what they read in a way that shapes do not tell."""
    if name.startswith("_NormWeave"):
        maps = [math.prod(d) for d in dims if len(d) >= 4]
        backward = name.endswith("Backward")
        # x twice and the spikes; with a stream also its two versions. Backward: x and the gradients twice, and one out
        streams = (5 if len(maps) == 1 else 8) if backward else (3 if len(maps) == 1 else 5)
        return 2.0 * streams * max(maps, default=0), 0.0
    if name == "aten::convolution_backward":
        grad, given, weight = (math.prod(d) for d in dims[:3])
        return 2.0 * (2 * grad + 2 * given + 2 * weight), 4.0 * grad * math.prod(dims[2][1:])
    if name == "aten::cudnn_convolution":
        given, weight = dims[:2]
        stride = json.loads(options[3])[0] if len(options) > 3 and options[3] else 1
        made = given[0] * weight[0] * math.prod(-(-side // stride) for side in given[2:])  # padded by half
        return 2.0 * (math.prod(given) + made + math.prod(weight)), 2.0 * made * math.prod(weight[1:])
    if name in ("aten::mm", "aten::addmm"):
        (rows, inner), (_, columns) = dims[-4:-2] if name == "aten::addmm" else dims[:2]
        return 2.0 * (rows * inner + inner * columns + rows * columns), 2.0 * rows * inner * columns
    if name == "aten::bmm":
        (count, rows, inner), (_, _, columns) = dims[:2]
        return 2.0 * count * (rows * inner + inner * columns + rows * columns), 2.0 * count * rows * inner * columns
    return 0.0, 0.0


def _product_rate() -> float:
    """TFLOP/s of a large bfloat16 product."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(3):
        a @ a
    start.record()
    for _ in range(5):
        a @ a
    end.record()
    torch.cuda.synchronize()
    return 5 * 2 * 8192**3 / start.elapsed_time(end) / 1e9


def budget_lines(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table, the longest first."""
    ordered = sorted(found["kinds"].items(), key=lambda item: -item[1]["ms"])
    lines = [
        [
            kind,
            f"{row['ms']:.2f}",
            f"{row['ms'] / found['total_ms']:.0%}",
            f"{row['kernels']:.0f}",
            f"{row['limit_ms']:.2f}" if row["limit_ms"] else "",
            f"{row['ms'] / row['limit_ms']:.2f}" if row["limit_ms"] else "",
        ]
        for kind, row in ordered
    ]
    lines.append(["all", f"{found['total_ms']:.2f}", "100%", "", "", ""])
    return ["kind", "ms", "share", "kernels", "limit ms", "x limit"], lines


def product_lines(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The same of the kernels of matrix products, their shares those of the whole call."""
    ordered = sorted(found["products"].items(), key=lambda item: -item[1]["ms"])
    total = found["total_ms"]
    lines = [
        [name[:100], f"{row['ms']:.2f}", f"{row['ms'] / total:.0%}", f"{row['kernels']:.0f}"] for name, row in ordered
    ]
    ms = sum(row["ms"] for row in found["products"].values())
    lines.append(["all products", f"{ms:.2f}", f"{ms / total:.0%}", ""])
    return ["kernel", "ms", "share", "kernels"], lines
