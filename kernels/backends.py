"""Which backend runs: `reference`, `cpu` (compiled C++), `cuda` (compiled through CuPy), or `auto`.

A named backend runs or raises. `auto` takes the compiled kernel of the tensor's device; where that cannot work it takes
the reference and says so once.
"""

from __future__ import annotations

import warnings
from difflib import get_close_matches

import torch

BACKENDS = ("auto", "reference", "cpu", "cuda")
_chosen: dict[tuple[str, str], str] = {}


class BackendError(RuntimeError):
    """The backend that was asked for cannot run here."""


def probe(name: str) -> tuple[bool, str, str]:
    """Does a backend work here? `(works, detail or why not, what to run to mend it)`."""
    if name == "reference":
        return True, f"plain PyTorch {torch.__version__}, any device", ""
    if name == "cpu":
        from spikeloom.kernels.cpu import build as cpu_build

        return cpu_build.probe()
    if name == "cuda":
        from spikeloom.kernels.cuda import build as cuda_build

        return cuda_build.probe()
    raise ValueError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")


@torch.compiler.assume_constant_result
def choose(backend: str, device: str) -> str:
    """The backend that will run for tensors of a device type, decided once per process.

    Raises:
        ValueError: unknown backend, or one that does not fit the device.
        BackendError: the named backend cannot run here; the message says what to install.
    """
    key = (backend, device)
    if key not in _chosen:
        _chosen[key] = _decide(backend, device)
    return _chosen[key]


def _decide(backend: str, device: str) -> str:
    if backend not in BACKENDS:
        near = get_close_matches(backend, BACKENDS, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown backend {backend!r}{hint}; known: {', '.join(BACKENDS)}")
    if backend == "reference":
        return backend
    if backend != "auto":
        if backend != device:
            raise ValueError(
                f"backend={backend!r} needs tensors on a {backend} device, but the input is on {device}; "
                f"move it with x.to({backend!r}) or pass backend='auto'"
            )
        works, why, fix = probe(backend)
        if not works:
            raise BackendError(f"backend={backend!r} cannot run: {why}. To mend it: {fix}; or pass backend='reference'")
        return backend
    if device == "meta":
        return "reference"  # shapes only
    if device not in ("cpu", "cuda"):
        _tell(f"there are no kernels for {device} devices", device)
        return "reference"
    works, why, fix = probe(device)
    if not works:
        _tell(f"{why}. To mend it: {fix}", device)
    return device if works else "reference"


def _tell(why: str, device: str) -> None:
    """Warn, once per device type, that `auto` falls back."""
    message = f"spikeloom runs neurons in plain PyTorch (slow) on {device}: {why}. `spikeloom doctor` tells more"
    warnings.warn(message, RuntimeWarning, stacklevel=5)
