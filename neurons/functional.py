"""The neurons as functions over all time steps: `spikes, state = lif(x, state=None, tau=2.0, ...)`.

Each is the one-step function of its file; parameters that are tensors get gradients.
"""

from spikeloom.neurons.alif import alif
from spikeloom.neurons.cuba import cuba_lif
from spikeloom.neurons.diet import diet
from spikeloom.neurons.eif import eif
from spikeloom.neurons.if_ import if_
from spikeloom.neurons.ilif import ilif
from spikeloom.neurons.izhikevich import izhikevich
from spikeloom.neurons.li import li
from spikeloom.neurons.lif import lif
from spikeloom.neurons.plif import plif
from spikeloom.neurons.qif import qif

__all__ = ["alif", "cuba_lif", "diet", "eif", "if_", "ilif", "izhikevich", "li", "lif", "plif", "qif"]
