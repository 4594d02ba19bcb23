"""The analytical model of E. Lemaire et al. (arXiv 2210.13107): synaptic operations, addressing and memory by layer.

Everything is estimated. The formulas follow SpikingJelly 2.0's reading of the paper; it drops the factor N_in that the
paper's equation 2 has once too often. Per layer and sample, over all T steps: events θ, output elements N_out per step,
kernel taps K, C' = C_out / groups.

* Spikes (every kind but float) into a convolution: AC = θ C' Π⌈k/s⌉, memory fan-out M = θ C' K, address AC M, address
  MAC 2 θ. With fanout="exact" AC, M and address AC are the counted SOP. So they are, with both settings, for linear
  layers (a spike reaches every output of its row), delays, transposed convolutions and products of two activations; of
  these only the transposed convolution has address MAC. Words: θ inputs (queue), M parameters and the biases, M reads
  and M writes of potentials.
* Analogue values: MAC = dense_nominal T; address AC = (in_numel + N_out) T, and C_out K for a convolution. Words:
  inputs, one per MAC (convolution) or in_numel T; one parameter per MAC, and the biases.
* A bias costs N_out T AC. Neurons: potentials read and written once per step and state, one AC per spike, one MAC per
  update of a leaky neuron; a spike is a word into the queue.

A folded normalisation is a bias, one that does not fold costs a MAC per element. A product of two activations has no
parameters and two inputs. Pools, residual additions and scales are free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import ceil, prod

import numpy as np
from numpy.typing import NDArray

from spikeloom.energy.arithmetic import charged_norms, model_key
from spikeloom.energy.counts import Counts, Geometry, IntArray, Layer, NeuronCount
from spikeloom.energy.memory import Memory
from spikeloom.energy.memory_words import parameter_words
from spikeloom.energy.models import EnergyModel, get_model
from spikeloom.energy.parts import FloatArray, Part
from spikeloom.energy.totals import DEFAULT_POLICY, Policy, books_mac, charged, charged_steps, folded_bias

NOT_LEAKY = ("if", "ifsoft")


@dataclass(frozen=True)
class Lemaire:
    """Operations and pJ per sample, arrays [N] ([1], the whole run, for a layer whose rows could not be told apart).

    Attributes:
        synop: AC of synapses alone; `ac` and `mac` include biases, spikes and leaks.
        acc_addr, mac_addr: operations on addresses.
        inout_pj, params_pj, potential_pj: memory: inputs and outputs, weights and biases, potentials.
    """

    synop: FloatArray
    ac: FloatArray
    mac: FloatArray
    acc_addr: FloatArray
    mac_addr: FloatArray
    inout_pj: FloatArray
    params_pj: FloatArray
    potential_pj: FloatArray
    add: float
    mac_pj: float

    @property
    def ops_pj(self) -> FloatArray:
        """Synaptic operations, biases and neurons."""
        return self.add * self.ac + self.mac_pj * self.mac

    @property
    def addressing_pj(self) -> FloatArray:
        """Operations on addresses."""
        return self.add * self.acc_addr + self.mac_pj * self.mac_addr

    @property
    def total_pj(self) -> FloatArray:
        """All of it."""
        return self.ops_pj + self.addressing_pj + self.inout_pj + self.params_pj + self.potential_pj

    def terms(self) -> dict[str, FloatArray]:
        """pJ by term."""
        return {
            "synaptic": self.ops_pj,
            "addressing": self.addressing_pj,
            "inout": self.inout_pj,
            "params": self.params_pj,
            "potential": self.potential_pj,
        }


_ARRAYS = [field.name for field in fields(Lemaire) if field.name not in ("add", "mac_pj")]


def lemaire2022(
    counts: Counts, fanout: str = "exact", access_bits: int = 32, policy: Policy = DEFAULT_POLICY
) -> Lemaire:
    """The model of a whole run, arrays [N].

    Args:
        fanout: "exact", the counted fan-out, or "paper", all taps of the kernel.
        access_bits: 32 as in the paper; Horowitz gives the same energies for 64 bits, which halves the cost of memory.

    Raises:
        ValueError: another value; rows of a layer could not be told apart by sample (use `price`, which keeps them in
            the mean); the counts lack the geometry.
    """
    lost = [layer.name for layer in counts.layers if not layer.assigned]
    if lost:
        raise ValueError(
            f"The counts of {', '.join(lost)} are known for the whole run only. Use price(counts, 'lemaire2022'), "
            "which keeps them in the mean."
        )
    model = get_model("lemaire2022", fanout=fanout, access_bits=access_bits)
    books = [book for _, assigned, book in _books(counts, model, policy) if assigned]
    zero = np.zeros(counts.samples)
    return _make(model, {name: sum((getattr(b, name) for b in books), start=zero) for name in _ARRAYS})


def lemaire_parts(counts: Counts, model: EnergyModel, policy: Policy) -> Iterator[Part]:
    """The model as parts [N], layer by layer and neuron by neuron."""
    for name, assigned, book in _books(counts, model, policy):
        for term, pj in book.terms().items():
            if pj.any() or term == "synaptic":
                yield Part(name, term, pj, assigned)


def _make(model: EnergyModel, values: dict[str, NDArray[np.float64]]) -> Lemaire:
    return Lemaire(**values, add=model.constants["add"], mac_pj=model.constants["mac"])


def _book(model: EnergyModel, rows: int, **values: float | IntArray | FloatArray) -> Lemaire:
    """One entry; what is not given is zero, numbers hold for each of the rows."""
    full = {name: np.zeros(rows) + values.get(name, 0) for name in _ARRAYS}
    return _make(model, full)


def _books(counts: Counts, model: EnergyModel, policy: Policy) -> Iterator[tuple[str, bool, Lemaire]]:
    """(name, are rows known by sample, entry)."""
    bias = folded_bias(counts, policy)
    for layer in counts.layers:
        make = _analog if books_mac(layer, policy) else _spiking
        yield layer.name, layer.assigned, make(counts, layer, bias[layer.name], model, policy)
    for neuron in counts.of(NeuronCount):
        yield neuron.name, True, _updates(counts, neuron, model)
        if neuron.spiking:
            spikes = neuron.spikes.sum(0)
            queue = spikes * _memory(model).word_pj(_memory(model).fifo_words)
            known = neuron.spikes.shape == (counts.T, counts.samples)
            yield neuron.name, known, _book(model, len(spikes), ac=spikes, inout_pj=queue)
    for norm in charged_norms(counts, policy):
        yield norm.name, True, _book(model, counts.samples, mac=norm.elements * counts.T)


def _memory(model: EnergyModel) -> Memory:
    if model.memory is None:
        raise ValueError(f"energy model {model.name!r} has no memory table")
    return model.memory


def _is_conv(layer: Layer) -> bool:
    return "conv" in layer.op


def _rows(counts: Counts, layer: Layer) -> tuple[int, int]:
    """Entries of the result, and how many samples each stands for."""
    return (counts.samples, 1) if layer.assigned else (1, counts.samples)


def _spiking(counts: Counts, layer: Layer, bias: int, model: EnergyModel, policy: Policy) -> Lemaire:
    memory = _memory(model)
    rows, samples = _rows(counts, layer)
    events = charged(layer, layer.events, policy, counts.T).sum(0)
    both = events if layer.events_b is None else events + charged(layer, layer.events_b, policy, counts.T).sum(0)
    sop = charged(layer, layer.sop, policy, counts.T).sum(0)
    synop, fan = sop, sop
    if model.options["fanout"] == "paper":
        synop, fan = _paper_fanout(layer, events, sop)
    adds = bias * samples * int(charged_steps(layer, policy, counts.T).sum())
    parameters = (fan + adds) * memory.word_pj(parameter_words(layer, bias, memory)) if layer.is_param else 0
    return _book(
        model,
        rows,
        synop=synop,
        ac=synop + adds,
        acc_addr=fan,
        mac_addr=2 * events if _is_conv(layer) else 0,
        inout_pj=both * memory.word_pj(memory.fifo_words),
        params_pj=parameters,
        potential_pj=2 * fan * memory.word_pj(layer.out_numel),
    )


def _paper_fanout(layer: Layer, events: IntArray, sop: IntArray) -> tuple[IntArray, IntArray]:
    """Synaptic AC and memory fan-out as if every element reached all taps."""
    if not _is_conv(layer) or "transpose" in layer.op or layer.geometry.transposed:
        return sop, sop
    shape = _geometry(layer)
    channels = shape.out_channels // shape.groups
    reached = prod(ceil(k / s) for k, s in zip(shape.kernel, shape.stride, strict=True))
    return events * channels * reached, events * channels * prod(shape.kernel)


def _geometry(layer: Layer) -> Geometry:
    shape = layer.geometry
    if not (shape.kernel and shape.stride and shape.out_channels):
        raise ValueError(
            f"{layer.name!r} ({layer.op}) has no kernel, stride or channels in its geometry; lemaire2022 needs them "
            'for analogue inputs and for fanout="paper".'
        )
    return shape


def _analog(counts: Counts, layer: Layer, bias: int, model: EnergyModel, policy: Policy) -> Lemaire:
    memory = _memory(model)
    rows, samples = _rows(counts, layer)
    steps = samples * int(charged_steps(layer, policy, counts.T).sum())
    macs = layer.dense_nominal * steps
    inputs = layer.in_numel + (layer.in_numel_b or 0)
    adds = bias * steps
    addresses = (inputs + layer.out_numel) * steps
    if _is_conv(layer):
        addresses += samples * _geometry(layer).out_channels * prod(_geometry(layer).kernel)
    parameters = (macs + adds) * memory.word_pj(parameter_words(layer, bias, memory)) if layer.is_param else 0
    return _book(
        model,
        rows,
        ac=adds,
        mac=macs,
        acc_addr=addresses,
        inout_pj=(macs if _is_conv(layer) else inputs * steps) * memory.word_pj(inputs),
        params_pj=parameters,
    )


def _updates(counts: Counts, neuron: NeuronCount, model: EnergyModel) -> Lemaire:
    stored = neuron.updates * neuron.states
    return _book(
        model,
        counts.samples,
        mac=0 if model_key(neuron) in NOT_LEAKY else neuron.updates * counts.T,
        potential_pj=2 * counts.T * stored * _memory(model).word_pj(stored),
    )
