"""A delayed layer in a stream is counted as in one call, normalisation behind it included."""

from __future__ import annotations

import torch
from torch import nn

from spikeloom import Stream
from spikeloom.energy import count
from spikeloom.neurons import LIF
from spikeloom.synapses import DelayConv1d, NormNeuron


def test_tick_by_tick_is_one_call() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(DelayConv1d(4, 5, 1, 5, tail="none"), NormNeuron(5, LIF())).eval().requires_grad_(False)
    net[0].round_positions_()
    x = (torch.rand(7, 2, 4) < 0.5).float()
    with count(net, strict=True) as run:
        net(x)
    whole = run.counts()
    with count(net, strict=True) as run, run.batch(7, 2):
        stream = Stream(net)
        for now in x:
            stream(now[None])
    ticks = run.counts()
    for one, other in zip(whole.layers, ticks.layers, strict=True):
        assert one.name == other.name
        assert (one.sop == other.sop).all()
        assert int(one.sop.sum()) > 0
