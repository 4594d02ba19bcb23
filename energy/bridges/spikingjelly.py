"""SpikingJelly 2.0: modules say in `step_mode` whether a call is one time step ("s") or all of them ("m").

Its layers are torch's with time folded into the batch and need no role. `functional.reset_net` may be called inside or
outside of the counted block; what is not reset goes on from the batch before, and is counted as it runs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spikeloom.energy.bridges.library import Call, Describe, add_neuron, count_weight, delayed
from spikeloom.energy.marks import Mark
from spikeloom.energy.meter import consumed
from spikeloom.energy.rules.elementwise import count_norm
from spikeloom.energy.rules.linear import convolution_rule
from spikeloom.energy.rules.neurons import NeuronFacts
from spikeloom.energy.scopes import ROLES, Role

if TYPE_CHECKING:
    from spikeloom.energy.run import Run

_MODELS = {
    "SimpleIFNode": "if",
    "IFNode": "if",
    "HalfThresholdIFNode": "if",
    "ActivationAwareIFNode": "if",
    "DSRIFNode": "if",
    "ILCIFNode": "if",
    "SimpleLIFNode": "lif",
    "LIFNode": "lif",
    "DSRLIFNode": "lif",
    "ILCLIFNode": "lif",
    "ParametricLIFNode": "plif",
    "ILIFNode": "ilif",
    "CUBALIFNode": "cuba_lif",
    "ILCCUBALIFNode": "cuba_lif",
    "NoisyCUBALIFNode": "cuba_lif",
    "NoisyILCCUBALIFNode": "cuba_lif",
    "QIFNode": "qif",
    "EIFNode": "eif",
    "IzhikevichNode": "izhikevich",
    "GatedLIFNode": "gated_lif",
    "KLIFNode": "klif",
    "ComplementaryLIFNode": "complementary_lif",
    "LIAFNode": "liaf",
    "MPBNLIFNode": "mpbn_lif",
    "TernaryIFNode": "ternary_if",
    "TernaryLIFNode": "ternary_lif",
    "RAFNode": "resonate_and_fire",
    "STBIFNode": "st_bif",
    "FewSpikeNode": "few_spike",
    "FlexSN": "flex_sn",
    "NonSpikingIFNode": "integrator",
    "NoisyNonSpikingIFNode": "integrator",
    "NonSpikingLIFNode": "li",
    "PSN": "psn",
    "MaskedPSN": "masked_psn",
    "SlidingPSN": "sliding_psn",
}
"""Class -> model; of others, such as a user's own subclass of `BaseNode`, the model is the class's name."""
_SUBTRACTING = {"GatedLIFNode", "STBIFNode", "DSRIFNode", "DSRLIFNode", "FewSpikeNode"}
"""Neurons without a `v_reset` of which a spike takes something off the membrane."""
_STATES = {"STBIFNode": 2, "ILCCUBALIFNode": 2, "NoisyCUBALIFNode": 2, "NoisyILCCUBALIFNode": 2}
"""States, where they are not the module's memories."""
_SPIKING = (
    *("SimpleBaseNode", "BaseNode", "ActivationAwareIFNode", "GatedLIFNode", "DSRIFNode", "DSRLIFNode", "STBIFNode"),
    *("FewSpikeNode", "FlexSN", "NoisyBaseNode"),
)


def register() -> None:
    """Add the roles of SpikingJelly's modules; a class that an older release lacks cannot be met."""
    from spikingjelly.activation_based import layer, neuron, rnn

    def neurons(where: Any, names: tuple[str, ...], describe: Describe, silent: bool = False) -> None:
        for name in names:
            if hasattr(where, name):
                add_neuron(getattr(where, name), describe, _all_steps, silent=silent)

    def layers(where: Any, names: tuple[str, ...], role: Role) -> None:
        for name in names:
            if hasattr(where, name):
                ROLES.setdefault(getattr(where, name), role)

    neurons(neuron, _SPIKING, _spiking)
    neurons(neuron, ("NonSpikingBaseNode", "NoisyNonSpikingBaseNode"), _read_out)
    neurons(neuron, ("ILCBaseNode", "NoisyILCBaseNode"), _connected, silent=True)
    neurons(neuron, ("PSN", "MaskedPSN", "SlidingPSN"), _parallel, silent=True)
    neurons(layer, ("SynapseFilter",), _filter)
    layers(layer, ("ElementWiseRecurrentContainer", "LinearRecurrentContainer"), Role(quiet=True))
    layers(layer, ("TLastSeqToANNContainer",), Role(silent=True, begin=_fold_last, finish=_mark))
    norm = Role(silent=True, finish=_norm)
    layers(layer, ("BatchNormThroughTime1d", "BatchNormThroughTime2d", "BatchNormThroughTime3d"), norm)
    for cell, describe in (
        (rnn.SpikingVanillaRNNCell, _vanilla),
        (rnn.SpikingLSTMCell, _gated),
        (rnn.SpikingGRUCell, _gated),
    ):
        add_neuron(cell, describe, lambda module: False)
    layers(rnn, ("SpikingRNNBase",), Role(finish=_put_in_order))


def _all_steps(module: Any) -> bool | None:
    """Classes for sequences alone need not have a `step_mode`; a few-spike neuron ends its steps within a call."""
    if getattr(module, "step_mode", "m") == "m":
        return True
    return None if _class(module) == "FewSpikeNode" else False


# --- neurons ----------------------------------------------------------------------------------------------------------


def _class(module: nn.Module) -> str:
    """The nearest class that is in the table."""
    return next((k.__name__ for k in type(module).__mro__ if k.__name__ in _MODELS), type(module).__name__)


def _states(module: Any, name: str) -> int:
    memories = getattr(module, "_memories", {}).values()
    return _STATES.get(name) or sum(isinstance(value, Tensor) for value in memories) or 1


def _facts(call: Call, current: Tensor, outputs: Tensor, spiking: bool = True) -> NeuronFacts:
    module, name = call.module, _class(call.module)
    soft = spiking and (name in _SUBTRACTING or getattr(module, "v_reset", 0.0) is None)
    return NeuronFacts(_MODELS.get(name, name), current, outputs, _states(module, name), soft, spiking)


def _spiking(call: Call) -> NeuronFacts:
    return _facts(call, call.x, call.first)


def _read_out(call: Call) -> NeuronFacts:
    """Neurons that do not fire; their output is the membranes as a list, or one decoded value per neuron."""
    if isinstance(call.output, list):
        return _facts(call, call.x, torch.stack(call.output), spiking=False)
    twin = copy.copy(call.module)
    twin.decode, twin.is_training = None, False
    return _facts(call, call.x, torch.stack(twin.forward(call.x)), spiking=False)


def _filter(call: Call) -> NeuronFacts:
    return NeuronFacts("li", call.x, call.first, spiking=False)


def _connected(call: Call) -> NeuronFacts:
    """A population is fed its own last spikes through a grouped convolution."""
    module, run = call.module, call.run
    conv = module.conn
    last = delayed(call.first).reshape(-1, module.act_dim, module.dec_pop_dim)  # [T B, populations, neurons]
    run.marks.put(last, Mark())
    arguments = (last, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, False, (0,), conv.groups)
    back: Tensor = convolution_rule(run, torch.ops.aten.convolution.default, arguments, {})
    current = call.x  # ILC nodes have added the recurrent current to it in place
    if hasattr(module, "is_training"):
        current = current.clone()
        current[1:] += back.view_as(current)[1:]
    return _facts(call, current, call.first)


# --- parallel neurons -------------------------------------------------------------------------------------------------


def _parallel(call: Call) -> NeuronFacts:
    """h_t = sum over steps s of w[t, s] x_s: a product per tap that is there, in the step whose neuron it drives."""
    run, x = call.run, call.x
    mark = run.marks.of(x)
    consumed([(x, mark)])
    run.scopes.now.lead = "step"
    taps = 1
    for window, weight in _windows(call):
        taps = max(taps, weight.numel())
        count_weight(call, "weight", window, weight.unsqueeze(0), mark=Mark(network_input=mark.network_input))
    return NeuronFacts(_MODELS[_class(call.module)], x, call.first, taps)


def _windows(call: Call) -> Iterator[tuple[Tensor, Tensor]]:
    """Per step: the inputs [B, ..., taps] that a neuron sees, and their weights [taps]."""
    module, x = call.module, call.x
    sliding, masked = hasattr(module, "gen_gemm_weight"), hasattr(module, "masked_weight")
    if not call.multi:
        inputs = torch.stack(module.queue, -1).view(*x.shape, -1)
        taps = inputs.shape[-1]
        weight = module.weight if sliding else module.masked_weight()[module.time_step - 1, : module.time_step]
        yield inputs, weight[-taps:]
        return
    T = x.shape[0]
    weight = module.gen_gemm_weight(T) if sliding else module.masked_weight() if masked else module.weight
    causal = sliding or (masked and bool(module.lambda_ >= 1))
    for t in range(T):
        seen = slice(max(0, t + 1 - module.k), t + 1) if causal else slice(0, T)
        yield x[seen].movedim(0, -1), weight[t, seen]


# --- recurrent networks, containers, normalisation --------------------------------------------------------------------


def _vanilla(call: Call) -> NeuronFacts:
    """h_t = fire(W x_t + U h_(t-1)): nothing but the spikes is kept."""
    cell = call.module
    last = call.args[1] if len(call.args) > 1 and call.args[1] is not None else torch.zeros_like(call.first)
    current = cell.linear_ih.forward(call.x) + cell.linear_hh.forward(last)
    return NeuronFacts("spiking_rnn", current, call.first)


def _gated(call: Call) -> NeuronFacts:
    """Gates are computed at every step, input or not: every update is a touched one."""
    lstm = isinstance(call.output, tuple)
    return NeuronFacts("spiking_lstm" if lstm else "spiking_gru", torch.ones_like(call.first), call.first, 1 + lstm)


def _put_in_order(run: Run, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """The cells of the reverse direction saw the last step first."""
    if not module.bidirectional:
        return
    T, name = args[0].shape[0], run.scopes.name_of(module)
    for (place, _), site in run.sites.items():
        if place.startswith(f"{name}.cells_reverse.".lstrip(".")):
            site.open[-T:] = reversed(site.open[-T:])


def _fold_last(module: Any, args: tuple[Any, ...]) -> None:
    """Layers are mapped over time, the last axis; to be counted they run before with time in the batch.

    Twice does no harm: such a map refuses random layers and normalisations that follow statistics.
    """
    x = args[0].movedim(-1, 0).flatten(0, 1)
    for child in module:
        x = child(x)


def _mark(run: Run, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    run.mark_outputs(output)


def _norm(run: Run, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """One normalisation, though every step has weights of its own."""
    mark = run.marks.of(args[0])
    consumed([(args[0], mark)])
    count_norm(run, args[0], mark, run.scopes.name_of(module))
    run.mark_outputs(output)
