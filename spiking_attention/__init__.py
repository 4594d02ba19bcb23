"""Token mixers that take and give spikes, one per file, and the channel mixers of their blocks."""

if "." not in __name__:
    raise ModuleNotFoundError("import this package as spikeloom.spiking_attention", name=__name__)

from spikeloom.spiking_attention.mlp import SpikingMLP
from spikeloom.spiking_attention.ssa import SSA

__all__ = ["SSA", "SpikingMLP"]
