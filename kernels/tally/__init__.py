"""Exact counts of what an activation tensor makes a layer do: events, terms and levels, in one pass on any device."""

from spikeloom.kernels.tally.call import Tally
from spikeloom.kernels.tally.front import tally
from spikeloom.kernels.tally.table import BEYOND_ONE, NEGATIVE, NON_FINITE, OVERFLOW, SLOTS, Table

__all__ = ["BEYOND_ONE", "NEGATIVE", "NON_FINITE", "OVERFLOW", "SLOTS", "Table", "Tally", "tally"]
