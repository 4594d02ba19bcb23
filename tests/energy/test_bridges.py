"""Bridges are connected when a module of their library is met, and not before."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from spikeloom.energy import NeuronFacts, bridges, count, register_neuron
from spikeloom.energy.counts import NeuronCount
from spikeloom.energy.scopes import ROLES, role_of

SPACES = {
    "norse": ("norse.torch", {"Lift", "SequentialState", "RecurrentSequential", "TemporalReceptiveField"}),
    "snntorch": ("snntorch", {"SpikingNeuron", "LIF", "GradedSpikes"}),
    "spikingjelly": ("spikingjelly.activation_based.neuron", set()),
}
"""Library -> namespace of its neurons, and what else is there: containers, a scale, bases without a forward."""


def test_no_library_is_imported_for_a_network_without_it() -> None:
    """Nor by importing the bridges themselves."""
    code = f"""
import sys, torch
from spikeloom.energy import count
from spikeloom.energy.bridges import norse, snntorch, spikingjelly
net = torch.nn.Linear(3, 2)
with torch.no_grad(), count(net) as run:
    net(torch.ones(2, 1, 3))
assert run.counts().layers[0].sop.sum() == 12
assert not {set(SPACES)} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[str] = []

    class Fake:
        @staticmethod
        def register() -> None:
            met.append("registered")

    class Neuron(nn.Module):
        pass

    Neuron.__module__ = "snntorch._neurons.leaky"
    monkeypatch.setattr(bridges, "_WAITING", {"snntorch"})
    monkeypatch.setattr(bridges, "import_module", lambda name: met.append(name) or Fake)

    class Mine(Neuron):
        pass

    role_of(nn.Linear(2, 2))
    assert met == []
    role_of(Mine())
    role_of(Mine())
    role_of(Neuron())
    assert met == ["spikeloom.energy.bridges.snntorch", "registered"]


def test_what_the_user_registered_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    from spikeloom.energy.bridges import spikingjelly

    spikingjelly.register()

    def describe(module: Any, args: Any, output: Any) -> NeuronFacts:
        return NeuronFacts("mine", args[0], output)

    monkeypatch.setitem(ROLES, neuron.BaseNode, ROLES[neuron.BaseNode])
    register_neuron(neuron.BaseNode, describe)
    spikingjelly.register()
    net = neuron.IFNode(step_mode="m")
    with torch.no_grad(), count(net) as run:
        net(torch.ones(2, 1, 3))
    assert [n.model for n in run.counts().of(NeuronCount)] == ["mine"]


@pytest.mark.parametrize("library", SPACES)
def test_every_neuron_of_the_library_has_a_role(library: str) -> None:
    pytest.importorskip(library)
    space, others = importlib.import_module(SPACES[library][0]), SPACES[library][1]
    bridges.connect((type("Any", (nn.Module,), {"__module__": library}),))
    found = [
        kind
        for name, kind in vars(space).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and name not in others
    ]
    if library == "norse":  # what has a state is a neuron or a container
        found = [kind for kind in found if "state" in kind.forward.__code__.co_varnames]
    missing = [kind.__name__ for kind in found if not any(base in ROLES for base in kind.__mro__)]
    assert len(found) > 10
    assert missing == []
