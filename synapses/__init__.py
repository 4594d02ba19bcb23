"""Layers with weights that know the time axis."""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.synapses", name=__name__)

from spikeloom.synapses.conv_neuron import ConvNeuron
from spikeloom.synapses.dcls import Dcls1d, Dcls2d, Dcls2dK1d
from spikeloom.synapses.dcls_kernel import construct_1d, construct_2d, construct_3d
from spikeloom.synapses.delay_conv import DelayConv1d
from spikeloom.synapses.delay_conv2d import DelayConv2d
from spikeloom.synapses.depthwise import DepthwiseConv2d
from spikeloom.synapses.integer_delay_conv import IntegerDelayConv1d, integer_
from spikeloom.synapses.integer_delays import IntegerDelays
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
from spikeloom.synapses.projection import Projection
from spikeloom.synapses.spike_conv import SpikeConv2d
from spikeloom.synapses.spike_linear import SpikeLinear
from spikeloom.synapses.time_axis import channels_last, fold, over_time, unfold

__all__ = [
    "AdaptiveAvgPool2d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "ConvNeuron",
    "ConvTranspose2d",
    "Dcls1d",
    "Dcls2d",
    "Dcls2dK1d",
    "DelayConv1d",
    "DelayConv2d",
    "DepthwiseConv2d",
    "Dropout",
    "Flatten",
    "IntegerDelayConv1d",
    "IntegerDelays",
    "Linear",
    "MaxPool2d",
    "NormNeuron",
    "Projection",
    "SpikeConv2d",
    "SpikeLinear",
    "channels_last",
    "construct_1d",
    "construct_2d",
    "construct_3d",
    "fold",
    "integer_",
    "over_time",
    "unfold",
]
