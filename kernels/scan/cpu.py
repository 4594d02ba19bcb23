"""The CPU kernel of the selective scan (scan.cpp): one library per type and number of states, compiled at first use.

Forward keeps nothing for backward, which runs a channel's recurrence again. Gradients of B and C are sums over the
channels of a block, blocks are added afterwards in a fixed order: the same in every run and for any number of threads.
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from spikeloom.kernels.cpu import build
from spikeloom.kernels.cpu import run as weave
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.scan.given import Gradients, Scan

_POINTERS = (
    *("u", "delta", "z", "grad", "A", "B", "C", "D", "bias", "start", "grad_last", "y", "grad_u", "grad_delta"),
    *("grad_z", "last", "grad_start", "grad_A", "grad_B", "grad_C", "grad_D", "grad_bias"),
)
_ARGUMENTS = struct.Struct(f"{len(_POINTERS)}Q11q")
_TASKS = 16
"""Tasks at least, as far as there are channels: what 16 threads can share."""


def forward(scan: Scan) -> list[Tensor]:
    """y, the last state, and nothing to keep."""
    y, last = scan.sequence(), scan.states()
    _run("scan_forward", scan, {"y": y, "last": last})
    return [y, last, scan.u.new_empty(0, dtype=scan.real)]


def backward(scan: Scan, grad: Tensor | None, grad_last: Tensor | None, wanted: str) -> list[Tensor]:
    """The gradients of the inputs marked "1" in `wanted`, in the order of `given.INPUTS`."""
    found = Gradients(scan, wanted)
    b, d, n, real = scan.batch, scan.channels, scan.d_state, scan.real
    blocks = _blocks(scan)[0]
    into = {"grad": grad, "grad_last": grad_last}
    for name in ("u", "delta", "z"):
        into[f"grad_{name}"] = found.keep(name, scan.sequence)
    into["grad_A"] = found.keep("A", scan.states)
    into["grad_start"] = found.keep("initial_state", scan.states)
    for name, matrix in (("B", scan.B), ("C", scan.C)):
        parts = (blocks, b, scan.groups, scan.length, n) if matrix.ndim == 4 else (b, d, n)
        into[f"grad_{name}"] = found.keep(name, lambda parts=parts: scan.u.new_zeros(parts, dtype=real))  # type: ignore[misc]
    for name, field in (("D", "D"), ("delta_bias", "bias")):
        into[f"grad_{field}"] = found.keep(name, lambda: scan.u.new_empty((b, d), dtype=real))
    _run("scan_backward", scan, into)
    return found.finished(lambda t: t.transpose(2, 3))


def _blocks(scan: Scan) -> tuple[int, int]:
    """Blocks per sample and group, and channels of a block."""
    size = scan.channels // scan.groups
    block = max(1, size // -(-_TASKS // (scan.batch * scan.groups)))
    return -(-size // block), block


def _run(name: str, scan: Scan, into: dict[str, Tensor | None]) -> None:
    B, C = (scan.rows(t, lambda m: m.transpose(2, 3)) for t in (scan.B, scan.C))
    given: dict[str, Tensor | None] = {
        **{"u": scan.u, "delta": scan.delta, "z": scan.z, "A": scan.A, "B": B, "C": C},
        **{"D": scan.D, "bias": scan.bias, "start": scan.start},
    }
    tensors = given | into
    held = {key: None if t is None else t.contiguous() for key, t in tensors.items()}  # results are so already
    addresses = [0 if (t := held.get(key)) is None else t.data_ptr() for key in _POINTERS]
    sizes = (scan.batch, scan.channels, scan.length, scan.groups, *_blocks(scan), int(scan.B.ndim == 4))
    threads = 1 if weave._forked else torch.get_num_threads()
    arguments = _ARGUMENTS.pack(
        *addresses, *sizes, int(scan.C.ndim == 4), int(scan.softplus), scan.reversed_channels, threads
    )
    getattr(_library(scan.u.dtype, scan.d_state), name)(arguments)


@lru_cache(maxsize=32)
def _library(dtype: torch.dtype, states: int) -> ctypes.CDLL:
    return build.load(source(dtype, states))


def source(dtype: torch.dtype, states: int) -> str:
    """C++ translation unit with `scan_forward` and `scan_backward`."""
    real, io = STORAGE[str(dtype).removeprefix("torch.")]
    prelude = (Path(build.__file__).parent / "prelude.h").read_text()
    body = Path(__file__).with_name("scan.cpp").read_text()
    return f"typedef {real} real;\n{prelude}\ntypedef {io} io;\nenum {{ N = {states} }};\n{body}"
