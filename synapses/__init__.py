"""Layers with weights that know the time axis."""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.synapses", name=__name__)

from spikeloom.synapses.fold import fold, over_time, unfold
from spikeloom.synapses.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm1d,
    BatchNorm2d,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    Linear,
    MaxPool2d,
)
from spikeloom.synapses.norm_neuron import NormNeuron

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "Flatten",
    "Linear",
    "MaxPool2d",
    "NormNeuron",
    "fold",
    "over_time",
    "unfold",
]
