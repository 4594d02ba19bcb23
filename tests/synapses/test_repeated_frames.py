"""Frames that are one image in memory, whose gradients are asked for: each step has its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from spikeloom.models.maxformer import IMAGENET, MaxFormer
from spikeloom.synapses import Conv2d, NormNeuron, SpikeConv2d, channels_last

T = 3


def maxformer() -> nn.Module:
    config = replace(IMAGENET, embed_dim=32, num_heads=2, depths=(1, 1, 1), num_classes=3, input_size=(32, 32), T=T)
    net = MaxFormer(config)
    for module in net.modules():
        if isinstance(module, NormNeuron | nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)
    return net


class Last(nn.Sequential):
    """Behind `channels_last`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(channels_last(x))


NETS: dict[str, Callable[[], nn.Module]] = {
    "Conv2d": lambda: Conv2d(3, 4, 3, padding=1),
    "SpikeConv2d": lambda: SpikeConv2d(3, 4, 3, padding=1),
    "channels_last": lambda: Last(Conv2d(3, 4, 3, padding=1)),
    "channels_last alone": Last,
    "MaxFormer": maxformer,
}


@pytest.mark.parametrize("name", NETS)
def test_every_step_has_its_gradient(name: str) -> None:
    torch.manual_seed(0)
    net = NETS[name]().double()
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64).round()
    repeated = image.expand(T, *image.shape).detach().requires_grad_()
    assert repeated.stride(0) == 0
    copied = repeated.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    found = []
    for frames in (repeated, copied):
        y = net(frames)
        weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        found.append((y, *torch.autograd.grad((y * weights).sum(), frames)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
    gradient = found[1][1]
    assert (gradient[1:] != gradient[0]).any()
