"""Pooling for training: a byte per output is all that backward of the maximum keeps, and that of the mean nothing."""

from spikeloom.kernels.pool.avg_pool import average_pool, takes_average
from spikeloom.kernels.pool.max_pool import max_pool, takes

__all__ = ["average_pool", "max_pool", "takes", "takes_average"]
