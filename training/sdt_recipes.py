"""Spike-driven Transformer: Yao et al. 2023, "Spike-driven Transformer", arXiv:2307.01694, and the settings of
BICLab/Spike-Driven-Transformer, commit 3faa822."""

from __future__ import annotations

from spikeloom.training.published import cifar, events
from spikeloom.training.recipe import Recipe
from spikeloom.training.recipes import recipe


@recipe
def sdt_cifar10_paper() -> Recipe:
    """Spike-driven Transformer-2-512 on CIFAR-10 as published (the paper's accuracy: 95.6 %)."""
    return _cifar("cifar10")


@recipe
def sdt_cifar100_paper() -> Recipe:
    """Spike-driven Transformer-2-512 on CIFAR-100 as published (the paper's accuracy: 78.4 %)."""
    return _cifar("cifar100")


@recipe
def sdt_cifar10dvs_paper() -> Recipe:
    """Spike-driven Transformer-2-256 on CIFAR10-DVS, T = 16 (the paper's accuracy: 80.0 %).

    Our reconstruction: the loss (TET) and float32 are the authors'; the other settings are those of Spikformer for
    event frames. Users of the authors' code did not reach its number easily, and were told to train longer.
    """
    return events("cifar10_dvs", "sdt_dvs_2_256", lr=1e-3, min_lr=1e-5, epochs=96, loss="tet", bf16=False)


def _cifar(name: str) -> Recipe:
    return cifar(name, "sdt_cifar_2_512", lr=3e-4, warmup_lr=1e-6, epochs=300, erase=0.0, batch_size=64, bf16=False)
