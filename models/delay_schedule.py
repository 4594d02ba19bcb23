"""How the delay networks are trained: groups of parameters, and learning rates and widths by epoch in closed form.

With e = 0 ... epochs - 1 and ann(a, b, q) = b + (a - b) (1 + cos(pi q)) / 2, e1 = 0.3 epochs - 1, e2 = epochs - 1:

    weights      ann(lr / 5, 5 lr, e / e1) up to e1, then ann(5 lr, lr 2e-5, (e - e1) / (e2 - e1))  ("one cycle")
    beta1        the same with 0.95, 0.85, 0.95
    positions    100 lr (1 + cos(pi e / epochs)) / 2
    sigma        start (end / start)^(min(e, f) / f), f = epochs // 4; end 0.23 for gauss, 1 for max

After every step of the optimisers: `model.settle_()`, which clamps positions and keeps absent synapses at 0.

Paper: Hammouamri, Khalfaoui-Hassani, Masquelier 2024, arXiv:2306.17670, section 4 and its code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from spikeloom.models.delay_neurons import SynapseFilter
from spikeloom.neurons import Neuron
from spikeloom.synapses.dcls import Elements

END_SIGMA = {"gauss": 0.23, "max": 1.0}


def parameter_groups(
    model: nn.Module,
    lr: float = 1e-3,
    weight_decay: float = 1e-5,
    position_factor: float = 100.0,
    train_filters: bool = False,
) -> list[dict[str, Any]]:
    """Groups for `torch.optim.Adam`: weights, time constants, the rest (normalisations, biases), positions.

    Args:
        lr: of all but positions, which have `position_factor` times it.
        weight_decay: of weights and time constants (added to the gradient, as Adam does).
        train_filters: also the time constants of synapse filters, which the published code leaves out of every group.

    Returns:
        Groups with the key `name`; the last one is that of the positions. Groups without parameters are left out.
    """
    names = ("weights", "time constants", "norms and biases", "positions")
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in names}
    for module in model.modules():
        for key, value in module.named_parameters(recurse=False):
            if not value.requires_grad or (isinstance(module, SynapseFilter) and not train_filters):
                continue
            if isinstance(module, Elements) and key == "P":
                groups["positions"].append(value)
            elif isinstance(module, (Elements, nn.Linear)) and key == "weight":
                groups["weights"].append(value)
            else:
                groups["time constants" if isinstance(module, Neuron) else "norms and biases"].append(value)
    decays = {"weights": weight_decay, "time constants": weight_decay}
    return [
        {
            "name": name,
            "params": params,
            "lr": lr * (position_factor if name == "positions" else 1),
            "weight_decay": decays.get(name, 0.0),
        }
        for name, params in groups.items()
        if params
    ]


@dataclass(frozen=True)
class Values:
    """What holds during an epoch: learning rates, beta1 of the weights' Adam, width (None: the model has none)."""

    lr: float
    position_lr: float
    beta1: float
    sigma: float | None


@dataclass(frozen=True)
class DelaySchedule:
    """The schedule of a training of so many epochs.

    lr: base rate. position_factor: as in `parameter_groups`. sigma: the width at the start; None: no widths. version:
    of the kernel, for the width at the end. sigma_epochs: after which the width is constant; None: epochs // 4.
    cycle_momentum: whether beta1 follows (the default of torch's one-cycle schedule, and published).
    """

    epochs: int
    lr: float = 1e-3
    position_factor: float = 100.0
    sigma: float | None = None
    version: str = "gauss"
    sigma_epochs: int | None = None
    cycle_momentum: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 4:
            raise ValueError(f"DelaySchedule.epochs is {self.epochs}; expected >= 4, for a rise and a fall.")
        if self.sigma is not None and (self.sigma <= 0 or self.version not in END_SIGMA):
            raise ValueError(
                f"DelaySchedule: sigma={self.sigma}, version={self.version!r}; expected a width > 0 and one of "
                f"{', '.join(END_SIGMA)}, or sigma=None for kernels that have no widths or keep theirs."
            )

    def at(self, epoch: int) -> Values:
        """The values of epoch 0 ... epochs - 1.

        Raises:
            ValueError: an epoch outside.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"DelaySchedule.at({epoch}): expected an epoch from 0 to {self.epochs - 1}.")
        rise, last = 0.3 * self.epochs - 1, self.epochs - 1
        start, peak, end = self.lr / 5, 5 * self.lr, self.lr * 2e-5
        if epoch <= rise:
            share = epoch / rise
            lr, beta1 = _anneal(start, peak, share), _anneal(0.95, 0.85, share)
        else:
            share = (epoch - rise) / (last - rise)
            lr, beta1 = _anneal(peak, end, share), _anneal(0.85, 0.95, share)
        positions = _anneal(self.position_factor * self.lr, 0.0, epoch / self.epochs)
        return Values(lr, positions, beta1 if self.cycle_momentum else 0.9, self._sigma(epoch))

    def apply(self, epoch: int, model: nn.Module, *optimizers: Optimizer) -> Values:
        """Set the values of an epoch in groups made by `parameter_groups`, in one optimiser or several, and in SIG."""
        values = self.at(epoch)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            if group["name"] == "positions":
                group["lr"] = values.position_lr
            else:
                group["lr"] = values.lr
                group["betas"] = (values.beta1, group["betas"][1])
        if values.sigma is not None:
            for layer in model.modules():
                if isinstance(layer, Elements):
                    layer.set_sigma_(values.sigma)
        return values

    def _sigma(self, epoch: int) -> float | None:
        length = self.epochs // 4 if self.sigma_epochs is None else self.sigma_epochs
        end = END_SIGMA.get(self.version, 0.0)
        if self.sigma is None or self.sigma <= end or length == 0:
            return self.sigma
        return float(self.sigma * (end / self.sigma) ** (min(epoch, length) / length))


def _anneal(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
