"""Neurons, one per file: the equation of one time step, its parameters, the module."""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.neurons", name=__name__)

from spikeloom.kernels import SURROGATES
from spikeloom.neurons.alif import ALIF
from spikeloom.neurons.cuba import CubaLIF
from spikeloom.neurons.diet import DIET
from spikeloom.neurons.eif import EIF
from spikeloom.neurons.if_ import IF
from spikeloom.neurons.ilif import ILIF
from spikeloom.neurons.izhikevich import Izhikevich
from spikeloom.neurons.li import LI
from spikeloom.neurons.lif import LIF
from spikeloom.neurons.module import AT_LEAST_ONE, POSITIVE, WHOLE, Limit, Neuron, NeuronStep, neuron
from spikeloom.neurons.plif import PLIF
from spikeloom.neurons.qif import QIF
from spikeloom.neurons.recurrent import Recurrent
from spikeloom.neurons.stream import Stream

__all__ = [
    "ALIF",
    "AT_LEAST_ONE",
    "DIET",
    "EIF",
    "IF",
    "ILIF",
    "LI",
    "LIF",
    "PLIF",
    "POSITIVE",
    "QIF",
    "SURROGATES",
    "WHOLE",
    "CubaLIF",
    "Izhikevich",
    "Limit",
    "Neuron",
    "NeuronStep",
    "Recurrent",
    "Stream",
    "neuron",
]
