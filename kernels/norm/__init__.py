"""BatchNorm fused in front of a neuron: statistics, normalisation, residual add and all time steps in two passes."""

from spikeloom.kernels.norm.finish import Running
from spikeloom.kernels.norm.front import norm_weave

__all__ = ["Running", "norm_weave"]
