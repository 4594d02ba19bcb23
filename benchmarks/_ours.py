"""spikeloom's side: one implementation per section, and its training step as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _cases import Case
from torch import Tensor

from spikeloom.neurons import ALIF, IF, LIF, PLIF, Neuron
from spikeloom.synapses.norm_neuron import NormNeuron

NEURONS: dict[str, Callable[[], Neuron]] = {"lif": LIF, "bn_lif": LIF, "if": IF, "plif": PLIF, "alif": ALIF}


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Implementation:
    """A way to compute spikes [T, ...] from x [T, ...], starting from rest.

    Args:
        reset: forgets what the last call left behind; runs outside the timed part.
        parameters: their gradients are cleared outside the timed part.
        compiles: the first call compiles, which may take long.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    reset: Callable[[], Any] = _nothing
    parameters: tuple[Tensor, ...] = ()
    compiles: bool = False


def ours(case: Case, device: torch.device) -> Implementation:
    """The module of a section with its default parameters (tau 2, threshold 1, hard reset, sigmoid, alpha 4)."""
    neuron = NEURONS[case.section]()
    module = NormNeuron(case.shape[2], neuron) if case.normed else neuron
    module.to(device)
    return Implementation("spikeloom", module, parameters=tuple(module.parameters()))


class Pass:
    """Forward without gradients, or forward and backward, of one implementation on one input."""

    def __init__(self, implementation: Implementation, x: Tensor, train: bool) -> None:
        self.implementation = implementation
        self.x = x
        self.train = train
        self._cotangents: dict[torch.dtype, Tensor] = {}

    def prepare(self) -> None:
        """Back to the state before the call; not timed."""
        self.implementation.reset()
        for tensor in (self.x, *self.implementation.parameters):
            tensor.grad = None

    def call(self) -> None:
        """What is timed."""
        if not self.train:
            with torch.no_grad():
                self.implementation.run(self.x)
            return
        spikes = self.implementation.run(self.x)
        spikes.backward(self._cotangent(spikes))

    def _cotangent(self, spikes: Tensor) -> Tensor:
        """Gaussian, drawn at the first (warm-up) call; snnTorch's spikes are float32 for a bfloat16 input."""
        held = self._cotangents.get(spikes.dtype)
        if held is None:
            held = self._cotangents[spikes.dtype] = torch.randn_like(spikes)
        return held
