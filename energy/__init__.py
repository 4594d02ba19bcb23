"""Synaptic operations of a run, counted exactly, and what they would cost in joules.

with spikeloom.energy.count(net) as run:
    net(frames)                          # [T, B, ...], as many batches as there are
print(run.report())
"""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.energy", name=__name__)

from spikeloom.energy.counts import Counts
from spikeloom.energy.meter import register_op
from spikeloom.energy.rules.neurons import NeuronFacts, register_neuron
from spikeloom.energy.rules.roles import register_delays
from spikeloom.energy.run import Run, UncountedError, count
from spikeloom.energy.totals import Policy, Totals

__all__ = [
    "Counts",
    "NeuronFacts",
    "Policy",
    "Run",
    "Totals",
    "UncountedError",
    "count",
    "register_delays",
    "register_neuron",
    "register_op",
]
