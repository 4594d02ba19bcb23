"""Compile CUDA sources with NVRTC through CuPy and hand out kernels to launch; `kernels.cache` keeps the binaries.

CuPy's `RawModule` would flush subnormal numbers to zero, which the reference does not, so its compiler is called below
that level.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from spikeloom.kernels.cache import cached

OPTIONS = ("--std=c++17", "--fmad=false")
"""No contraction into fused multiply-adds: the kernels round as the reference does."""


class CudaBuildError(RuntimeError):
    """CuPy is missing, does not fit the driver, or NVRTC refused a kernel."""


def wheel() -> str:
    """The CuPy wheel that fits torch's CUDA version."""
    return f"cupy-cuda{(torch.version.cuda or '13').split('.')[0]}x"


@lru_cache(maxsize=1)
def cupy() -> Any:
    """The CuPy module.

    Raises:
        CudaBuildError: it is not installed; the message says which wheel to install.
    """
    try:
        import cupy as module
    except ImportError as error:
        raise CudaBuildError(f"CuPy cannot be imported ({error}); install it with `pip install {wheel()}`") from error
    return module


@lru_cache(maxsize=4096)
def function(source: str, name: str, device: int) -> tuple[int, object]:
    """Handle of a compiled kernel on a device, and the object that keeps it loaded.

    Raises:
        CudaBuildError: NVRTC failed, or its CUDA version does not fit the driver.
    """
    module = cupy()
    try:
        with module.cuda.Device(device) as current:
            identity = "\0".join([source, *OPTIONS, current.compute_capability, str(module.cuda.nvrtc.getVersion())])
            binary = cached("cuda", ".cubin", identity, lambda file: _compile(source, file))
            loaded = module.cuda.function.Module()
            loaded.load(binary.read_bytes())
            kernel = loaded.get_function(name)
            return int(kernel.ptr), (loaded, kernel)
    except Exception as error:
        built = module.cuda.runtime.runtimeGetVersion()
        driver = module.cuda.runtime.driverGetVersion()
        raise CudaBuildError(
            f"CuPy could not build a kernel: {error}\nCuPy's CUDA runtime is {built // 1000}.{built % 1000 // 10}, the "
            f"driver supports {driver // 1000}.{driver % 1000 // 10}, torch was built for {torch.version.cuda}; the "
            f"matching wheel is `pip install {wheel()}`"
        ) from error


def _compile(source: str, binary: Path) -> None:
    code, _ = cupy().cuda.compiler.compile_using_nvrtc(source, OPTIONS, None, "loom.cu")
    binary.write_bytes(code)


def probe() -> tuple[bool, str, str]:
    """Can CUDA kernels be compiled and launched here? `(works, detail, what to do)`."""
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        return False, f"no CUDA device is visible to torch ({built})", "use a machine with an NVIDIA GPU and driver"
    try:
        version = cupy().__version__
        function('extern "C" __global__ void loom_probe() {}', "loom_probe", torch.cuda.current_device())
    except CudaBuildError as error:
        return False, str(error), f"pip install {wheel()}"
    name = torch.cuda.get_device_name()
    return True, f"{name}, CuPy {version}, torch CUDA {torch.version.cuda}", ""
