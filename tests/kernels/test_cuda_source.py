"""The generated CUDA sources compile with nvcc, and LIF keeps everything in registers at the benchmarks' shapes.

Sources are captured from real calls on meta tensors, so no GPU and no memory is needed. Skipped without nvcc.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spikeloom.kernels import Step
from spikeloom.kernels.cuda import run
from spikeloom.kernels.norm.finish import source as norm_source
from spikeloom.kernels.norm.programs import COMBINE, MOMENTS, corrected, fused
from spikeloom.kernels.program import Program
from spikeloom.neurons import functional

NVCC = shutil.which("nvcc")
H100_PROCESSORS = 132
UNUSED = "--diag-suppress=177"
"""Helpers of the prelude that a kernel does not use; NVRTC does not mention them."""


@dataclass(frozen=True)
class Source:
    """A captured source and what it was made for."""

    label: str
    text: str


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Source]]]:
    """Run a program's forward or backward as on an H100 and return the source instead of launching it."""
    texts: list[str] = []

    class Recorder:
        def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
            texts.append(source)

        def __call__(self, values: Any) -> None:
            pass

    monkeypatch.setattr(run, "Kernel", Recorder)
    monkeypatch.setattr(run, "_plans", {})
    properties = SimpleNamespace(multi_processor_count=H100_PROCESSORS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    def captured(
        program: Program,
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        kinds: str | None = None,
        *,
        backward: bool,
        arriving: str | None = None,
        state: bool = False,
    ) -> list[Source]:
        """`kinds`: s(calar), t (single tensor) or c(hannel) per parameter."""
        run._plans.clear()
        kinds = kinds or "s" * len(program.params)
        x = torch.empty(shape, dtype=dtype, device="meta")
        params = [
            x.new_empty((shape[2], *[1] * (len(shape) - 3)) if k == "c" else (), dtype=torch.float32)
            for k in kinds
            if k != "s"
        ]
        call = f"{program.key}|{kinds.replace('c', 't')}"
        scalars = [1.0] * kinds.count("s")
        every = 16 if shape[0] > 16 and program.states else 0
        xs, n_s = [x] * len(program.inputs), len(program.states)
        given = [x[0].float() for _ in program.states] if state else []
        if backward:
            arriving = arriving or "1" * len(program.outputs) + "0" * n_s
            mask = f"{arriving}:{'1' * len(xs)}{'01'[state] * n_s}{'1' * len(params)}"
            kept = [x.new_empty((n_s, (shape[0] - 1) // 16, x[0].numel()))] if every else []
            run.backward([x] * arriving.count("1"), xs, given, params, kept, scalars, call, every, mask)
        else:
            run.forward(xs, given, params, scalars, call, every, state)
        name = f"{program.name} {'backward' if backward else 'forward'} {list(shape)} {str(dtype)[6:]} {kinds}"
        return [Source(name, texts.pop())]

    return captured


def compiled(sources: list[Source], folder: Path) -> dict[str, int]:
    """Bytes of spilled registers by label, from nvcc for an H100; two compilers at a time."""

    def compile_one(numbered: tuple[int, Source]) -> int:
        number, source = numbered
        code = folder / f"{number}.cu"
        code.write_text(source.text)
        command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v", UNUSED]
        done = subprocess.run(
            [*command, str(code), "-o", str(code.with_suffix(".cubin"))], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{source.label}:\n{done.stderr}"
        assert "warning" not in done.stderr, f"{source.label}:\n{done.stderr}"
        spills = re.findall(r"(\d+) bytes spill stores", done.stderr)
        assert spills, done.stderr
        return sum(map(int, spills))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip([s.label for s in sources], pool.map(compile_one, enumerate(sources)), strict=True))


def lif() -> Program:
    return functional.lif.program(functional.lif.settle({})[1])


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_lif_spills_no_register_at_the_shapes_of_the_benchmarks(
    capture: Callable[..., list[Source]], tmp_path: Path
) -> None:
    sources = []
    for shape in ((4, 2**26), (16, 2**23), (128, 2**20), (1024, 2**14)):
        for dtype in (torch.float32, torch.bfloat16):
            for backward in (False, True):
                sources += capture(lif(), shape, dtype, backward=backward)
    spilled = {label: size for label, size in compiled(sources, tmp_path).items() if size}
    assert not spilled


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_all_neurons_compile(capture: Callable[..., list[Source]], tmp_path: Path) -> None:
    """Backward holds the forward step too. Every neuron, storage type, parameter kind and road (short, long) once."""
    dtypes = (torch.float32, torch.float16, torch.float64, torch.bfloat16)
    names = [n for n in functional.__all__ if isinstance(getattr(functional, n), Step)]
    assert len(names) >= 8
    sources = []
    for place, name in enumerate(names):
        made = getattr(functional, name)
        program = made.program(made.settle({})[1])
        kinds = "".join("cts"[(place + i) % 3] for i in range(len(program.params)))
        steps = (4, 40)[place % 2]
        sources += capture(program, (steps, 8, 6, 10), dtypes[place % 4], kinds, backward=True, state=place % 3 == 0)
    compiled(sources, tmp_path)


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_the_fused_normalisation_compiles(capture: Callable[..., list[Source]], tmp_path: Path) -> None:
    shape, program = (4, 32, 96, 56, 56), fused(lif(), True, False)
    tail = corrected(fused(lif(), False, False))
    sources = [Source("norm finish", norm_source())]
    sources += capture(MOMENTS, shape, torch.float32, "ccc", backward=True, arriving="2")
    sources += capture(program, shape, torch.bfloat16, "ccssss", backward=False)
    sources += capture(program, shape, torch.bfloat16, "ccssss", backward=True)
    sources += capture(tail, shape, torch.float32, "ccsssscc", backward=True, arriving="120")
    sources += capture(COMBINE, shape, torch.float16, "ccc", backward=False)
    spilled = {label: size for label, size in compiled(sources, tmp_path).items() if size}
    assert not spilled


def test_sources_are_the_same_for_the_same_call_and_differ_in_every_choice(
    capture: Callable[..., list[Source]],
) -> None:
    one, again = (capture(lif(), (4, 1024), backward=False)[0].text for _ in range(2))
    assert one == again
    others = [
        capture(lif(), (5, 1024), backward=False),
        capture(lif(), (4, 1024), torch.bfloat16, backward=False),
        capture(lif(), (4, 1024), torch.float32, "tsss", backward=False),
        capture(lif(), (4, 1024), state=True, backward=False),
        capture(lif(), (4, 1024), backward=True),
        capture(lif(), (17, 1024), backward=False),
    ]
    texts = {one, *(source.text for (source,) in others)}
    assert len(texts) == 1 + len(others)


def test_long_sequences_do_not_need_a_kernel_per_length(capture: Callable[..., list[Source]]) -> None:
    for backward in (False, True):
        texts = {capture(lif(), (steps, 1024), backward=backward)[0].text for steps in (17, 100, 1024, 1025)}
        assert len(texts) == 1
