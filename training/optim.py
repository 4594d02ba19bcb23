"""AdamW with decay groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from spikeloom.neurons import Neuron
from spikeloom.training.recipe import Optim


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights of two or more axes decay; biases, normalisations and all parameters of neurons do not."""
    of_neurons = {id(p) for module in model.modules() if isinstance(module, Neuron) for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in of_neurons]
    chosen = {id(p) for p in decayed}
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in chosen], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, config: Optim) -> torch.optim.AdamW:
    """AdamW over the model's parameters."""
    return torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr, betas=config.betas)


def learning_rate(step: int, steps: int, steps_per_epoch: int, config: Optim) -> float:
    """Rate of step 0 .. steps - 1: linear warm-up, half a cosine from `lr` to the lowest rate, cooldown at that.

    Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", eq. 5, without restarts.
    """
    if config.schedule == "epoch":
        return _by_epoch(step // steps_per_epoch, -(-steps // steps_per_epoch), config)
    last = max(steps - round(config.cooldown_epochs * steps_per_epoch), 0)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps)
    if step < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * (step + 1) / warmup
    progress = min((step - warmup) / max(last - warmup, 1), 1.0)
    return _cosine(progress, config)


def _by_epoch(epoch: int, epochs: int, config: Optim) -> float:
    """Rate of an epoch as in timm: the first one has `warmup_lr`, and the cosine began with it, behind the warm-up."""
    if epoch < config.warmup_epochs:
        return config.warmup_lr + (config.lr - config.warmup_lr) * epoch / config.warmup_epochs
    return _cosine(min(epoch / max(epochs - config.cooldown_epochs, 1), 1.0), config)


def _cosine(progress: float, config: Optim) -> float:
    """Half a cosine: `lr` at 0, the lowest rate at 1."""
    low = config.final_lr * config.lr if config.min_lr is None else config.min_lr
    return low + (config.lr - low) * (1 + math.cos(math.pi * progress)) / 2
