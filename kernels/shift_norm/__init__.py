"""Sum, layer normalisation and token shift on a GPU in one pass."""

from spikeloom.kernels.shift_norm.fused import Added, shift_norm, takes

__all__ = ["Added", "shift_norm", "takes"]
