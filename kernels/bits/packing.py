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


def pack(x: Tensor, *, check: bool = False) -> Tensor:
    """Bits of a contiguous floating-point tensor of zeros and ones: uint8 `[ceil(n / 8)]`.

    Args:
        x: the spikes.
        check: look at the values, for which the host waits for the device. Unchecked, every value but 0 becomes a one.

    Raises:
        ValueError: x is not contiguous, or of another dtype; with `check`, it holds other values than 0 and 1.
    """
    if not x.is_contiguous() or x.dtype not in _ONES:
        raise ValueError(f"pack got a {x.dtype} tensor with strides {x.stride()}; expected contiguous floating point.")
    if check:
        check_spikes(x, "pack")
    bits = torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device=x.device)
    if x.device.type == "cuda" and x.numel() and x.data_ptr() % 16 == 0:
        _kernel("pack", x.dtype, x.device.index, bits.numel())((x.data_ptr(), bits.data_ptr(), x.numel()))
        return bits
    padded = torch.zeros(bits.numel() * 8, dtype=torch.uint8, device=x.device)
    padded[: x.numel()] = x.flatten() != 0
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=x.device)
    return (padded.view(-1, 8) * powers).sum(1, dtype=torch.uint8)


def check_spikes(x: Tensor, reader: str) -> None:
    """Raise unless all values of x are 0 or 1. The host waits for the device, so this is for tests and for debugging.

    Args:
        x: of any shape and real dtype.
        reader: what was given x, for the message.

    Raises:
        ValueError: with the number of elements that are no spikes (NaN is none), and one of them.
    """
    others = (x != 0) & (x != 1)
    found = int(others.sum())
    if found:
        raise ValueError(
            f"{reader} got an input of shape {list(x.shape)} in which {found} of {x.numel()} elements are no spikes, "
            f"such as {x[others][0].item():g}; expected 0 and 1 only, as a neuron gives them. For other inputs use the "
            "layer that keeps them as they are (Linear, Conv2d, spikes=False)."
        )


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
