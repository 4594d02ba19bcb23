"""The selective scan on a GPU: chunks of tokens side by side, and channels, four threads each, eight in backward.

As many chunks as fill the GPU; one where channels alone do. Forward is then one launch, backward another. Several
chunks need two more each way: what every chunk adds to a state (to an adjoint), and these joined into what stands in
front of (behind) every chunk. Backward reads the state in front of every tile of 32 tokens, which forward kept, and
computes the states inside anew.

Gradients of B and C are added over the channels of a warp by shuffles, over a block's warps in shared memory, over
blocks by torch: no atomics, so results are the same in every run on the same GPU. Arithmetic is float32 with the GPU's
own exponential and reciprocal, errors of about 1e-7.
"""

from __future__ import annotations

from functools import lru_cache
from math import lcm
from pathlib import Path

import torch
from torch import Tensor

from spikeloom.kernels.cuda import build
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.names import STORAGE
from spikeloom.kernels.scan.given import Gradients, Scan

MOST_STATES = 16
"""States per channel that the four threads hold; more are computed in slices."""
TILE = 32
_CHANNELS, _THREADS = 32, 128
_RESIDENT = 4
"""Blocks per multiprocessor of the forward kernels, which bounds their registers; two of backward."""
_FEWEST = 4
"""Tiles of the shortest chunk."""
_POINTERS = (
    *("u", "delta", "z", "grad", "B", "C", "A", "fixed_B", "fixed_C", "D", "bias", "start", "grad_last", "y"),
    *("grad_u", "grad_delta", "grad_z", "last", "grad_start", "kept", "borders", "totals", "grad_B", "grad_C"),
    *("grad_A", "grad_D", "grad_bias"),
)
_LAYOUT = f"{len(_POINTERS)}Q4q10i"


def forward(scan: Scan, keep: bool) -> list[Tensor]:
    """y, the last state, and the states in front of every tile if `keep`."""
    call = _Call(scan)
    y, last = scan.sequence(), scan.states()
    kept = call.real(kept_shape(scan) if keep else (0,))
    into: dict[str, Tensor | None] = {"y": y, "last": last, "kept": kept if keep else None}
    into |= call.borders()
    if call.chunks > 1:
        call.launch("scan_summaries", call.chunks - 1, into)
        call.join("scan_join", into)
    call.launch("scan_forward", call.chunks, into)
    return [y, last, kept]


def backward(scan: Scan, grad: Tensor | None, grad_last: Tensor | None, kept: Tensor, wanted: str) -> list[Tensor]:
    """The gradients of the inputs marked "1" in `wanted`, in the order of `given.INPUTS`."""
    if kept.shape != kept_shape(scan):
        raise ValueError(
            f"the backward pass of selective_scan got states {list(kept.shape)}; expected {list(kept_shape(scan))}: "
            "call the operator with keep=True where gradients are wanted"
        )
    call, found = _Call(scan), Gradients(scan, wanted)
    parts, d, n = call.chunks * scan.batch, scan.channels, scan.d_state
    into: dict[str, Tensor | None] = {"kept": kept, "grad_last": None if grad_last is None else grad_last.contiguous()}
    into["grad"] = None if grad is None else grad.contiguous()
    for name in ("u", "delta", "z"):
        into[f"grad_{name}"] = found.keep(name, scan.sequence)
    into["grad_A"] = found.keep("A", lambda: call.real((parts, d, n)))
    into["grad_start"] = found.keep("initial_state", scan.states)
    for name, matrix in (("B", scan.B), ("C", scan.C)):
        ways = call.segments // scan.groups * call.blocks
        shape = (ways, *matrix.shape) if matrix.ndim == 4 else (parts, d, n)
        into[f"grad_{name}"] = found.keep(name, lambda shape=shape: call.real(shape))  # type: ignore[misc]
    for name, field in (("D", "D"), ("delta_bias", "bias")):
        into[f"grad_{field}"] = found.keep(name, lambda: call.real((parts, d)))
    into |= call.borders()
    if call.chunks > 1:
        call.launch("scan_adjoints", call.chunks - 1, into)
        call.join("scan_join_back", into)
    call.launch("scan_gradients", call.chunks, into)
    return found.finished(lambda t: t)


def kept_shape(scan: Scan) -> tuple[int, ...]:
    """Of what forward keeps."""
    return (-(-scan.length // TILE), scan.batch, scan.channels, 4 * _held(scan.d_state))


class _Call:
    """The tensors of a call as the kernels read them, and how it is cut."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        self.u = scan.u.contiguous()
        self.segments = lcm(scan.groups, 2) if 0 < scan.reversed_channels < scan.channels else scan.groups
        self.blocks = -(-(scan.channels // self.segments) // _CHANNELS)
        self.resident = scan.batch * self.segments * self.blocks
        self.length, self.chunks = cut(scan.length, self.resident, _processors(scan.u.device))
        moving = [t for t in (scan.B, scan.C) if t.ndim == 4]
        plain = all(t.dtype == scan.u.dtype for t in moving)
        self.matrix = scan.u.dtype if plain else scan.real
        self.given: dict[str, Tensor | None] = {
            **{"u": self.u, "delta": scan.delta.contiguous(), "z": None if scan.z is None else scan.z.contiguous()},
            **{"A": scan.A.contiguous(), "D": scan.D, "bias": scan.bias, "start": scan.start},
        }
        for name in ("D", "bias", "start"):
            tensor = self.given[name]
            self.given[name] = None if tensor is None else tensor.contiguous()
        for name, matrix in (("B", scan.B), ("C", scan.C)):
            if matrix.ndim == 4:
                self.given[name] = _gapless(matrix.to(self.matrix))
            else:
                self.given[f"fixed_{name}"] = matrix.to(scan.real).contiguous()

    def real(self, shape: tuple[int, ...]) -> Tensor:
        """Uninitialised, of the type of the arithmetic."""
        return self.scan.u.new_empty(shape, dtype=self.scan.real)

    def borders(self) -> dict[str, Tensor | None]:
        """What chunks tell each other; nothing if there is but one."""
        if self.chunks == 1:
            return {}
        rows = (self.chunks, self.scan.batch, self.scan.channels)
        return {"borders": self.real((*rows, 4 * _held(self.scan.d_state))), "totals": self.real(rows)}

    def launch(self, name: str, chunks: int, into: dict[str, Tensor | None]) -> None:
        """A block per chunk, sample and 32 channels."""
        self._start(name, chunks * self.resident, into)

    def join(self, name: str, into: dict[str, Tensor | None]) -> None:
        """A thread per state."""
        lanes = self.scan.batch * self.scan.channels * 4 * _held(self.scan.d_state)
        self._start(name, -(-lanes // _THREADS), into)

    def _start(self, name: str, blocks: int, into: dict[str, Tensor | None]) -> None:
        scan, tensors = self.scan, self.given | into
        addresses = [0 if (t := tensors.get(key)) is None else t.data_ptr() for key in _POINTERS]
        strides = [n for key in ("B", "C") for n in (_strides(tensors.get(key)))]
        sizes = (scan.batch, scan.channels, scan.length, scan.d_state, scan.groups, self.segments, self.blocks)
        kind = (scan.u.dtype, self.matrix, _held(scan.d_state), scan.B.ndim == 4, scan.C.ndim == 4)
        kernel = _kernel(name, (*kind, scan.z is not None, scan.softplus), scan.u.device.index, blocks)
        kernel([*addresses, *strides, *sizes, self.length, self.chunks, scan.reversed_channels])


def cut(L: int, blocks: int, processors: int) -> tuple[int, int]:
    """Tokens of a chunk, a multiple of `TILE`, and number of chunks.

    One chunk if the blocks of all channels occupy the GPU's multiprocessors; else as many as give each two blocks.
    """
    tiles = -(-L // TILE)
    wanted = 1 if 4 * blocks >= 3 * processors else -(-2 * processors // blocks)
    length = max(-(-tiles // wanted), min(tiles, _FEWEST))
    return length * TILE, -(-tiles // length)


def _held(states: int) -> int:
    """States of a thread: 1, 2 or 4."""
    return 1 if states <= 4 else 2 if states <= 8 else 4


def _gapless(matrix: Tensor) -> Tensor:
    """`[b, G, n, L]` whose last two axes have no gaps: slices of a wider tensor are read where they lie."""
    L = matrix.shape[3]
    dense = (L == 1 or matrix.stride(3) == 1) and (matrix.shape[2] == 1 or matrix.stride(2) == L)
    return matrix if dense else matrix.contiguous()


def _strides(matrix: Tensor | None) -> tuple[int, int]:
    return (0, 0) if matrix is None else (matrix.stride(0), matrix.stride(1))


@lru_cache(maxsize=64)
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


Kind = tuple[torch.dtype, torch.dtype, int, bool, bool, bool, bool]


@lru_cache(maxsize=1024)
def _kernel(name: str, kind: Kind, device: int, blocks: int) -> Kernel:
    ways = 8 if name == "scan_gradients" and kind[2] > 1 else 4  # threads of a channel: WAYS in gradients.cu
    return Kernel(source(kind), name, device, blocks, ways * _CHANNELS, _LAYOUT)


@lru_cache(maxsize=64)
def source(kind: Kind) -> str:
    """CUDA source: dtypes of u and of B and C, states of a thread, do B and C move, is there a gate, a softplus."""
    dtype, matrix, held, *flags = kind
    real, io = STORAGE[str(dtype).removeprefix("torch.")]
    mat = STORAGE[str(matrix).removeprefix("torch.")][1]
    prelude = (Path(build.__file__).parent / "prelude.cuh").read_text()
    values = {"S": held, "RESIDENT": _RESIDENT}
    values |= dict(zip(("B_MOVES", "C_MOVES", "GATED", "SOFTPLUS"), map(int, flags), strict=True))
    defined = "".join(f"#define {name} {value}\n" for name, value in values.items())
    body = "".join(Path(__file__).with_name(name).read_text() for name in ("scan.cu", "adjoints.cu", "gradients.cu"))
    types = f"typedef {io} io; typedef {mat} mat;\n"
    return f"typedef {real} real; typedef unsigned index_t;\n{prelude}\n{types}{defined}{body}"
