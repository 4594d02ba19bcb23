"""A small spiking classifier that needs several steps to be sure: noisy frames of patterns, IF neurons, a read-out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeloom.neurons import IF
from spikeloom.synapses import Linear

CLASSES, WIDTH = 5, 20


def network() -> nn.Module:
    """[T, B, WIDTH] -> [T, B, CLASSES]: each group of WIDTH / CLASSES inputs votes for its class."""
    votes = torch.eye(CLASSES).repeat_interleave(WIDTH // CLASSES, dim=1)
    first, last = Linear(WIDTH, WIDTH, bias=False), Linear(WIDTH, CLASSES, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(WIDTH))
        last.weight.copy_(votes)
    return nn.Sequential(first, IF(v_threshold=1.0, v_reset=None), last).eval()


def samples(N: int, T: int = 8, seed: int = 0, noise: float = 0.8) -> tuple[Tensor, Tensor]:
    """Frames [T, N, WIDTH] and labels [N]; the noise differs between samples, so some are sure early."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (N,), generator=generator)
    pattern = torch.eye(CLASSES).repeat_interleave(WIDTH // CLASSES, dim=1)[labels]
    spread = noise * torch.rand(N, 1, generator=generator) * 2
    frames = 0.4 * pattern + 0.2 + spread * torch.randn(T, N, WIDTH, generator=generator)
    return frames, labels
