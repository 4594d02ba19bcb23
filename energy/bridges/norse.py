"""Norse 1.1: cells work on one time step [B, ...] per call, modules without "Cell" in their name on [T, B, ...].

Modules with weights of their own give linear operations `<module>.input_weights` and `<module>.recurrent_weights`. The
recurrent current of a call is taken from the state that is passed by position; of a state passed by keyword the counter
does not know, and takes the current for the feed-forward one when it counts touched updates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spikeloom.energy.bridges.library import Call, Describe, add_neuron, count_weight, delayed
from spikeloom.energy.marks import Mark
from spikeloom.energy.rules.linear import convolution_rule
from spikeloom.energy.rules.neurons import NeuronFacts
from spikeloom.energy.scopes import ROLES, Role

if TYPE_CHECKING:
    from spikeloom.energy.run import Run

_MODELS = {
    "LIF": "cuba_lif",
    "LIFBox": "lif",
    "LIFRefrac": "cuba_lif_refractory",
    "LIFAdEx": "adex",
    "LIFAdExRefrac": "adex_refractory",
    "LIFEx": "eif",
    "LIFMC": "multi_compartment_lif",
    "LIFMCRefrac": "multi_compartment_lif_refractory",
    "LIFCorrelation": "cuba_lif",
    "LSNN": "alif",
    "IAF": "if",
    "Izhikevich": "izhikevich",
    "CobaLIF": "coba_lif",
    "LI": "cuba_li",
    "LILinear": "cuba_li",
    "LIBox": "li",
}
"""Class without "Cell" and "Recurrent" -> model. LIF and LI of Norse have a synaptic current beside the membrane."""


def register() -> None:
    """Add the roles of Norse's modules."""
    import norse.torch as norse
    from norse.torch.module import exp_filter, snn

    add = add_neuron
    for kind in (norse.LICell, norse.LIBoxCell):
        add(kind, _feed_forward(spiking=False), _one_step)
    add(norse.LI, _feed_forward(spiking=False), _all_steps)
    add(norse.LILinearCell, _li_linear, _one_step)
    add(norse.CobaLIFCell, _coba, _one_step, silent=True)
    add(norse.LIFCorrelation, _correlation, _one_step)
    add(exp_filter.ExpFilter, _filter, _all_steps)
    for kind in (norse.ConstantCurrentLIFEncoder, norse.SpikeLatencyLIFEncoder):
        add(kind, _encoder, _all_steps, silent=True)
    for kind, multi in ((snn.SNNCell, _one_step), (snn.SNN, _all_steps)):
        add(kind, _feed_forward(), multi)
    for kind, multi in ((snn.SNNRecurrentCell, _one_step), (snn.SNNRecurrent, _all_steps)):
        add(kind, _recurrent, multi)
    ROLES.setdefault(norse.LConv2d, Role(silent=True, finish=_count_lconv))
    ROLES.setdefault(norse.RegularizationCell, Role(silent=True))


def _one_step(module: Any) -> bool:
    return False


def _all_steps(module: Any) -> bool:
    return True


# --- facts ------------------------------------------------------------------------------------------------------------


def _model(module: nn.Module) -> str:
    for kind in type(module).__mro__:
        name = kind.__name__.removesuffix("Cell").removesuffix("Recurrent")
        if name in _MODELS:
            return _MODELS[name]
    return type(module).__name__


def _states(state: Any) -> int:
    """State variables per neuron; last spikes are none."""
    return sum(
        _states(part) if hasattr(part, "_fields") else 1 for name, part in state._asdict().items() if name != "z"
    )


def _soft(module: Any) -> bool:
    return getattr(getattr(module.p, "reset_method", None), "__name__", "") == "reset_subtract"


def _given(call: Call, position: int) -> Tensor | None:
    """Last spikes in the state that a module was called with; None where it starts from rest."""
    state = call.args[position] if len(call.args) > position else None
    while state is not None and not hasattr(state, "z"):  # a LIF's state inside of one with more
        state = next((part for part in state if hasattr(part, "_fields")), None)
    return None if state is None else state.z


def _feed_forward(spiking: bool = True) -> Describe:
    def describe(call: Call) -> NeuronFacts:
        module = call.module
        return NeuronFacts(_model(module), call.x, call.first, _states(call.output[1]), _soft(module), spiking)

    return describe


def _fed_back(call: Call, position: int = 1) -> Tensor:
    """The spikes that come back, [T, B, ...] or [B, ...]."""
    last = _given(call, position)
    if call.multi:
        return delayed(call.first, last)
    return torch.zeros_like(call.first) if last is None else last


def _recurrent(call: Call) -> NeuronFacts:
    module = call.module
    current = functional.linear(call.x, module.input_weights)
    current = current + functional.linear(_fed_back(call), module.recurrent_weights)
    return NeuronFacts(_model(module), current, call.first, _states(call.output[1]), _soft(module))


def _correlation(call: Call) -> NeuronFacts:
    """Weights are arguments. The correlation sensors' states belong to synapses."""
    current = functional.linear(call.x, call.args[1]) + functional.linear(_fed_back(call, 3), call.args[2])
    return NeuronFacts("cuba_lif", current, call.first, 2)


def _coba(call: Call) -> NeuronFacts:
    """Positive weights act on one conductance, negative ones on another: computed as two products each, one synapse."""
    module, last = call.module, _fed_back(call)
    count_weight(call, "input_weights", call.x, module.input_weights)
    count_weight(call, "recurrent_weights", last, module.recurrent_weights, mark=Mark())
    current = functional.linear(call.x, module.input_weights) + functional.linear(last, module.recurrent_weights)
    return NeuronFacts("coba_lif", current, call.first, _states(call.output[1]))


def _li_linear(call: Call) -> NeuronFacts:
    current = functional.linear(call.x, call.module.input_weights)
    return NeuronFacts("cuba_li", current, call.first, 2, spiking=False)


def _filter(call: Call) -> NeuronFacts:
    """An exponential filter behind a linear layer is a leaky integrator."""
    linear = call.module.linear
    return NeuronFacts("li", functional.linear(call.x, linear.weight, linear.bias), call.first, spiking=False)


def _encoder(call: Call) -> NeuronFacts:
    """LIF neurons under a constant current [B, ...]."""
    return NeuronFacts("lif", call.x.expand_as(call.first), call.first)


# --- layers -----------------------------------------------------------------------------------------------------------


def _count_lconv(run: Run, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """LConv2d moves time into the last axis of a 3-D convolution; counted with time in the batch, as its rows are."""
    x, conv = args[0], module
    assert isinstance(conv, nn.Conv3d)
    mark = run.marks.of(x)
    rows = x.detach().flatten(0, 1).unsqueeze(-1)  # [T B, C, H, W, 1]
    run.marks.put(rows, mark)
    arguments = (rows, conv.weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0, 0), conv.groups)
    with torch.no_grad():
        counted = convolution_rule(run, torch.ops.aten.convolution.default, arguments, {})
    run.mark_outputs(output, run.marks.of(counted))
