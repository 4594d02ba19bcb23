"""The networks of models.py, ours and SpikingJelly's, as steps to time."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from _steps import Step, captured
from torch import Tensor, nn
from torch.nn import functional as F

OURS, GRAPH, PEER, COMPILED = "spikeloom", "spikeloom graph", "spikingjelly", "spikingjelly compiled"
FP32_STATE, PEER_GRAPH = "spikingjelly fp32 state", "spikingjelly graph"
IMPLEMENTATIONS = (OURS, GRAPH, PEER, COMPILED, FP32_STATE)
ON_REQUEST = (PEER_GRAPH,)
"""Implementations that run only where they are named."""
NEED_GPU = (GRAPH, PEER_GRAPH, FP32_STATE)
MODES = ("train", "infer")


@dataclass(frozen=True)
class Network:
    """A network in both libraries.

    name: ours, in the registry. peer: SpikingJelly's module under `activation_based.model`, its factory and arguments.
    same: whether the two are the same network; else what differs.
    """

    name: str
    peer: tuple[str, str, dict[str, Any]]
    size: int
    batch: int
    classes: int
    same: str = "same"
    arguments: dict[str, Any] = field(default_factory=dict)


def _spikformer(size: int, dim: int, depth: int, heads: int, classes: int) -> dict[str, Any]:
    return {
        "img_size_h": size, "img_size_w": size, "embed_dims": dim, "num_heads": heads, "depths": depth,
        "num_classes": classes,
    }  # fmt: skip


NETWORKS = {
    "maxformer_10_384": Network(
        "maxformer_10_384", ("maxformer", "maxformer_10_384", {}), 224, 64, 1000,
        "theirs: no neuron in front of q, k, v, one more behind the projection, biases in the embeddings",
    ),
    "maxformer_cifar": Network(
        "maxformer_cifar_4_384", ("maxformer", "maxformer_cifar", {"num_classes": 10}), 32, 128, 10
    ),
    "spikformer_8_512": Network(
        "spikformer_8_512", ("spikformer", "Spikformer", _spikformer(224, 512, 8, 8, 1000)), 224, 32, 1000,
        "theirs pools membranes in the stem, ours spikes, as the authors' code does",
    ),
    "spikformer_cifar": Network(
        "spikformer_cifar_4_384", ("spikformer", "spikformer_cifar10", {}), 32, 128, 10,
        "theirs pools membranes in the stem, ours spikes, as the authors' code does",
    ),
    "qkformer_10_384": Network(
        "qkformer_10_384", ("qkformer", "qkformer_10_384", {}), 224, 64, 1000, "not compared layer by layer"
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network at a size of the problem. mode: "train" or "infer"."""

    network: str
    mode: str
    T: int
    batch: int

    def label(self) -> str:
        return f"{self.network} {self.mode}, T={self.T}, batch {self.batch}"


def maker(case: Case, implementation: str, device: torch.device, dtype: torch.dtype) -> Callable[[], Step]:
    """What builds the step of an implementation."""

    def make() -> Step:
        if implementation in (OURS, GRAPH):
            step = _ours(case, device, dtype)
            return captured(step) if implementation == GRAPH else step
        step = _peer(case, device, dtype, implementation)
        return captured(step) if implementation == PEER_GRAPH else step

    return make


def _ours(case: Case, device: torch.device, dtype: torch.dtype) -> Step:
    from spikeloom.models import create_model

    network = NETWORKS[case.network]
    torch.manual_seed(0)
    model = create_model(network.name, T=case.T, num_classes=network.classes, **network.arguments)
    net = model.to(device).to(memory_format=torch.channels_last)
    return _step(case, net, net, device, dtype, lambda: None, torch.channels_last)


def _peer(case: Case, device: torch.device, dtype: torch.dtype, implementation: str) -> Step:
    from spikingjelly.activation_based import functional

    module, factory, arguments = NETWORKS[case.network].peer
    build = getattr(importlib.import_module(f"spikingjelly.activation_based.model.{module}"), factory)
    torch.manual_seed(0)
    net = build(T=case.T, **arguments).to(device)
    if implementation == FP32_STATE:
        net = fp32_state(net, device)
    run = net
    if implementation == COMPILED:
        torch.compiler.reset()
        run = torch.compile(net, dynamic=False)
    return _step(case, net, run, device, dtype, lambda: functional.reset_net(net), torch.contiguous_format)


def fp32_state(net: nn.Module, device: torch.device) -> nn.Module:
    """SpikingJelly's network with float32 states, which its Triton kernels keep whatever the dtype of x; on a GPU."""
    from spikingjelly.activation_based.precision import PrecisionConfig, prepare_model_for_precision

    return prepare_model_for_precision(net, device, PrecisionConfig(mode="fp32", neuron_storage="fp32")).model


def _step(
    case: Case,
    net: nn.Module,
    run: Callable[[Tensor], Tensor],
    device: torch.device,
    dtype: torch.dtype,
    reset: Callable[[], Any],
    layout: torch.memory_format,
) -> Step:
    """Inference: logits. Training: cross entropy of the mean logits, backward, fused AdamW."""
    network = NETWORKS[case.network]
    generator = torch.Generator(device).manual_seed(0)
    images = torch.randn(case.batch, 3, network.size, network.size, generator=generator, device=device)
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(network.classes, (case.batch,), generator=generator, device=device)
    if case.mode == "infer":
        net.eval()

        def infer() -> None:
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                run(images)

        return Step(infer, reset, keep=net)
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(net.parameters(), 5e-4, fused=fused, capturable=fused)

    def train() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = run(images)
        logits = logits.float()
        F.cross_entropy(logits.mean(0) if logits.ndim == 3 else logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Step(train, reset, keep=(net, optimizer))
