"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """a <- d a + (1 - d) w after every step, for floating-point parameters and buffers; other buffers are copied.

    The decay d is lower in the first steps, d = min(decay, (1 + n) / (10 + n)), so that the average forgets the initial
    weights (as in TensorFlow's ExponentialMovingAverage).

    It follows the tensors that the model has now: move the model to its device before.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        own = model.state_dict()
        self.weights = {name: value.detach().clone() for name, value in own.items()}
        floating = [name for name, value in own.items() if value.is_floating_point()]
        others = [name for name in own if name not in set(floating)]
        self._averages, self._sources = [self.weights[name] for name in floating], [own[name] for name in floating]
        self._copies, self._copied = [self.weights[name] for name in others], [own[name] for name in others]

    @property
    def weight(self) -> float:
        """Share 1 - d of the weights in the next update."""
        return 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        if self._averages:
            torch._foreach_lerp_(self._averages, self._sources, self.weight)
        self._copy()
        self.updates += 1

    @torch.no_grad()
    def blend(self, weight: Tensor) -> None:
        """Take in the weights with the share that a scalar tensor holds, 0 for not at all, and do not count the update.

        Nothing waits for the device: the share may be written before each replay of a graph.
        """
        if self._averages:
            # foreach_lerp_ takes a share that is a number; one tensor for each weight would be a launch for each
            change = torch._foreach_sub(self._sources, self._averages)
            torch._foreach_mul_(change, weight)
            torch._foreach_add_(self._averages, change)
        self._copy()

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a saved average."""
        for name, value in weights.items():
            self.weights[name].copy_(value)
        self.updates = updates

    def _copy(self) -> None:
        if self._copies:
            torch._foreach_copy_(self._copies, self._copied)
