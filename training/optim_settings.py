"""Settings of the optimiser and of its learning rates."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

UNPREFIXED = tyro.conf.arg(prefix_name=False)
"""--root instead of --data.root."""


@dataclass(frozen=True)
class Optim:
    """AdamW (Loshchilov & Hutter 2019), linear warm-up, cosine decay, cooldown at the lowest rate.

    schedule="delays": Adam, whose weight decay is added to the gradient, with the rates of models/delay_schedule.py.
    """

    lr: Annotated[float, UNPREFIXED] = 2e-3
    """Peak learning rate; schedule=delays: a fifth of it."""
    weight_decay: float = 0.05
    """Of weight matrices and kernels; biases, normalisations and neurons are not decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the averages of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the root of the average of the squares."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up."""
    warmup_lr: float = 0.0
    """Learning rate before the warm-up."""
    final_lr: float = 0.0
    """Lowest learning rate, as a fraction of the peak."""
    min_lr: float | None = None
    """Lowest learning rate itself, instead of final_lr."""
    cooldown_epochs: float = 0.0
    """The last so many epochs have the lowest rate."""
    schedule: Literal["step", "epoch", "token", "delays"] = "step"
    """The rate changes with every step, and the cosine follows the warm-up; or with every epoch, and the cosine runs
    behind the warm-up, from the first epoch on, as in timm. token: that of RWKV and SpikeGPT, by tokens trained on;
    warm-up from the lowest rate, the very first step at the peak. delays: that of networks with learned delays, by
    epoch: one cycle for weights, a cosine for positions, and a width of the kernels that falls (docs/delays.md)."""
    position_factor: float = 100.0
    """schedule=delays: learning rate of the positions (delays), in units of lr."""
    sigma_epochs: int | None = None
    """schedule=delays: epochs in which the width of the kernels falls; None: a quarter of all."""
    whole_epochs: int = 0
    """schedule=delays: in the last so many epochs delays are whole numbers already, as in inference, and the weights
    alone are trained. Published: 0, so that a network is used in another form than it was trained in."""
    cycle_momentum: bool = True
    """schedule=delays: the first beta runs from 0.95 to 0.85 and back, and betas[0] changes nothing."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient of all parameters together; None: no clipping."""

    def __post_init__(self) -> None:
        check_field(self, "lr", self.lr > 0, "> 0")
        check_field(self, "weight_decay", self.weight_decay >= 0, ">= 0")
        check_field(self, "betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1")
        check_field(self, "eps", self.eps > 0, "> 0")
        check_field(self, "warmup_epochs", self.warmup_epochs >= 0, ">= 0")
        check_field(self, "warmup_lr", self.warmup_lr >= 0, ">= 0")
        check_field(self, "final_lr", 0 <= self.final_lr <= 1, "0 to 1")
        check_field(self, "min_lr", self.min_lr is None or 0 <= self.min_lr <= self.lr, "0 to lr, or None")
        check_field(self, "cooldown_epochs", self.cooldown_epochs >= 0, ">= 0")
        check_field(self, "clip_norm", self.clip_norm is None or self.clip_norm > 0, "> 0 or None")
        check_field(self, "position_factor", self.position_factor > 0, "> 0")
        check_field(self, "whole_epochs", self.whole_epochs >= 0, ">= 0")
        check_field(self, "sigma_epochs", self.sigma_epochs is None or self.sigma_epochs >= 0, ">= 0 or None")
        if self.schedule == "token":
            lowest = self.final_lr if self.min_lr is None else self.min_lr
            check_field(self, "final_lr" if self.min_lr is None else "min_lr", lowest > 0, "> 0 with schedule='token'")
            check_field(
                self, "warmup_lr", self.warmup_lr == 0, "0 with schedule='token': its warm-up is from the lowest rate"
            )
            check_field(self, "cooldown_epochs", self.cooldown_epochs == 0, "0 with schedule='token'")
        self._check_idle()

    def _check_idle(self) -> None:
        """Refuse settings of another schedule, which would change nothing."""
        delays = self.schedule == "delays"
        others = ("warmup_epochs", "warmup_lr", "final_lr", "min_lr", "cooldown_epochs")
        names = others if delays else ("position_factor", "sigma_epochs", "whole_epochs", "cycle_momentum")
        plain = {entry.name: entry.default for entry in fields(self)}
        idle = [name for name in names if getattr(self, name) != plain[name]]
        if idle:
            wanted = ", ".join(f"{name}={plain[name]!r}" for name in idle)
            raise ValueError(
                f"Optim.schedule is {self.schedule!r}, in which {', '.join(idle)} changes nothing; expected {wanted}."
            )


def check_field(config: object, name: str, holds: bool, wanted: str) -> None:
    """Raise unless a setting holds; `wanted` says what is expected."""
    if not holds:
        raise ValueError(f"{type(config).__name__}.{name} is {getattr(config, name)!r}; expected {wanted}.")
