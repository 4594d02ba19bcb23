"""Firing rates: the mean number of spikes per neuron and time step, of every spiking layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from spikeloom.neurons import Neuron
from spikeloom.synapses import NormNeuron
from spikeloom.training.team import Team


@dataclass
class Firing:
    """Spikes and neuron steps of one layer, summed over all calls; both stay on the device until asked for."""

    spikes: Tensor | float = 0.0
    steps: int = 0
    neurons: int = 0

    @property
    def rate(self) -> float:
        """Spikes per neuron and time step; 0 before the first call."""
        return float(self.spikes) / self.steps if self.steps else 0.0


def spiking_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that emit spikes, by name: neurons, and `NormNeuron`s, which run their neuron's kernel themselves.

    Recurrences that are written as neurons but never fire (LI, WKV, token shifts) are none.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        neuron = module.neuron if isinstance(module, NormNeuron) else module
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(neuron, Neuron) and _fires(neuron) and not inside:
            found[name] = module
    return found


@contextmanager
def count_spikes(model: nn.Module) -> Iterator[dict[str, Firing]]:
    """Count the spikes of every spiking layer in the calls made inside.

    Example:
        >>> with count_spikes(net) as layers:
        ...     net(frames)
        >>> {name: layer.rate for name, layer in layers.items()}
    """
    spiking = spiking_layers(model)
    layers = {name: Firing() for name in spiking}
    handles = [module.register_forward_hook(partial(_count, layers[name])) for name, module in spiking.items()]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def sum_firing(layers: dict[str, Firing], team: Team) -> dict[str, Firing]:
    """The counts of all processes together."""
    if team.size == 1 or not layers:
        return layers
    own = torch.tensor([[float(layer.spikes), layer.steps] for layer in layers.values()], dtype=torch.float64)
    sums = team.summed(own).tolist()
    neurons = [team.largest(layer.neurons) for layer in layers.values()]
    return {
        name: Firing(spikes, int(steps), count)
        for name, (spikes, steps), count in zip(layers, sums, neurons, strict=True)
    }


def rates_table(layers: dict[str, Firing]) -> Table:
    """A table of layers, neurons per sample and firing rates."""
    table = Table("layer", title="firing rates", title_justify="left")
    table.add_column("neurons", justify="right")
    table.add_column("spikes per neuron and step", justify="right")
    for name, layer in layers.items():
        table.add_row(name, f"{layer.neurons:,}", f"{layer.rate:.4f}")
    return table


def _fires(neuron: Neuron) -> bool:
    """Whether its step has a threshold; integer spikes are rounded."""
    return any(node.op in ("spike", "round", "floor") for node in neuron.program.tape.nodes)


def _count(layer: Firing, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    while isinstance(output, tuple):  # (spikes, state), or ((spikes, membrane), state)
        output = output[0]
    spikes: Tensor = output.detach()
    layer.spikes = layer.spikes + spikes.sum(dtype=torch.float64)
    layer.steps += spikes.numel()
    layer.neurons = spikes[0, 0].numel()
