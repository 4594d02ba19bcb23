"""DCLS kernels on a GPU (construct.cu): a launch forward, a launch backward, nothing kept in between.

Of a layer of 512 x 512 channels with 31 taps and 2 elements per pair, forward reads 6 MB and writes 33 (float32; half
types: 17) and takes 3.3e7 exponentials and as many divisions; backward reads 39 and writes 4, with 1.6e7 exponentials.
The formulas in plain PyTorch go through tensors of 65 MB, about 1 GB each way, and keep 260 MB. The convolution behind
is 5e11 FLOP.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from spikeloom.kernels.cuda import build
from spikeloom.kernels.cuda.launch import Kernel
from spikeloom.kernels.dcls.reference import VERSIONS
from spikeloom.kernels.names import STORAGE

_LAYOUT = "8Qq2i"
_THREADS = 128


def construct(weight: Tensor, P: Tensor, SIG: Tensor | None, size: int, version: str, dtype: torch.dtype) -> Tensor:
    """The kernel `[O, K, I]` of float32 elements, in `dtype`: float32 or, rounded once, a half type."""
    outputs, inputs, _ = weight.shape
    kernel = torch.empty((outputs, size, inputs), dtype=dtype, device=weight.device)
    _launch("dcls_construct", kernel, (weight, P, SIG), version, {"kernel": kernel})
    return kernel


def gradients(
    grad: Tensor, weight: Tensor, P: Tensor, SIG: Tensor | None, version: str, wanted: str
) -> list[Tensor | None]:
    """Gradients of weight, P and SIG from that of the kernel, `[O, K, I]`; None where `wanted` has a 0."""
    grad = grad.contiguous()
    asked = zip((weight, P, SIG), wanted, strict=True)
    found = [None if t is None or w == "0" else t.new_empty(t.shape) for t, w in asked]
    names = ("grad_weight", "grad_position", "grad_width")
    given = {"grad": grad} | {name: t for name, t in zip(names, found, strict=True) if t is not None}
    _launch("dcls_gradients", grad, (weight, P, SIG), version, given)
    return found


def _launch(
    name: str, kernel: Tensor, elements: tuple[Tensor, Tensor, Tensor | None], version: str, given: dict[str, Tensor]
) -> None:
    """Launch for a kernel (or its gradient) `[O, K, I]`; tensors that are not given are null."""
    held = [None if t is None else t.contiguous() for t in elements]
    fields = ("kernel", "grad", "grad_weight", "grad_position", "grad_width")
    outputs, size, inputs = kernel.shape
    count = elements[0].shape[2]
    pairs = outputs * inputs
    threads = pairs * (1 if name == "dcls_construct" else count)
    if threads == 0 or size == 0:
        return
    addresses = [0 if t is None else t.data_ptr() for t in (*held, *(given.get(field) for field in fields))]
    start = _kernel(name, kernel.dtype, version, count, kernel.device.index, -(-threads // _THREADS))
    start((*addresses, pairs, inputs, size))


@lru_cache(maxsize=1024)
def _kernel(name: str, dtype: torch.dtype, version: str, count: int, device: int, blocks: int) -> Kernel:
    return Kernel(source(dtype, version, count), name, device, blocks, _THREADS, _LAYOUT)


@lru_cache(maxsize=256)
def source(dtype: torch.dtype, version: str, count: int) -> str:
    """CUDA source of both kernels: elements in float32, the kernel and its gradient in `dtype`."""
    real, io = STORAGE[str(dtype).removeprefix("torch.")]
    prelude = (Path(build.__file__).parent / "prelude.cuh").read_text()
    defined = f"#define VERSION {VERSIONS.index(version)}\n#define COUNT {count}\n"
    body = Path(__file__).with_name("construct.cu").read_text()
    return f"typedef {real} real; typedef unsigned index_t;\n{prelude}\ntypedef {io} io;\n{defined}{body}"
