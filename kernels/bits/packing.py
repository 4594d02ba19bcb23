"""One bit per spike: what a backward pass needs of a spike tensor, in a sixteenth of bfloat16's memory, exactly.

Element i in memory order is bit i % 8 of byte i // 8. On a GPU a kernel of our own (bits.cu) reads and writes whole
16-byte words; elsewhere torch's operators do the same.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from spikeloom.kernels.cuda.launch import Kernel

_WORDS = {2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}
_ONES = {
    torch.float32: "0x3f800000u",
    torch.float64: "0x3ff0000000000000ull",
    torch.bfloat16: "0x3f80u",
    torch.float16: "0x3c00u",
}
_THREADS = 256


def pack(x: Tensor) -> Tensor:
    """Bits of a contiguous floating-point tensor of zeros and ones: uint8 `[ceil(n / 8)]`.

    That the values are zeros and ones is not checked here (it would wait for the device): every value but 0 becomes a
    one.

    Raises:
        ValueError: x is not contiguous, or of another dtype.
    """
    if not x.is_contiguous() or x.dtype not in _ONES:
        raise ValueError(f"pack got a {x.dtype} tensor with strides {x.stride()}; expected contiguous floating point.")
    bits = torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device=x.device)
    if x.device.type == "cuda" and x.numel() and x.data_ptr() % 16 == 0:
        _kernel("pack", x.dtype, x.device.index, bits.numel())((x.data_ptr(), bits.data_ptr(), x.numel()))
        return bits
    padded = torch.zeros(bits.numel() * 8, dtype=torch.uint8, device=x.device)
    padded[: x.numel()] = x.flatten() != 0
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=x.device)
    return (padded.view(-1, 8) * powers).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Inverse of `pack`: a contiguous tensor of zeros and ones."""
    x = torch.empty(shape, dtype=dtype, device=bits.device)
    if bits.device.type == "cuda" and x.numel():
        _kernel("unpack", dtype, bits.device.index, bits.numel())((x.data_ptr(), bits.data_ptr(), x.numel()))
        return x
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> places) & 1).flatten()[: x.numel()].view(shape).to(dtype)


def source(dtype: torch.dtype) -> str:
    """CUDA source of `pack` and `unpack` for elements of a dtype."""
    size = dtype.itemsize
    defined = f"#define WORD {_WORDS[size]}\n#define ONE {_ONES[dtype]}\n#define LOADS {size // 2}\n"
    return defined + Path(__file__).with_name("bits.cu").read_text()


@lru_cache(maxsize=1024)
def _kernel(name: str, dtype: torch.dtype, device: int, count: int) -> Kernel:
    """The kernel with a thread per byte."""
    return Kernel(source(dtype), name, device, -(-count // _THREADS), _THREADS, "2Qq")
