"""Who counts as watching operators, and that tracing records the operators themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from spikeloom.kernels.op import dispatched
from spikeloom.neurons import LIF, PLIF
from spikeloom.synapses import NormNeuron


class Both(AbstractContextManager[None]):
    """A default device around a function mode."""

    def __enter__(self) -> None:
        self.modes = torch.device("cpu"), TorchFunctionMode()
        for mode in self.modes:
            mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(*error)


CONTEXTS: dict[str, tuple[Callable[[], Any], bool]] = {
    "nothing": (nullcontext, False),
    "default device": (lambda: torch.device("cpu"), False),
    "function mode": (TorchFunctionMode, True),
    "both": (Both, True),
    "dispatch mode": (lambda: FlopCounterMode(display=False), True),
    "forward mode": (forward_ad.dual_level, True),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_who_watches(name: str) -> None:
    enter, watches = CONTEXTS[name]
    with enter():
        assert dispatched() == watches
    assert not dispatched()


def test_a_default_device_for_all_is_no_watcher() -> None:
    torch.set_default_device("cpu")
    try:
        assert not dispatched()
    finally:
        torch.set_default_device(None)


def test_a_default_device_elsewhere_changes_nothing() -> None:
    x = torch.randn(20, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    found = []
    for context in (nullcontext(), torch.device("meta")):
        layer = NormNeuron(4, PLIF())
        with context:
            spikes = layer(x)
            spikes.sum().backward()
        found.append((spikes, layer.neuron.w.grad, layer.weight.grad, layer.running_mean))
    for plain, elsewhere in zip(*found, strict=True):
        assert torch.equal(plain, elsewhere)


@pytest.mark.parametrize(
    "layer", [LIF(), NormNeuron(4, LIF()), NormNeuron(4, LIF()).eval()], ids=["LIF", "training", "evaluation"]
)
def test_a_trace_computes(layer: nn.Module) -> None:
    x, other = (torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(seed)) * 2 for seed in (0, 1))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates tracing, and warns of shapes that become constants
        traced = torch.jit.trace(layer, (x,), check_trace=False)
        assert torch.equal(traced(other), layer(other))
        assert layer(other).any()
