"""What was counted: a spiking network, or an ANN, which no sentence may call spiking."""

from __future__ import annotations

from dataclasses import dataclass

from spikeloom.energy.counts import Counts, NeuronCount


@dataclass(frozen=True)
class Subject:
    """Words for the network and for what it is set against.

    ann: nothing in it spikes. own, other: short names of the two, as in the head of a column.
    """

    ann: bool
    own: str
    other: str

    @property
    def ratio(self) -> str:
        """`SNN / ANN`."""
        return f"{self.own} / {self.other}"


SNN = Subject(False, "SNN", "ANN")
ANN = Subject(True, "zeros skipped", "dense")


def subject(counts: Counts) -> Subject:
    """`ANN` for one step in which no spiking neuron ran and no layer behind the first got spikes, else `SNN`.

    The second condition is for neurons written by hand, which the counter does not know as such.
    """
    spiking = any(neuron.spiking for neuron in counts.of(NeuronCount))
    spikes = any(layer.kind not in ("float", "zero") for layer in counts.layers[1:])
    return SNN if counts.T > 1 or spiking or spikes else ANN
