"""Sums of inputs with whole-number delays, at the cost of synapses and spikes; for inference."""

from spikeloom.kernels.delays.op import FORMS, delayed_sum
from spikeloom.kernels.delays.tables import Tables

__all__ = ["FORMS", "Tables", "delayed_sum"]
