"""Neurons of snnTorch that take all time steps at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from spikeloom_tests.energy.bridge_oracle import counted, random_spikes
from torch import nn

from spikeloom.energy.counts import NeuronCount

snn = pytest.importorskip("snntorch")

T, B = 5, 3


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_parallel_neurons(full: bool, bias: bool) -> None:
    """The diagonal of the recurrent matrix is the leak; only a full one is synapses, of the membranes."""
    torch.manual_seed(0)
    node = snn.LeakyParallel(6, 5, beta=0.5, bias=bias, threshold=0.2, weight_hh_enable=full)
    x = random_spikes(T, B, 6)
    with torch.no_grad():
        before, mem = node(x), node.rnn(x)[0]
    counts, result = counted(node, lambda run: node(x))
    assert torch.equal(result, before)
    first, *rest = counts.layers
    np.testing.assert_array_equal(first.sop, 5 * x.sum(2).numpy())
    assert (first.name, first.kind, first.bias_adds) == ("rnn.weight_ih_l0", "binary", 5 * bias)
    if full:
        last = torch.cat([torch.zeros(1, B, 5), mem[:-1]])
        np.testing.assert_array_equal(rest[0].sop, 5 * (last != 0).sum(2).numpy())
        assert (rest[0].name, rest[0].kind) == ("rnn.weight_hh_l0", "float")
    else:
        assert rest == []
    (entry,) = counts.aux
    assert isinstance(entry, NeuronCount)
    np.testing.assert_array_equal(entry.spikes, before.sum(2).numpy())
    assert before.any()


@pytest.mark.parametrize("output", [False, True])
def test_neurons_without_reset(output: bool) -> None:
    """The leak over time is computed as a convolution, which is no synapse."""
    torch.manual_seed(0)
    node = snn.LinearLeaky(0.5, 6, 5, threshold=0.2, output=output)
    net, x = nn.Sequential(node), random_spikes(T, B, 6)
    with torch.no_grad():
        before = net(x)
    counts, result = counted(net, lambda run: net(x))
    first = before[0] if output else before
    assert torch.equal(result[0] if output else result, first)
    (linear,) = counts.layers
    assert (linear.name, linear.kind, linear.bias_adds) == ("0.linear", "binary", 5)
    np.testing.assert_array_equal(linear.sop, 5 * x.sum(2).numpy())
    (entry,) = counts.aux
    assert isinstance(entry, NeuronCount)
    assert (entry.model, entry.spiking, entry.updates) == ("lif" if output else "li", output, 5)
    np.testing.assert_array_equal(entry.spikes, (first != 0).sum(2).numpy())
    states = snn.StateLeaky(0.5, 6, output=output)
    counts, _ = counted(states, lambda run: states(x))
    assert counts.layers == []
    np.testing.assert_array_equal(counts.of(NeuronCount)[0].touched, x.sum(2).numpy())


@pytest.mark.parametrize("query", [False, True])
def test_associative_neurons(query: bool) -> None:
    torch.manual_seed(0)
    node = snn.AssociativeLeaky(4, 3, 2, 6, use_q_projection=query)
    x = 5 * random_spikes(T, B, 4)
    with torch.no_grad():
        before = node(x)
        node.use_q_projection = False
        fired = node(x)
        node.use_q_projection = query
    counts, result = counted(node, lambda run: node(x))
    assert torch.equal(result, before)
    sizes = {"to_v": 3, "to_k": 2, "to_alpha": 2, **({"to_q": 6} if query else {})}
    for name, size in sizes.items():
        np.testing.assert_array_equal(counts.layer(name).sop, size * (x != 0).sum(2).numpy())
    (entry,) = counts.of(NeuronCount)
    np.testing.assert_array_equal(entry.spikes, fired.sum(2).numpy())
    products = [layer for layer in counts.layers if not layer.is_param]
    assert [layer.kind for layer in products][query:] == ["binary"][:query] or query
    assert fired.any()
