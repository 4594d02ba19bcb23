"""snnTorch 1.0: neurons work on one time step [B, ...] per call, but for the parallel ones, which take [T, B, ...]."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spikeloom.energy.bridges.library import Call, Describe, add_neuron, count_weight, delayed
from spikeloom.energy.marks import Mark
from spikeloom.energy.rules.neurons import NeuronFacts

_STEPWISE = {
    "Leaky": ("lif", 1),
    "DeltaLeaky": ("delta_lif", 2),
    "Lapicque": ("lif", 1),
    "Synaptic": ("synaptic", 2),
    "Alpha": ("alpha", 3),
}
"""Class -> model, states."""
_RECURRENT = {"RLeaky": ("recurrent_lif", 1), "RSynaptic": ("synaptic", 2)}
_GATED = {"SLSTM": "spiking_lstm", "SConv2dLSTM": "spiking_lstm"}
_STATES = ("mem", "syn", "spk", "syn_exc", "syn_inh")
"""Neurons keep their states as buffers."""
_PARALLEL = ("LeakyParallel", "LinearLeaky", "StateLeaky", "AssociativeLeaky")


def register() -> None:
    """Add the roles of snnTorch's neurons; a class that an older release lacks cannot be met."""
    import snntorch

    def add(name: str, describe: Describe, **options: Any) -> None:
        if hasattr(snntorch, name):
            multi = name in _PARALLEL
            add_neuron(getattr(snntorch, name), describe, lambda module: multi, states=_STATES, **options)

    for name, (model, states) in _STEPWISE.items():
        add(name, _stepwise(model, states))
    for name, (model, states) in _RECURRENT.items():
        add(name, _recurrent(model, states), begin=_last_spikes)
    for name, model in _GATED.items():
        add(name, _gated(model))
    add("LeakyParallel", _leaky_parallel, silent=True)
    add("LinearLeaky", _linear_leaky, silent=True)
    add("StateLeaky", _state_leaky, silent=True)
    add("AssociativeLeaky", _associative)


def _subtracts(module: Any) -> bool:
    return bool(module.reset_mechanism == "subtract")


def _stepwise(model: str, states: int) -> Describe:
    def describe(call: Call) -> NeuronFacts:
        soft = model != "delta_lif" and _subtracts(call.module)
        return NeuronFacts(model, call.x, call.first, states, soft)

    return describe


# --- recurrent --------------------------------------------------------------------------------------------------------


def _last_spikes(module: Any, args: tuple[Any, ...]) -> Tensor:
    """The spikes that come back in this step: given, or kept in the module."""
    given = args[1] if len(args) > 1 else None
    spikes: Tensor = module.spk if given is None else given
    return spikes


def _recurrent(model: str, states: int) -> Describe:
    """Feed-forward and recurrent current. A one-to-one recurrence is a product with a number per neuron, no synapse."""

    def describe(call: Call) -> NeuronFacts:
        module, x = call.module, call.x
        _once(call)
        last = call.kept if call.kept.shape == x.shape else torch.zeros_like(x)
        return NeuronFacts(model, x + module.recurrent.forward(last), call.first, states, _subtracts(module))

    return describe


def _gated(model: str) -> Describe:
    """Gates are computed at every step, input or not: every update is a touched one."""

    def describe(call: Call) -> NeuronFacts:
        _once(call)
        spikes, neurons = call.first, call.module.mem
        if spikes.shape != neurons.shape:  # SConv2dLSTM pools membranes before they fire
            pooled, spikes = spikes, torch.zeros_like(neurons)
            spikes[..., : pooled.shape[-2], : pooled.shape[-1]] = pooled
        return NeuronFacts(model, torch.ones_like(spikes), spikes, 2, _subtracts(call.module))

    return describe


def _once(call: Call) -> None:
    """For a reset to zero snnTorch evaluates the step, weights included, a second time; a neuron needs it once."""
    if call.module.reset_mechanism != "zero":
        return
    for (name, _), site in call.run.sites.items():
        if name.startswith(call.under("")) and "operands" in site.facts:
            site.open.pop()


# --- all steps at once ------------------------------------------------------------------------------------------------


def _leaky_parallel(call: Call) -> NeuronFacts:
    """torch's RNN as neurons: a diagonal recurrent matrix is their leak, a full one is synapses of the membranes."""
    x, rnn = call.x, call.module.rnn
    bias, back = (rnn.bias_ih_l0, rnn.bias_hh_l0) if rnn.bias else (None, None)
    count_weight(call, "rnn.weight_ih_l0", x, rnn.weight_ih_l0, bias)
    current = functional.linear(x, rnn.weight_ih_l0, None if bias is None else bias + back)
    hidden = rnn.weight_hh_l0
    if not torch.equal(hidden, hidden.diagonal().diag()):
        last = delayed(rnn.forward(x)[0])
        count_weight(call, "rnn.weight_hh_l0", last, hidden, back, Mark())
        current = current + functional.linear(last, hidden)
    return NeuronFacts("lif", current, call.first)


def _state_leaky(call: Call) -> NeuronFacts:
    """The leak is a convolution over time; nothing is reset."""
    spiking = bool(call.module.output)
    return NeuronFacts("lif" if spiking else "li", call.x, call.first, spiking=spiking)


def _linear_leaky(call: Call) -> NeuronFacts:
    linear, spiking = call.module.linear, bool(call.module.output)
    count_weight(call, "linear", call.x, linear.weight, linear.bias)
    current = functional.linear(call.x, linear.weight, linear.bias)
    return NeuronFacts("lif" if spiking else "li", current, call.first, spiking=spiking)


def _associative(call: Call) -> NeuronFacts:
    """A matrix of neurons that the outer product of value and key drives, and that a query reads."""
    module, x = call.module, call.x
    current = torch.einsum("tbd,tbn->tbdn", module.to_v.forward(x), module.to_k.forward(x)).flatten(2)
    twin = copy.copy(module)
    twin.use_q_projection = False  # its output is then the spikes
    return NeuronFacts("associative_lif", current, twin.forward(x))
