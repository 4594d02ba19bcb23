"""Max pooling for training: a byte per output is all that backward keeps."""

from spikeloom.kernels.pool.max_pool import max_pool, takes

__all__ = ["max_pool", "takes"]
