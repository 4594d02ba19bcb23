"""The networks of conversion.py: ResNet-18 for small images, and QCFS activations that train in half precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from spikeloom.conversion import QCFS, convert, with_qcfs
from spikeloom.conversion.qcfs import SMALLEST

STAGES = 4


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: `[B, C, H, W]` -> `[B, D, H / stride, W / stride]`."""

    def __init__(self, C: int, D: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, D, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(D)
        self.conv2 = nn.Conv2d(D, D, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(D)
        self.shortcut = nn.Sequential()
        if stride != 1 or C != D:
            self.shortcut = nn.Sequential(nn.Conv2d(C, D, 1, stride, bias=False), nn.BatchNorm2d(D))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem of stride 1 and no max pool: images `[B, C, H, W]` -> logits `[B, K]`."""

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks = []
        C = width
        for stage in range(STAGES):
            D = width * 2**stage
            blocks += [Block(C, D, 1 if stage == 0 else 2), Block(D, D, 1)]
            C = D
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(C, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        return self.head(self.pool(x).flatten(1))


class _Quantise(torch.autograd.Function):
    """QCFS and its gradients in the dtype of x; the sum of theta's gradient in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, theta: Tensor, levels: int) -> Tensor:
        h = (x * (levels / theta)).add_(0.5).floor_().clamp_(0, levels).mul_(theta / levels)
        ctx.save_for_backward(x, h, theta)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, h, theta = ctx.saved_tensors
        (grad,) = grads
        clipped = x.clamp(min=0).minimum(theta.to(x.dtype))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        inside = (h - clipped).mul_(grad).sum(dtype=wide) / theta
        above = (grad * (x >= theta)).sum(dtype=wide)
        return grad * (clipped == x), (inside + above).to(theta.dtype), None


class QuickQCFS(QCFS):
    """QCFS whose training step stays in the dtype of its input; the same function in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        h: Tensor = _Quantise.apply(x, self.thresh.clamp(min=SMALLEST).squeeze(0), self.L)
        return h


def quantised(ann: nn.Module, levels: int, images: Tensor) -> fx.GraphModule:
    """A copy of a ReLU network with QCFS activations, to be trained on.

    Thresholds start where `levels` levels have the least squared error on calibration images `[N, C, H, W]`.
    """
    rows = convert(ann, [images], method="mse", T=levels).report.layers
    net = with_qcfs(ann, L=levels)
    for number, row in enumerate(rows):
        quick = QuickQCFS(levels, max(row.threshold, SMALLEST)).to(images.device)
        setattr(net, f"qcfs_{number}", quick)
    return net
