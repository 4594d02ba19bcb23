"""Small ANNs with statistics of their own, for the tests of conversion."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def settled(net: nn.Module, images: Tensor) -> nn.Module:
    """The network in evaluation, its batch normalisations with the statistics of these images."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.reset_running_stats()
    net.train()
    with torch.no_grad():
        net(images)
    return net.eval()


class Mixed(nn.Module):
    """Every way to write a ReLU, a shared module, a residual addition, a concatenation, pools, and a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.again = nn.BatchNorm2d(6)
        self.side = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(12 * 4, 10)
        self.last = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.conv(x))))
        y = F.relu(self.side(x))
        x = self.relu(self.again(y + x))
        x = torch.cat([x, torch.relu(self.side(x))], 1)
        x = F.max_pool2d(x, 2)
        x = F.dropout(x, training=self.training)
        x = x.view(x.size(0), -1)
        logits: Tensor = self.last(self.hidden(x).relu().clamp(0, 2.5))
        return logits


def mixed() -> tuple[nn.Module, Tensor]:
    """The network and 64 images [64, 3, 8, 8]."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, 8, 8)
    return settled(Mixed(), images), images
