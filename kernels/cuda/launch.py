"""Launch a compiled kernel that takes one struct by value: pack the fields, hand the driver a pointer."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from typing import Any

import torch

from spikeloom.kernels.cuda import build


class _Slot(threading.local):
    """A thread's argument buffer: the driver copies it during the launch call."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(4096)
        self.arguments = (ctypes.c_void_p * 1)(ctypes.addressof(self.buffer))
        self.address = ctypes.addressof(self.arguments)


_slot = _Slot()


class Kernel:
    """A compiled kernel on one device with its launch shape. `layout`: the argument's fields in letters of `struct`."""

    __slots__ = ("_blocks", "_device", "_handle", "_keep", "_start", "_struct", "_threads")

    def __init__(self, source: str, name: str, device: int, blocks: int, threads: int, layout: str) -> None:
        self._handle, self._keep = build.function(source, name, device)
        self._device = device
        self._blocks = blocks
        self._threads = threads
        self._struct = struct.Struct(layout)
        self._start = build.cupy().cuda.driver.launchKernel

    def __call__(self, values: Sequence[Any]) -> None:
        """Launch on torch's current stream of the device."""
        slot, device = _slot, self._device
        self._struct.pack_into(slot.buffer, 0, *values)
        if torch._C._cuda_getDevice() == device:
            self._start(
                self._handle,
                self._blocks,
                1,
                1,
                self._threads,
                1,
                1,
                0,
                torch._C._cuda_getCurrentRawStream(device),
                slot.address,
                0,
            )
        else:
            with torch.cuda.device(device):
                self._start(
                    self._handle,
                    self._blocks,
                    1,
                    1,
                    self._threads,
                    1,
                    1,
                    0,
                    torch._C._cuda_getCurrentRawStream(device),
                    slot.address,
                    0,
                )
