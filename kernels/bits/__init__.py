"""Spike tensors as bits."""

from spikeloom.kernels.bits.packing import check_spikes, pack, unpack

__all__ = ["check_spikes", "pack", "unpack"]
