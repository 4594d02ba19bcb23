"""Operations of a golden network by layer, as each counter counts them: `counter(case) -> {layer: (AC, MAC)}`.

Every counter sees `ToolNet` in single precision, in evaluation, in one call. What is read are the linear operations;
normalisations, pools and neurons, which counters treat differently, are left out. A layer that a counter does not see
is missing from its answer. A counter that is not installed raises ImportError.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from _energy_nets import Operations, ToolNet, by_layer, exact, holds, is_chain, linear_modules, run
from spikeloom_tests.golden.energy.graph import Case
from spikeloom_tests.golden.energy.layers import DelayLinear
from spikeloom_tests.golden.energy.nets import ProjectNet
from torch import Tensor, nn

from spikeloom.energy import Counts, Policy, count, register_delays
from spikeloom.energy.literature import rule_is_mac, rule_operations
from spikeloom.energy.totals import layer_ac, layer_mac

Counted = dict[str, Operations]
OLD_NEURONS = ("MultiStepIFNode", "MultiStepLIFNode", "MultiStepParametricLIFNode")
"""Names that syops 0.0.5 imports from SpikingJelly and that SpikingJelly 2.0 no longer has."""


@dataclass(frozen=True)
class Tool:
    """A counter: how it is called, the package it comes in, what pip must be told, and itself."""

    name: str
    package: str | None
    pip: str
    counter: Callable[[Case], Counted]


def our_counts(case: Case) -> Counts:
    """Counts of the network made of spikeloom's layers."""
    register_delays(DelayLinear, lambda m: (m.weight, m.delay, m.max_delay))
    net = ProjectNet(case).eval()
    with count(net, strict=True) as meter:
        run(net, case)
    return meter.counts()


def spikeloom(case: Case) -> Counted:
    """`spikeloom.energy.count`, default policy."""
    policy, found = Policy(), our_counts(case).layers
    return {
        name: (int(layer_ac(y, policy).sum()), int(layer_mac(y, policy).sum()))
        for name in exact(case)
        for y in found
        if holds(name, y.name)
    }


def literature(case: Case) -> Counted:
    """FLOPs x T x rate with an entry for products of two activations (energy/literature.py)."""
    counts, found = our_counts(case), {}
    for name in exact(case):
        (layer,) = (y for y in counts.layers if holds(name, y.name))
        total = float(rule_operations(counts, layer).sum())
        found[name] = (0.0, total) if rule_is_mac(layer) else (total, 0.0)
    return found


def literature_layers(case: Case) -> Counted:
    """FLOPs x T x rate of the layers with weights alone."""
    weighted = {y["name"] for y in case.golden["layers"] if y["operands"] == "param"}
    return {name: operations for name, operations in literature(case).items() if name in weighted}


@contextmanager
def stand_ins(module: Any, names: tuple[str, ...]) -> Iterator[None]:
    """Empty classes under names that a module lacks, while something that imports them is imported."""
    missing = [name for name in names if not hasattr(module, name)]
    for name in missing:
        setattr(module, name, type(name, (), {}))
    try:
        yield
    finally:
        for name in missing:
            delattr(module, name)


def syops(case: Case) -> Counted:
    """syops by its own hooks; read per module, since its average divides by the first axis, which is time here."""
    from spikingjelly.activation_based import neuron

    with stand_ins(neuron, OLD_NEURONS):
        from syops.engine import add_syops_counting_methods
    net = ToolNet(case).eval()
    add_syops_counting_methods(net)
    net.start_syops_count(ost=sys.stderr, verbose=False, ignore_list=[])
    run(net, case)
    modules = [module for module in net.modules() if hasattr(module, "__syops__")]
    found = by_layer(net, case, {m: (float(m.__syops__[1]), float(m.__syops__[2])) for m in modules})
    net.stop_syops_count()
    return found


def neurobench(case: Case) -> Counted:
    """NeuroBench's metric of synaptic operations, one layer at a time."""
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import TorchModel

    net = ToolNet(case).eval()
    model = TorchModel(net)
    model.register_hooks()
    run(net, case)
    counted = {}
    with torch.no_grad():
        for hook in list(model.connection_hooks):
            model.connection_hooks = [hook]
            metric = SynapticOperations()
            metric(model, None, (case.x, None))
            counted[hook.layer] = (metric.AC, metric.MAC)
    return by_layer(net, case, counted)


def spikingjelly(case: Case) -> Counted:
    """SpikingJelly's counters of synaptic operations and of MACs, by the scope of each layer."""
    from spikingjelly.activation_based.op_counter import DispatchCounterMode, MACCounter, SynOpCounter

    net = ToolNet(case).eval()
    counters = SynOpCounter(), MACCounter()
    with DispatchCounterMode(list(counters)):
        run(net, case)

    def total(counter: Any, layer: str) -> int:
        scopes = [s for s in counter.get_counts() if holds(layer, s.partition(".")[2])]
        return sum(counter.get_counts()[min(scopes, key=len)].values()) if scopes else 0

    return {layer: (total(counters[0], layer), total(counters[1], layer)) for layer in exact(case)}


def sinabs(case: Case) -> Counted:
    """sinabs' hooks; its hook for the whole model, which undoes average pools, where the network is a chain."""
    from sinabs.hooks import ModelSynopsHook, conv_layer_synops_hook, linear_layer_synops_hook

    hooks = {nn.Conv2d: conv_layer_synops_hook, nn.Linear: linear_layer_synops_hook}
    key = "layer_synops_per_timestep"  # a mean over the first axis, of the last call only
    net, total = ToolNet(case).eval(), {}

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        total[module] = total.get(module, 0.0) + float(module.hook_data[key]) * inputs[0].shape[0]

    for _, module in linear_modules(net, case):
        if type(module) in hooks:
            module.register_forward_hook(hooks[type(module)])
            module.register_forward_hook(add)
    run(net, case)
    if is_chain(case):
        for module, value in total.items():
            module.hook_data[key] = value
        ModelSynopsHook()(nn.Sequential(*net.children()), None, None)
        total = {module: module.hook_data.get("synops_per_timestep", value) for module, value in total.items()}
    return by_layer(net, case, {module: (float(value), 0.0) for module, value in total.items()})


TOOLS = (
    Tool("brute force", None, "", exact),
    Tool("spikeloom", "spikeloom", "spikeloom", spikeloom),
    Tool("FLOPs x T x rate", None, "", literature),
    Tool("FLOPs x T x rate, weights only", None, "", literature_layers),
    Tool("syops", "syops", "syops==0.0.5 progress", syops),
    Tool("NeuroBench", "neurobench", "neurobench==2.3.0", neurobench),
    Tool("SpikingJelly", "spikingjelly", "spikingjelly==2.0.0", spikingjelly),
    Tool("sinabs", "sinabs", "sinabs==3.1.3 pbr", sinabs),
)
