"""Threshold rules: what each layer learns from the calibration set. One object per activation site.

    max          the largest activation                                               Diehl et al., IJCNN 2015
    percentile   a quantile of the activations                                        Rueckauer et al. 2017
    mse          the best of 95 candidates max (1 - 0.01 i) for T steps               Li et al., ICML 2021
    ltb          a balance of what is clipped and what is left, layers jointly        Bu et al., CVPR 2025

`observe(current)` takes the site's input `[B, ...]` and returns what it passes on; `value()` is the threshold, `[]` or
`[C]`. No threshold is below 1e-6 (channels that never fire).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeloom.conversion.activations import ceiling
from spikeloom.conversion.choices import Settings
from spikeloom.conversion.quantiles import Quantile
from spikeloom.conversion.scaling import along

SMALLEST = 1e-6
_CHUNK = 1 << 22


def _wide(x: Tensor) -> torch.dtype:
    """A type for sums: those of a layer overflow in float16."""
    return torch.promote_types(x.dtype, torch.float32)


class Rule:
    """What the rules share: the site's activation and channel axis, and the largest threshold it allows."""

    def __init__(self, site: nn.Module, axis: int, choices: Settings) -> None:
        self.site, self.axis, self.choices = site, axis, choices
        self.batches = 0
        self.theta = torch.zeros(())

    def observe(self, current: Tensor) -> Tensor:
        """Take in a batch; returns the activation."""
        activation: Tensor = self.site(current)
        found = self.measure(activation)
        ema = self.choices.reduction == "ema" or self.choices.rule == "mse"
        if ema:
            m = self.choices.momentum
            self.theta = found if self.batches == 0 else (1 - m) * self.theta + m * found
        else:
            self.theta = self.together(found)
        self.batches += 1
        return activation

    def measure(self, activation: Tensor) -> Tensor:
        """The threshold of one batch."""
        raise NotImplementedError

    def together(self, found: Tensor) -> Tensor:
        """The threshold of all batches, `found` being that of the last."""
        raise NotImplementedError

    def value(self) -> Tensor:
        """The threshold, `[]` or `[C]`."""
        theta = (self.theta * self.choices.scale).clamp(min=SMALLEST)
        top = ceiling(self.site)
        return theta if top is None else theta.minimum(top.to(theta))

    def dims(self, x: Tensor) -> list[int]:
        """The axes that a statistic runs over."""
        axis = self.axis % x.ndim
        return [d for d in range(x.ndim) if d != axis or not self.choices.channel_wise]

    def rows(self, x: Tensor) -> Tensor:
        """`[C, N]` or `[1, N]`."""
        return x.movedim(self.axis, 0).flatten(1) if self.choices.channel_wise else x.reshape(1, -1)


class MaxRule(Rule):
    """The largest activation."""

    def measure(self, activation: Tensor) -> Tensor:
        """Of one batch."""
        return activation.amax(self.dims(activation))

    def together(self, found: Tensor) -> Tensor:
        """Of all."""
        return found if self.batches == 0 else torch.maximum(self.theta, found)


class PercentileRule(Rule):
    """A quantile of the activations, zeros included, or of those that are not 0."""

    def __init__(self, site: nn.Module, axis: int, choices: Settings) -> None:
        super().__init__(site, axis, choices)
        self.quantile = Quantile(choices.percentile / 100, choices.nonzero_only)

    def measure(self, activation: Tensor) -> Tensor:
        """Of one batch."""
        rows = self.rows(activation)
        if self.choices.reduction == "ema":
            return self._shaped(self.quantile.of_batch(rows))
        self.quantile.add(rows)
        return self._shaped(self.quantile.value())

    def together(self, found: Tensor) -> Tensor:
        """Of all: the histogram has seen them."""
        return found

    def _shaped(self, values: Tensor) -> Tensor:
        return values if self.choices.channel_wise else values[0]


class MSERule(Rule):
    """The first candidate with the smallest mean squared error of a plain floor with T levels; always an EMA."""

    def measure(self, activation: Tensor) -> Tensor:
        """Of one batch."""
        dims, T = self.dims(activation), self.choices.T
        activation = activation.to(_wide(activation))
        largest = activation.amax(dims)
        best, least = largest, torch.full_like(largest, torch.inf)
        for i in range(95):
            theta = largest * (1 - 0.01 * i)
            safe = along(theta.clamp(min=SMALLEST), activation, self.axis)
            levels = (activation * T / safe).floor_().clamp_(0, T)
            error = (levels * safe / T - activation).square_().mean(dims)
            better = error < least
            best, least = torch.where(better, theta, best), torch.where(better, error, least)
        return best


class LTBRule(Rule):
    """theta <- max(theta + 2 mean(relu(a - theta)), 1e-6) at every batch; min(relu(a), theta) goes on."""

    def observe(self, current: Tensor) -> Tensor:
        """Take in a batch; returns the activation, clipped at the updated threshold."""
        dims = self.dims(current)
        if self.batches == 0:
            C = current.shape[self.axis]
            self.theta = current.new_zeros([C] if self.choices.channel_wise else [], dtype=_wide(current))
        step = max(1, _CHUNK // max(current[0].numel(), 1))
        over = torch.zeros_like(self.theta)
        for part in current.split(step):  # no copy of the whole layer
            over += (part.to(over.dtype) - along(self.theta, part, self.axis)).relu_().sum(dims)
        count = current.numel() // self.theta.numel()
        self.theta = (self.theta + 2 * over / count).clamp(min=SMALLEST)
        self.batches += 1
        limit = along(self.value().to(current.dtype), current, self.axis)
        return torch.clamp(current, torch.zeros_like(limit), limit)


class KnownRule(Rule):
    """The site's own threshold."""

    def observe(self, current: Tensor) -> Tensor:
        """Nothing to learn."""
        self.batches += 1
        activation: Tensor = self.site(current)
        return activation

    def value(self) -> Tensor:
        """The threshold."""
        top = ceiling(self.site)
        assert top is not None
        return top * self.choices.scale


RULES: dict[str, type[Rule]] = {"max": MaxRule, "percentile": PercentileRule, "mse": MSERule, "ltb": LTBRule}


def rule_for(site: nn.Module, axis: int, choices: Settings) -> Rule:
    """The rule of a site."""
    if choices.rule == "known" or (choices.rule == "known or ltb" and ceiling(site) is not None):
        return KnownRule(site, axis, choices)
    return RULES[choices.rule.removeprefix("known or ")](site, axis, choices)
