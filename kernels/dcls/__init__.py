"""Convolution kernels of elements at learned positions (DCLS), built in one pass."""

from spikeloom.kernels.dcls.op import construct, serves

__all__ = ["construct", "serves"]
