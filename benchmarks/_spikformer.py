"""Spikformer-4-384 for 32 x 32 images (Zhou et al. 2023), written plainly, as a load for measurements."""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.synapses import Conv2d, Linear, MaxPool2d, NormNeuron


class Patches(nn.Module):
    """Convolutional stem: [T, B, 3, 32, 32] -> tokens [T, B, 64, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widths = [3, dim // 8, dim // 4, dim // 2, dim]
        stages: list[nn.Module] = []
        for index in range(4):
            stages += [
                Conv2d(widths[index], widths[index + 1], 3, padding=1, bias=False),
                NormNeuron(widths[index + 1], LIF()),
                MaxPool2d(3, 2, 1) if index >= 2 else nn.Identity(),
            ]
        self.stages = nn.Sequential(*stages)
        self.position = nn.Sequential(Conv2d(dim, dim, 3, padding=1, bias=False), NormNeuron(dim, LIF()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(x)
        x = self.position(x) + x
        return x.flatten(3).transpose(2, 3)


class Norm(nn.Module):
    """Linear -> BatchNorm -> LIF over tokens [T, B, N, D]."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.linear = Linear(inside, outside)
        self.fire = NormNeuron(outside, LIF())

    def forward(self, x: Tensor) -> Tensor:
        return self.fire(self.linear(x).transpose(2, 3)).transpose(2, 3)


class Block(nn.Module):
    """Spiking self-attention and MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (Norm(dim, dim) for _ in range(3))
        self.fire = LIF(v_threshold=0.5)
        self.project = Norm(dim, dim)
        self.mlp = nn.Sequential(Norm(dim, 4 * dim), Norm(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(2, 3).contiguous() for layer in (self.q, self.k, self.v)
        )
        mixed = (q @ k.transpose(-1, -2)) @ v * 0.125
        x = x + self.project(self.fire(mixed.transpose(2, 3).flatten(3)))
        return x + self.mlp(x)


class Spikformer(nn.Module):
    """Logits [T, B, classes] of [T, B, 3, 32, 32]."""

    def __init__(self, dim: int = 384, depth: int = 4, heads: int = 12, classes: int = 10) -> None:
        super().__init__()
        self.patches = Patches(dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.head = Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x)).mean(2))
