"""WKV on a GPU, parallel over the tokens too."""

from spikeloom.kernels.wkv.chunked import takes, weighted_means

__all__ = ["takes", "weighted_means"]
