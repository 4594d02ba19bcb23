"""The words of `Totals.memory_words` priced by the size of the memory they lie in.

A machine that accumulates in place, with memories per layer: its weights and biases; one accumulator per output element
of a step; the states of its neurons. Events wait in a short queue (`Memory.fifo_words`). Memories are sized for one
sample.
"""

from __future__ import annotations

from collections.abc import Iterator

from spikeloom.energy.counts import Counts, Layer, NeuronCount
from spikeloom.energy.memory import Memory
from spikeloom.energy.parts import Part, every_step, part
from spikeloom.energy.totals import Policy, folded_bias, layer_words


def parameter_words(layer: Layer, bias_adds: int, memory: Memory) -> int:
    """Weights and biases of a layer; a folded normalisation gives a layer without bias one per output channel.

    Raises:
        ValueError: the counts do not say how many weights the layer has, and the price depends on it.
    """
    if not layer.is_param:
        return 0
    shape = layer.geometry
    if not shape.weights and memory.kind == "sram" and memory.size_bytes is None:
        raise ValueError(
            f"{layer.name!r} has no number of weights in its geometry, so the size of its memory is unknown. Set "
            'geometry.weights, or price with one size for all memories: get_model("memory45", size_bytes=32768).'
        )
    return shape.weights + (shape.biases or (shape.out_channels if bias_adds else 0))


def memory_parts(counts: Counts, memory: Memory, policy: Policy) -> Iterator[Part]:
    """Reads and writes of all layers and neurons, by what is stored."""
    bias = folded_bias(counts, policy)
    queue = memory.word_pj(memory.fifo_words)
    for layer in counts.layers:
        words = layer_words(layer, bias[layer.name], policy, counts.T)
        parameter = memory.word_pj(parameter_words(layer, bias[layer.name], memory))
        accumulator = memory.word_pj(layer.out_numel)
        accesses = words["accumulator_reads"] + words["accumulator_writes"]
        known = layer.assigned
        if layer.is_param:
            yield Part(layer.name, "memory_weights", parameter * words["weight_reads"], known)
        yield Part(layer.name, "memory_accumulators", accumulator * accesses, known)
        yield Part(layer.name, "memory_events", queue * words["event_reads"], known)
        if bias[layer.name]:
            yield part(counts, layer.name, "memory_biases", every_step(counts, parameter * words["bias_reads"]))
    for neuron in counts.of(NeuronCount):
        stored = neuron.updates * neuron.states
        both = 2 * stored * memory.word_pj(stored)
        yield part(counts, neuron.name, "memory_states", every_step(counts, both))
        if neuron.spiking:
            yield part(counts, neuron.name, "memory_events", queue * neuron.spikes)
