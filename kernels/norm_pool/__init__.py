"""BatchNorm and the max pooling behind it in one pass: the normalised map is never written."""

from spikeloom.kernels.norm_pool.fused import evaluated, takes, trained

__all__ = ["evaluated", "takes", "trained"]
