"""The generated CUDA kernels, compiled as C++ and run thread by thread on the CPU, against the reference.

Not a replacement for the tests on a GPU: rounding of exp, division and half numbers is the CPU's here. But the walk
over lanes and steps, vectors, checkpoints, parameter sums and the packing of arguments are all in the generated source
and in `cuda/run.py`, and run here as they are, on any machine.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.kernels import detach, op, sigmoid, spike, step, where
from spikeloom.kernels.cpu import build
from spikeloom.kernels.cuda import run
from spikeloom.kernels.norm import norm_weave
from spikeloom.kernels.norm.programs import fused

SHIM = Path(__file__).with_name("cuda_on_cpu.h").read_text()
DRIVER = """
extern "C" void start(const void* arguments, unsigned blocks, unsigned threads) {{
    every_thread({name}, arguments, blocks, threads);
}}
"""


class OnCpu:
    """Stands in for `launch.Kernel`: same arguments, but the launch is a loop."""

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        self.library = build.load(SHIM + source + DRIVER.format(name=name))
        self.grid = (ctypes.c_uint(blocks), ctypes.c_uint(threads))
        self.struct = struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.library.start(self.struct.pack(*values), *self.grid)


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Sends CPU tensors to the CUDA kernels; call it with the number of multiprocessors that the device seems to have.

    None gives every thread as many lanes as the registers hold; many give one lane to every thread.
    """
    monkeypatch.setattr(run, "Kernel", OnCpu)
    monkeypatch.setattr(run, "_plans", {})
    monkeypatch.setitem(op._KERNELS, "cpu", run.forward)
    monkeypatch.setitem(op._BACKWARD, "cpu", run.backward)

    def choose(count: int) -> None:
        run._plans.clear()
        properties = SimpleNamespace(multi_processor_count=count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    choose(0)
    return choose


@pytest.fixture(params=["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Here the CPU only, with CUDA's kernels."""
    return str(request.param)


@step(state={"v": "v_rest", "w": 0.25})
def pair(x: Any, z: Any, v: Any, w: Any, *, a: Any = 0.9, b: Any = 1.7, v_rest: Any = 0.1) -> Any:
    h = a * v + (x - w) / b
    s = spike(h - 0.6, "triangle", 0.5)
    w = 0.8 * w + z * s
    return s, h * z, where(detach(s), v_rest, h), w


def drawn(generator: torch.Generator, shape: Sequence[int], dtype: torch.dtype, order: str) -> Tensor:
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(dtype)
    places = {"contiguous": None, "channels last": (0, 1, 3, 2), "batch first": (1, 0, 2, 3)}[order]
    if places is None:
        return x
    return x.permute(places).contiguous().permute([places.index(axis) for axis in range(4)])


CASES = [
    # T, [B, C, N], dtype, order, shape of a, initial state, multiprocessors, aligned
    (3, (2, 3, 8), torch.float32, "contiguous", (), False, 0, True),
    (3, (2, 3, 8), torch.float32, "contiguous", (3, 1), True, 0, False),
    (5, (4, 3, 64), torch.float32, "channels last", (3, 1), False, 0, True),
    (5, (2, 6, 32), torch.float32, "batch first", (6, 32), True, 1, True),
    (20, (3, 5, 7), torch.float32, "contiguous", (5, 7), False, 132, True),
    (35, (2, 4, 8), torch.float64, "batch first", (2, 1, 8), False, 0, True),
    (33, (2, 4, 16), torch.bfloat16, "contiguous", (4, 1), False, 0, True),
    (16, (2, 4, 16), torch.bfloat16, "channels last", (1, 4, 1), True, 0, True),
    (48, (1, 1, 5), torch.float32, "contiguous", (), True, 0, True),
]


@pytest.mark.parametrize(
    ("steps", "neurons", "dtype", "order", "shape", "given", "count", "aligned"),
    CASES,
    ids=[f"T={c[0]}-{'x'.join(map(str, c[1]))}-{str(c[2])[6:]}-{c[3]}" for c in CASES],
)
def test_the_cuda_kernels_do_what_the_reference_does(
    loom: Any,
    processors: Callable[[int], None],
    generator: torch.Generator,
    steps: int,
    neurons: tuple[int, ...],
    dtype: torch.dtype,
    order: str,
    shape: tuple[int, ...],
    given: bool,
    count: int,
    aligned: bool,
) -> None:
    processors(count)
    x, z = (drawn(generator, (steps, *neurons), dtype, order) for _ in "xz")
    if not aligned:
        x = torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    state = [torch.randn(neurons, generator=generator) for _ in "vw"] if given else None
    values = {"a": 0.5 + torch.rand(shape, generator=generator) / 2, "b": 1.5, "v_rest": torch.tensor(0.2)}
    loom.agree(pair, [x, z], values, state)
    launches = [plan.launch for plan in run._plans.values()]
    assert len(launches) == 2
    if count == 0 and aligned and x.numel() > 1000 and dtype != torch.float64:
        assert launches[0].tuning.vector > 1, "this case was to have several lanes per thread"


def test_one_lane_or_many_per_thread_give_the_same_bits(
    loom: Any, processors: Callable[[int], None], generator: torch.Generator
) -> None:
    x, z = (drawn(generator, (5, 4, 4, 64), torch.float32, "contiguous") for _ in "xz")
    values = {"a": 0.5 + torch.rand((4, 1), generator=generator) / 2}
    found, vectors = [], []
    for count in (0, 132):
        processors(count)
        found.append(loom.run(pair, [x, z], values))
        vectors.append({plan.launch.tuning.vector for plan in run._plans.values()})
    assert vectors[0] != vectors[1] == {1}
    one, other = found
    assert all(torch.equal(a, b) for a, b in zip(one.outputs, other.outputs, strict=True))
    assert all(torch.equal(one.gradients[n], other.gradients[n]) for n in "xz")
    assert loom.distance(one.gradients["a"], other.gradients["a"]) < 1e-5


@pytest.mark.parametrize("only", [0, 1, 2, 3])
def test_gradients_that_arrive_in_part(
    loom: Any, processors: Callable[[int], None], generator: torch.Generator, only: int
) -> None:
    x, z = (drawn(generator, (18, 1, 2, 8), torch.float64, "contiguous").to(loom.device) for _ in "xz")
    slopes = []
    for backend in ("cpu", "reference"):
        on = [t.clone().requires_grad_() for t in (x, z)]
        outputs, ends = pair(*on, backend=backend)
        (*outputs, *ends)[only].square().sum().backward()
        slopes.append([torch.zeros_like(t) if t.grad is None else t.grad for t in on])
    for got, expected in zip(*slopes, strict=True):
        assert loom.distance(expected, got) < 1e-12


@step(state={"v": 0.0})
def parametric(x: Any, v: Any, *, w: Any = 0.0) -> Any:
    h = v + (x - v) * sigmoid(w)
    s = spike(h - 0.6, "triangle", 0.5)
    return s, where(detach(s), 0.0, h)


def test_an_empty_batch_launches_nothing(loom: Any, processors: Callable[[int], None]) -> None:
    loom.agree(parametric, [torch.zeros(4, 0, 3)], {"w": torch.zeros(3)})


@pytest.mark.parametrize("residual", [False, True])
def test_the_parts_of_the_fused_normalisation(
    processors: Callable[[int], None], generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, residual: bool
) -> None:
    """Moments, fused forward and backward, correction or combination, in float64; their finish is torch's here."""
    from spikeloom.kernels.norm import op as norm_op

    monkeypatch.setattr(norm_op, "cpu", run)
    program = fused(parametric.program({}), residual, False)
    y, r, g = (drawn(generator, (18, 3, 4, 8), torch.float64, "contiguous") for _ in range(3))
    weight, bias, w = (torch.rand(4, generator=generator, dtype=torch.float64) + 0.5 for _ in range(3))
    found = []
    for backend in ("reference", "cpu"):
        leaves = [t.clone().requires_grad_() for t in (2.0 * y + 3.0, r, weight, bias, w[:, None])]
        inputs = leaves[:2] if residual else leaves[:1]
        (s,), (v,), stats = norm_weave(
            program, inputs, {"w": leaves[4]}, leaves[2], leaves[3], eps=1e-5, backend=backend
        )
        torch.autograd.backward([s, v], [g, g[0]])
        found.append([s.detach(), v.detach(), stats, *[t.grad for t in leaves if t.grad is not None]])
    assert len(run._plans) == 4
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
