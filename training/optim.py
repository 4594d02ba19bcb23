"""AdamW with decay groups (for learned delays Adam), and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.neurons import Neuron
from spikeloom.training.delay_steps import delay_schedule, has_own_rate, make_adam
from spikeloom.training.optim_settings import Optim
from spikeloom.training.token_schedule import rate_at_token


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights of two or more axes decay; biases, normalisations and all parameters of neurons do not, nor
    do parameters that their module marked `_no_weight_decay` (time constants and positions, whose zero means nothing).
    """
    of_neurons = {id(p) for module in model.modules() if isinstance(module, Neuron) for p in module.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    free = of_neurons | {id(p) for p in trained if getattr(p, "_no_weight_decay", False)}
    decayed = [p for p in trained if p.ndim >= 2 and id(p) not in free]
    chosen = {id(p) for p in decayed}
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) not in chosen], "weight_decay": 0.0},
    ]


def make_optimizer(model: nn.Module, config: Optim, capturable: bool | None = None) -> torch.optim.Adam:
    """AdamW over the model's parameters; Adam where the schedule is that of delays.

    capturable: one kernel for all parameters, and the learning rate is a tensor beside them, so that a step may be part
        of a CUDA graph; None: if the parameters are on a CUDA device.
    """
    device = next((p.device for p in model.parameters() if p.requires_grad), torch.device("cpu"))
    capturable = device.type == "cuda" if capturable is None else capturable
    if config.schedule == "delays":
        return make_adam(model, config, capturable)
    groups = parameter_groups(model, config.weight_decay)
    if not capturable:
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    rate = torch.tensor(config.lr, dtype=torch.float32, device=device)
    return torch.optim.AdamW(groups, lr=rate, betas=config.betas, eps=config.eps, fused=True, capturable=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups; the tensor of a capturable optimizer, which they share, is written.

    The positions of delays have a rate of their own, which changes by epoch (delay_steps.py).
    """
    shared = optimizer.param_groups[0]["lr"]
    if isinstance(shared, Tensor):
        shared.fill_(rate)
        return
    for group in optimizer.param_groups:
        if not has_own_rate(group):
            group["lr"] = rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What `load_optimizer_state` takes; rates are numbers."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load averages, counters and rates; how a step is computed stays as it is here, and so does the rate's tensor."""
    rates = [group["lr"] for group in optimizer.param_groups]
    own = {name: optimizer.defaults[name] for name in ("fused", "capturable", "foreach")}
    optimizer.load_state_dict({**state, "param_groups": [{**group, **own} for group in state["param_groups"]]})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):
            rate.fill_(float(group["lr"]))
            group["lr"] = rate
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                values[name] = in_memory_as(value, parameter)


def in_memory_as(value: Tensor, like: Tensor) -> Tensor:
    """The same values with the strides of a tensor of the same shape, which fused kernels ask for."""
    if value.stride() == like.stride():
        return value
    return torch.empty_like(like, dtype=value.dtype).copy_(value)


def learning_rate(step: int, steps: int, steps_per_epoch: int, config: Optim) -> float:
    """Rate of step 0 .. steps - 1: linear warm-up, half a cosine from `lr` to the lowest rate, cooldown at that.

    Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", eq. 5, without restarts.
    """
    if config.schedule == "epoch":
        return _by_epoch(step // steps_per_epoch, -(-steps // steps_per_epoch), config)
    if config.schedule == "delays":
        return delay_schedule(config, -(-steps // steps_per_epoch)).at(step // steps_per_epoch).lr
    if config.schedule == "token":
        return _by_token(step, steps, min(round(config.warmup_epochs * steps_per_epoch), steps), config)
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


def _by_token(step: int, steps: int, warmup: int, config: Optim) -> float:
    """Rate by tokens: every step has equally many, so steps are counted; the first one is made before any count."""
    return config.lr if step == 0 else rate_at_token(step, config.lr, _lowest(config), warmup, steps)


def _lowest(config: Optim) -> float:
    return config.final_lr * config.lr if config.min_lr is None else config.min_lr


def _cosine(progress: float, config: Optim) -> float:
    """Half a cosine: `lr` at 0, the lowest rate at 1."""
    low = _lowest(config)
    return low + (config.lr - low) * (1 + math.cos(math.pi * progress)) / 2
