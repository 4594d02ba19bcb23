"""Small models, and the formulas of Max-Former and MS-QKFormer in plain torch on weights under the official names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.models import create_model
from spikeloom.models.maxformer_official import entries
from spikeloom.models.official import translate
from spikeloom.synapses import NormNeuron

TINY: dict[str, Any] = {"embed_dim": 32, "num_heads": 4, "scale": 0.5}


def tiny(name: str = "maxformer_cifar_4_384", **options: Any) -> Any:
    """A small model whose neurons fire: its normalisations have the statistics of an input, and stretch it."""
    torch.manual_seed(0)
    model: Any = create_model(name, **{**TINY, **options})
    norms = [m for m in model.modules() if isinstance(m, NormNeuron | nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 1.0, 2.0)
        nn.init.uniform_(norm.bias, 0.2, 0.8)
    with torch.no_grad():
        model(random(model.config.T or 2, 2, model.config.in_channels, 32, 32))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


class _Fire(torch.autograd.Function):
    """1 where u >= 0, with the slope of sigmoid(4 u)."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slope = torch.sigmoid(4 * ctx.saved_tensors[0])
        return grad * 4 * slope * (1 - slope)  # type: ignore[no-any-return]


def lif(x: Tensor, threshold: float = 1.0) -> Tensor:
    """Spikes `[T, ...]` of a neuron that begins at rest."""
    v, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = v + (x[t] - v) / 2
        out.append(_Fire.apply(h - threshold))
        v = (1 - out[-1].detach()) * h
    return torch.stack(out)


def official(model: Any) -> dict[str, Tensor]:
    """Our weights under the official names and shapes, in their order."""
    own = model.state_dict()
    found = {}
    for key, shape in entries(model.config).items():
        base, _, part = translate("maxformer", key, own).partition("#")
        value = own[base].chunk(3)[int(part)] if part and own[base].ndim else own[base]
        found[key] = value.reshape(shape)
    return found


class Oracle:
    """Layers by official names; normalisation by the statistics of the batch."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.w = weights

    def conv(self, x: Tensor, name: str, norm: str, **options: Any) -> Tensor:
        """Convolution and normalisation of maps `[T, B, C, H, W]` or tokens `[T, B, C, N]`."""
        weight = self.w[f"{name}.weight"]
        run = F.conv2d if weight.ndim == 4 else F.conv1d
        options.setdefault("padding", weight.shape[-1] // 2)
        y = run(x.flatten(0, 1), weight, self.w.get(f"{name}.bias"), **options)
        y = F.batch_norm(y, None, None, self.w[f"{norm}.weight"], self.w[f"{norm}.bias"], training=True)
        return y.unflatten(0, x.shape[:2])

    def link(self, x: Tensor, name: str, pool: str = "", **options: Any) -> Tensor:
        """A convolution of an embedding, and pooling."""
        y = self.conv(x, f"{name}.embed_conv", f"{name}.embed_bn", **options)
        flat = y.flatten(0, 1)
        if pool == "max":
            flat = F.max_pool2d(flat, 3, 2, 1)
        if pool == "avg":
            flat = F.avg_pool2d(flat, 3, 2, 1, count_include_pad=False)
        return flat.unflatten(0, x.shape[:2])

    def max_plus(self, x: Tensor, e: str) -> Tensor:
        m = self.conv(x, f"{e}.proj_conv", f"{e}.proj_bn")
        z = lif(self.link(lif(m), f"{e}.max_embed1", "max"))
        b = self.link(z, f"{e}.max_embed2", "max")
        return self.link(lif(b), f"{e}.max_embed3", "max") + self.link(z, f"{e}.embed1", stride=4)

    def one_max(self, x: Tensor, e: str) -> Tensor:
        z = lif(x)
        a = self.link(z, f"{e}.embed1")
        return self.link(lif(a), f"{e}.max_embed1", "max") + self.link(z, f"{e}.embed2", stride=2)

    def avg(self, x: Tensor, e: str) -> Tensor:
        z = lif(x)
        a = self.link(z, f"{e}.avg_embed1", "avg")
        return self.link(lif(a), f"{e}.embed1") + self.link(z, f"{e}.avg_embed2", "avg")

    def qka(self, x: Tensor, b: str, heads: int) -> Tensor:
        z = lif(x.flatten(3))
        q, k = (lif(self.conv(z, f"{b}.attn.{p}_conv", f"{b}.attn.{p}_bn")).unflatten(2, (heads, -1)) for p in "qk")
        a = lif(q.sum(3, keepdim=True), 0.5)
        y = self.conv((a * k).flatten(2, 3), f"{b}.attn.proj_conv", f"{b}.attn.proj_bn")
        return x + y.view(x.shape)

    def ssa(self, x: Tensor, b: str, heads: int, scale: float) -> Tensor:
        z = lif(x.flatten(3))
        q, k, v = (
            lif(self.conv(z, f"{b}.attn.{p}_conv", f"{b}.attn.{p}_bn")).unflatten(2, (heads, -1)).transpose(3, 4)
            for p in "qkv"
        )
        a = (q @ (k.transpose(3, 4) @ v)) * scale
        a = lif(a.transpose(3, 4).flatten(2, 3), 0.5)
        return x + self.conv(a, f"{b}.attn.proj_conv", f"{b}.attn.proj_bn").view(x.shape)

    def mlp(self, x: Tensor, b: str) -> Tensor:
        u = self.conv(lif(x), f"{b}.mlp.fc1_conv", f"{b}.mlp.fc1_bn")
        if u.shape == x.shape:
            u = r = u + x
        else:
            r = x
        return self.conv(lif(u), f"{b}.mlp.fc2_conv", f"{b}.mlp.fc2_bn") + r

    def head(self, x: Tensor) -> Tensor:
        """Logits `[B, K]`."""
        return F.linear(lif(x.mean((3, 4))).mean(0), self.w["head.weight"], self.w["head.bias"])
