"""Spike tensors as bits."""

from spikeloom.kernels.bits.packing import pack, unpack

__all__ = ["pack", "unpack"]
