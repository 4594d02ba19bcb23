"""Networks with learned delays in the trainer: their optimiser, and what changes with every epoch.

Adam with the groups of models/delay_schedule.py; rates, beta1 and the width of the kernels are those of its
`DelaySchedule`, by epoch. Rates of a captured optimiser are tensors and widths are parameters, which are written where
they are; beta1 is a number, and part of the graph, so steps are captured anew when it changes. In the last epochs
delays may be whole numbers already, so that weights and normalisations settle in the form that the network is used in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.models import DelaySchedule, DelaySNN
from spikeloom.models.delay_schedule import parameter_groups
from spikeloom.synapses import DelayConv1d
from spikeloom.synapses.dcls_kernel import WIDTHS
from spikeloom.training.graph import WARMUP
from spikeloom.training.optim_settings import Optim

FEWEST = 4
"""Epochs of a schedule; a shorter training has the first ones of it."""


def delay_schedule(config: Optim, epochs: int, model: nn.Module | None = None) -> DelaySchedule:
    """The schedule of a training; without a model that of the rates alone.

    Raises:
        ValueError: more epochs with whole delays than there are, as when a recipe is shortened.
    """
    if model is not None and config.whole_epochs > epochs:
        raise ValueError(
            f"Optim.whole_epochs is {config.whole_epochs} of {epochs} epochs, so that delays would never be trained; "
            "expected less. Lower it (--optim.whole-epochs 0: as published), or train longer."
        )
    sigma, version = None, "gauss"
    if isinstance(model, DelaySNN) and model.config.delays == "learned" and model.config.version in WIDTHS:
        sigma, version = model.config.first_sigma, model.config.kernel_version
    if sigma == 0:
        sigma = None
    return DelaySchedule(
        max(epochs, FEWEST),
        config.lr,
        config.position_factor,
        sigma,
        version,
        config.sigma_epochs,
        config.cycle_momentum,
    )


def make_adam(model: nn.Module, config: Optim, capturable: bool) -> torch.optim.Adam:
    """Adam for a network with delays; see `make_optimizer`."""
    groups: list[dict[str, Any]] = parameter_groups(model, config.lr, config.weight_decay, config.position_factor)
    if not capturable:
        return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    device = groups[0]["params"][0].device
    shared = torch.tensor(config.lr, dtype=torch.float32, device=device)
    for group in groups:
        group["lr"] = shared.clone() if has_own_rate(group) else shared
    return torch.optim.Adam(groups, lr=shared, betas=config.betas, eps=config.eps, fused=True, capturable=True)


def has_own_rate(group: dict[str, Any]) -> bool:
    """Whether a group's learning rate is another one than that of a step."""
    return group.get("name") == "positions"


def begin_epoch(
    schedule: DelaySchedule, epoch: int, model: nn.Module, optimizer: torch.optim.Adam, whole: bool = False
) -> int:
    """Put the values of an epoch in place, but for the rate of the weights, which every step sets.

    Args:
        whole: delays are whole numbers from here on, and stay as they are.

    Returns:
        How many steps are to run as they are before one is captured anew; 0: what was captured still holds.
    """
    values, changed = schedule.at(epoch), 0
    if whole and isinstance(model, DelaySNN):
        values = replace(values, position_lr=0.0, sigma=None)
        if not all(map(_is_whole, model.delayed())):
            changed = WARMUP
            model.round_()
    for group in optimizer.param_groups:
        if has_own_rate(group):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(values.position_lr)
            else:
                group["lr"] = values.position_lr
        elif schedule.cycle_momentum:
            betas = values.beta1, group["betas"][1]
            changed = max(changed, int(tuple(group["betas"]) != betas))
            group["betas"] = betas
    if values.sigma is not None and isinstance(model, DelaySNN):
        for layer in model.delayed():
            layer.set_sigma_(values.sigma)
    return changed


def _is_whole(layer: DelayConv1d) -> bool:
    """Whether `round_positions_` would change nothing."""
    one_tap = layer.SIG is None or (layer.version == "max" and not bool(layer.SIG.any()))
    return one_tap and bool((layer.P.round() == layer.P).all())
