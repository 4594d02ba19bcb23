"""Spikformer as published: Zhou et al. 2023, arXiv:2209.15425, settings of ZK-Zhou/spikformer, commit 6212689."""

from __future__ import annotations

from spikeloom.training.published import cifar, events
from spikeloom.training.recipe import Recipe
from spikeloom.training.recipes import recipe

_MODEL, _EVENT_MODEL = "spikformer_cifar_4_384", "spikformer_dvs_2_256"


@recipe
def spikformer_cifar10_paper() -> Recipe:
    """Spikformer-4-384 on CIFAR-10 as published (the paper's accuracy: 95.19 %, after 300 epochs)."""
    return _cifar("cifar10")


@recipe
def spikformer_cifar100_paper() -> Recipe:
    """Spikformer-4-384 on CIFAR-100 as published (the paper's accuracy: 77.86 %, after 300 epochs)."""
    return _cifar("cifar100")


@recipe
def spikformer_cifar10dvs_paper() -> Recipe:
    """Spikformer-2-256 on CIFAR10-DVS, T = 16, as published (the paper's accuracy: 80.9 %)."""
    return events("cifar10_dvs", _EVENT_MODEL, lr=1e-3, min_lr=1e-5, epochs=96)


@recipe
def spikformer_gesture_paper() -> Recipe:
    """Spikformer-2-256 on DVS128 Gesture, T = 16 (the paper's accuracy: 98.3 %).

    The published settings for event frames; a number of epochs of its own is known for QKFormer's alone. A mirrored
    recording of a left hand is one of a right hand: --augment.flip 0 leaves that out.
    """
    return events("dvs_gesture", _EVENT_MODEL, lr=1e-3, min_lr=1e-5, epochs=96)


def _cifar(name: str) -> Recipe:
    """RandAugment draws from the five operations that these scripts leave of timm's list."""
    return cifar(name, _MODEL, lr=5e-4, warmup_lr=1e-5, epochs=300, erase=0.25, operations="five", batch_size=128)
