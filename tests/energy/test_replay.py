"""Counting under a CUDA graph: the same counts and outputs as in eager mode."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spikeloom.energy import count
from spikeloom.neurons import LIF
from spikeloom.synapses import AvgPool2d, Conv2d, Flatten, Linear, MaxPool2d, NormNeuron


class Net(nn.Module):
    """Direct encoding, integer residuals, attention, average pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv2d(3, 8, 3, padding=1, bias=False), NormNeuron(8, LIF()), MaxPool2d(2))
        self.block = nn.Sequential(Conv2d(8, 8, 3, padding=1, bias=False), NormNeuron(8, LIF()))
        self.head = nn.Sequential(AvgPool2d(2), Flatten(), Linear(8 * 16, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        tokens = x.flatten(3)
        mixed = tokens @ tokens.transpose(-1, -2) @ tokens
        return self.head(x) + mixed.mean((2, 3)).unsqueeze(-1)


def same(a: Any, b: Any) -> None:
    for field in fields(a):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other, err_msg=f"{a.name}.{field.name}")
        else:
            assert one == other, (a.name, field.name)


@pytest.mark.gpu
def test_replays_count_as_eager_calls_do() -> None:
    torch.manual_seed(0)
    net = Net().cuda().train()
    batches = [torch.rand(2, 3, 16, 16, device="cuda").expand(4, -1, -1, -1, -1).contiguous() for _ in range(6)]
    found = []
    with torch.no_grad():
        for frames in batches:
            net(frames)  # running statistics
        net.eval()
        for graph in (False, True):
            with count(net, cuda_graph=graph) as run:
                outputs = [net(frames) for frames in batches]
            found.append((outputs, run.counts()))
    assert "forward" not in net.__dict__
    (eager, counts), (replayed, same_counts) = found
    assert all(torch.equal(a, b) for a, b in zip(eager, replayed, strict=True))
    assert counts.samples == same_counts.samples == 12
    assert sum(int(layer.sop.sum()) for layer in counts.layers) > 0
    for a, b in zip([*counts.layers, *counts.aux], [*same_counts.layers, *same_counts.aux], strict=True):
        same(a, b)


@pytest.mark.gpu
def test_what_cannot_be_captured_says_so() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    net, x = Branch().cuda(), torch.ones(2, 3, 4, device="cuda")
    with torch.no_grad(), count(net, cuda_graph=True):
        net(x)
        net(x)
        with pytest.raises(ValueError, match="cannot be captured"):
            net(x)
    assert torch.rand(4, device="cuda").std() > 0  # a failed capture leaves the generator usable
    with count(net, cuda_graph=True), pytest.raises(ValueError, match="without gradients"):
        net(x)


def test_cuda_graph_needs_a_model_and_cuda_tensors() -> None:
    with pytest.raises(ValueError, match="give one"):
        count(cuda_graph=True)
    net = nn.Linear(4, 2)
    with torch.no_grad(), count(net, cuda_graph=True), pytest.raises(ValueError, match="CUDA tensor"):
        net(torch.ones(2, 3, 4))
    assert "forward" not in net.__dict__
