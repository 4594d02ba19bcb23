"""Synaptic operations of a run, counted exactly, and what they would cost in joules.

with spikeloom.energy.count(net) as run:
    net(frames)                          # [T, B, ...], as many batches as there are
print(run.report())

docs/energy.md says what every number means, with an example to check by hand.
"""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.energy", name=__name__)

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spikeloom.energy.baselines import Row, compare
from spikeloom.energy.counts import Counts
from spikeloom.energy.exits import early_exit, exit_energy, sweep
from spikeloom.energy.meter import register_op
from spikeloom.energy.model_file import load_models
from spikeloom.energy.models import EnergyModel, get_model, list_models, register_model, with_memory
from spikeloom.energy.prefix import curve, prefix_energy, what_if
from spikeloom.energy.pricing import Price, price
from spikeloom.energy.rules.neurons import NeuronFacts, register_neuron
from spikeloom.energy.rules.roles import register_delays
from spikeloom.energy.run import Run, UncountedError, count
from spikeloom.energy.stats import Interval, interval
from spikeloom.energy.store import StoreError, load, save
from spikeloom.energy.totals import Policy, Totals

if TYPE_CHECKING:
    from spikeloom.energy.diff import Diff, EnergyRegressionError, check
    from spikeloom.energy.plots import plot
    from spikeloom.energy.report import Report

__all__ = [
    "Counts",
    "Diff",
    "EnergyModel",
    "EnergyRegressionError",
    "Interval",
    "NeuronFacts",
    "Policy",
    "Price",
    "Report",
    "Row",
    "Run",
    "StoreError",
    "Totals",
    "UncountedError",
    "check",
    "compare",
    "count",
    "curve",
    "early_exit",
    "exit_energy",
    "get_model",
    "interval",
    "list_models",
    "load",
    "load_models",
    "plot",
    "prefix_energy",
    "price",
    "register_delays",
    "register_model",
    "register_neuron",
    "register_op",
    "save",
    "sweep",
    "what_if",
    "with_memory",
]

_LATER = {"Report": "report", "check": "diff", "Diff": "diff", "EnergyRegressionError": "diff", "plot": "plots"}
"""Names that people's output needs and counting does not: loaded at first use."""


def __getattr__(name: str) -> Any:
    """Load a name of `_LATER`."""
    if name in _LATER:
        return getattr(import_module(f"spikeloom.energy.{_LATER[name]}"), name)
    raise AttributeError(f"module 'spikeloom.energy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
