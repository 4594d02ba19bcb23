"""CUDA sources whose threads meet in warps and blocks, run on the CPU in place of `launch.Kernel`."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spikeloom_tests.kernels.test_wkv_kernel import INSTRUCTIONS

from spikeloom.kernels.cpu import build

NVCC = shutil.which("nvcc")
HERE = Path(__file__).parent
SHIM = "".join((HERE / name).read_text() for name in ("cuda_on_cpu.h", "cuda_warps_on_cpu.h"))
DRIVER = """
static void run_NAME(const void* a) { NAME(*static_cast<const Arguments*>(a)); }
extern "C" void start_NAME(const void* a, unsigned b, unsigned t) { every_warp(run_NAME, a, b, t); }
"""


class OnCpu:
    """Stands in for `launch.Kernel` of a source with several kernels; `kernels` are their names."""

    kernels: tuple[str, ...] = ()

    def __init__(self, source: str, name: str, device: Any, blocks: int, threads: int, layout: str) -> None:
        for asm, plain in INSTRUCTIONS.items():
            assert source.count(asm) == 1
            source = source.replace(asm, plain)
        text = SHIM + source + "".join(DRIVER.replace("NAME", kernel) for kernel in self.kernels)
        self.start = build.load(text)[f"start_{name}"]
        self.grid, self.struct = (blocks, threads), struct.Struct(layout)

    def __call__(self, values: Sequence[Any]) -> None:
        self.start(self.struct.pack(*values), *map(ctypes.c_uint, self.grid))


def compiled(source: str, folder: Path) -> str:
    """What ptxas says of a source that nvcc compiles for sm_90."""
    code = folder / "code.cu"
    code.write_text(source)
    command = [str(NVCC), "-arch=sm_90", "--fmad=false", "-std=c++17", "-cubin", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, str(code), "-o", str(folder / "code.cubin")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr
