"""Whole networks on a GPU: the fused path against the plain operators, and against the kernels' reference."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from spikeloom.models import create_model
from spikeloom.neurons import Neuron
from spikeloom.synapses import NormNeuron

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CASES = {
    "cifar T=1": ("maxformer_cifar_4_384", {"T": 1}, 8),
    "cifar T=4": ("maxformer_cifar_4_384", {"T": 4}, 8),
    "cifar T=16": ("maxformer_cifar_4_384", {"T": 16}, 4),
    "imagenet": ("maxformer_10_384", {"T": 4, "depths": (1, 1, 2), "input_size": (96, 96), "num_classes": 10}, 4),
    "events": ("maxformer_dvs_2_256", {"T": 4, "input_size": (64, 64)}, 2),
    "baseline": ("ms_qkformer_cifar_4_384", {"T": 4}, 8),
    "resnet": ("max_resnet18", {"T": 4}, 8),
    "spikformer": ("spikformer_cifar_2_256", {"T": 4}, 8),
}


class Watched(TorchDispatchMode):
    """Whoever watches operators is shown the plain ones: every short cut steps aside."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Tensor]]:
    """What the neurons fire, in order."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, out: Any) -> None:
        spikes = out[0] if isinstance(out, tuple) else out
        found.append(spikes.detach())

    handles = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, NormNeuron)]
    yield found
    for handle in handles:
        handle.remove()


def step(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, list[Tensor]]:
    with recorded(model) as spikes:
        logits = model(x).mean(0)
    F.cross_entropy(logits, labels).backward()
    return logits, spikes


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_the_plain_path(case: str) -> None:
    name, arguments, batch = CASES[case]
    torch.manual_seed(0)
    fast = create_model(name, **arguments).cuda().to(memory_format=torch.channels_last)
    plain = copy.deepcopy(fast)
    config: Any = fast.config
    shape = (batch, config.in_channels, *config.input_size)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).cuda()
    if config.in_channels == 2:
        x = (x > 1).float().expand(config.T, *x.shape).contiguous()
    labels = torch.arange(batch, device="cuda") % config.num_classes
    with torch.backends.cudnn.flags(allow_tf32=False):
        logits, spikes = step(fast, x, labels)
        with Watched():
            expected, theirs = step(plain, x, labels)
    assert len(spikes) == len(theirs) > 4
    # Sums are added up in another order, so a membrane within rounding of its threshold may fall to either side, and
    # what follows such a spike differs. Up to the first one all is equal.
    differing = [float((a != b).float().mean()) for a, b in zip(spikes, theirs, strict=True)]
    assert max(differing) < 2e-3, differing
    assert sum(differing[:3]) < 3e-6, differing
    buffers = zip(fast.named_buffers(), plain.buffers(), strict=True)
    for (key, a), b in buffers:
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}")
    exact = max(differing) == 0
    if exact:
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for (key, p), q in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None, key
        assert q.grad is not None, key
        scale = float(q.grad.abs().max())
        if key.endswith("synapse.bias"):  # in front of a normalisation: 0, and noise on the plain path
            continue
        error = float((p.grad - q.grad).norm() / q.grad.norm().clamp_min(1e-12))
        assert error < (1e-3 if exact else 0.2) or scale < 1e-7, (key, error)


@pytest.mark.parametrize("T", [1, 4, 16])
def test_kernels_are_the_reference_in_the_whole_network(T: int) -> None:
    """Spikes of the fused kernels and of plain PyTorch agree: spec 9.2, given the same normalised inputs."""
    torch.manual_seed(0)
    model = create_model("maxformer_cifar_4_384", T=T).cuda()
    slow = copy.deepcopy(model)
    for module in slow.modules():
        if isinstance(module, Neuron):
            module.backend = "reference"
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).cuda()
    with torch.backends.cudnn.flags(allow_tf32=False), torch.no_grad():
        with recorded(model.eval()) as spikes:
            model(x)
        with recorded(slow.eval()) as theirs:
            slow(x)
    rates = [float(a.mean()) for a in spikes]
    assert max(rates[:3]) > 0.001
    assert [float((a != b).float().mean()) for a, b in zip(spikes, theirs, strict=True)] == pytest.approx(
        [0] * len(theirs), abs=1e-3
    )
