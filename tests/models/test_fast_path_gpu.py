"""Whole networks on a GPU, part by part: the fused path against the plain operators, and the kernels' reference.

Networks of spikes are chaotic: a membrane within rounding of its threshold falls to either side, and what follows such
a spike differs more and more (a change of the weights by 2e-7 changes 14 % of the spikes of an untrained Max-Former in
its last layers). So each embedding and block gets the same input on both paths: that which the fused network had.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spikeloom.models import create_model, max_resnet, maxformer, maxformer_embed, spikformer
from spikeloom.neurons import Neuron
from spikeloom.synapses import NormNeuron

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda"
PARTS = (maxformer.Block, maxformer_embed.Embed, max_resnet.Stem, max_resnet.Block, spikformer.Stem, spikformer.Block)
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


def parts_of(model: nn.Module, x: Tensor) -> list[tuple[str, tuple[Any, ...]]]:
    """Names of the embeddings and blocks, and what they are given, in order."""
    found: list[tuple[str, tuple[Any, ...]]] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, PARTS):
            hook = lambda m, given, name=name: found.append((name, tuple(as_leaf(t) for t in given)))  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def as_leaf(value: Any) -> Any:
    return value.detach().clone(memory_format=torch.preserve_format) if isinstance(value, Tensor) else value


def through(part: nn.Module, given: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """Results of a part, and gradients of its inputs and parameters for fixed gradients of the results."""
    leaves = [as_leaf(t).requires_grad_() if isinstance(t, Tensor) else t for t in given]
    made = part(*leaves)
    results = [r for r in (made if isinstance(made, tuple) else (made,)) if r is not None]
    generator = torch.Generator().manual_seed(2)
    grads = [torch.randn(r.shape, generator=generator).to(r) for r in results]
    torch.autograd.backward(results, grads)
    named = [(n, p.grad) for n, p in part.named_parameters() if not n.endswith("synapse.bias")]
    asked = [leaf.grad for leaf in leaves if isinstance(leaf, Tensor)] + [grad for _, grad in named]
    return results, [grad for grad in asked if grad is not None]


def wake_attention(model: nn.Module) -> None:
    """Let queries, keys and values fire: attention is silent at the start, and gradients behind it are rounding."""
    for name, module in model.named_modules():
        if isinstance(module, NormNeuron) and name.endswith((".qkv.fire", ".q.fire", ".k.fire", ".v.fire")):
            assert module.bias is not None
            nn.init.constant_(module.bias, 1.0)


@pytest.mark.parametrize("case", CASES)
def test_every_part_is_that_of_the_plain_path(case: str) -> None:
    name, arguments, batch = CASES[case]
    torch.manual_seed(0)
    fast = create_model(name, **arguments).to(DEVICE).to(memory_format=torch.channels_last)
    wake_attention(fast)
    plain = copy.deepcopy(fast)
    config: Any = fast.config
    x = torch.randn(batch, config.in_channels, *config.input_size, generator=torch.Generator().manual_seed(1))
    if config.in_channels == 2:
        x = (x > 1).float().expand(config.T, *x.shape).contiguous()
    parts = parts_of(copy.deepcopy(fast), x.to(DEVICE))
    assert len(parts) >= 3
    exact = 0
    with torch.backends.cudnn.flags(allow_tf32=False):
        for part, given in parts:
            results, grads = through(fast.get_submodule(part), given)
            with Watched():
                expected, theirs = through(plain.get_submodule(part), given)
            results, expected = [r.detach() for r in results], [r.detach() for r in expected]
            wrong = [float((a != b).float().mean()) for a, b in zip(results, expected, strict=True) if is_spikes(b)]
            # a spike that falls to the other side inside of a part changes what follows it there
            assert max(wrong, default=0.0) < 2e-3, (part, wrong)
            flipped = any(wrong) or any(
                float((a - b).abs().max()) > 1e-2 * float(b.abs().max()) for a, b in zip(results, expected, strict=True)
            )
            assert len(grads) == len(theirs), part
            for a, b in zip(grads, theirs, strict=True):
                error = float((a - b).norm() / b.norm().clamp_min(1e-9))
                assert error < (0.1 if flipped else 2e-3), (part, error, tuple(b.shape))
            exact += not flipped
    assert exact >= len(parts) / 2
    for (key, a), b in zip(fast.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3, msg=lambda text, key=key: f"{key}: {text}")


def is_spikes(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


@pytest.mark.parametrize("T", [1, 4, 16])
def test_kernels_are_the_reference_in_every_part(T: int) -> None:
    """Spec of Max-Former, 9.2: spikes of the fused kernels and of plain PyTorch agree."""
    torch.manual_seed(0)
    model = create_model("maxformer_cifar_4_384", T=T).to(DEVICE)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    for module in model.modules():
        if isinstance(module, NormNeuron | nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0  # statistics of one batch, so that neurons fire in evaluation
    with torch.no_grad():
        model(x)
    slow = copy.deepcopy(model.eval())
    for module in slow.modules():
        if isinstance(module, Neuron):
            module.backend = "reference"
    fired = 0.0
    with torch.backends.cudnn.flags(allow_tf32=False), torch.no_grad():
        for part, given in parts_of(model, x):
            made, expected = model.get_submodule(part)(*given)[0], slow.get_submodule(part)(*given)[0]
            if made is not None:
                fired = max(fired, float(expected.mean()))
                assert float((made != expected).float().mean()) < 1e-4, part
    assert fired > 0.001
