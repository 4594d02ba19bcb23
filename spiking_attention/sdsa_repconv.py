"""Spike-driven self-attention with re-parameterisable convolutions in the place of linear maps.

    R(x)    = BN(W2 D(pad(BN(W1 x))))                     W1, W2 pointwise, D depthwise 3 x 3
    u       = S(x);   Q, K, V = S(BN(R(u)))               S: integer spikes;   [T, B, h, N, d]
    out     = BN(R(S(d^-1/2 Q K^T V)))                    membranes, to be added to x

The padding has the value that the normalisation gives to zero, by its running statistics: then in evaluation R is a
convolution 3 x 3 of a zero-padded x. `MS_Attention_RepConv_qkv_id` of `Model_Base` in the authors' code
(BICLab/Spike-Driven-Transformer-V3, commit 00fcd1f); none of its models use it. Spike-driven Transformer V2 (Yao et al.
2024, arXiv:2404.03663) introduced it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from spikeloom.spiking_attention.integer import integer_neuron
from spikeloom.spiking_attention.layout import check_heads, merge_heads, split_heads, to_tokens
from spikeloom.spiking_attention.products import ORDERS, Order, product
from spikeloom.synapses import BatchNorm2d, Conv2d, NormNeuron


class NormPad(BatchNorm2d):
    """BatchNorm, then one pixel of padding: `[T, B, C, H, W]` -> `[T, B, C, H + 2, W + 2]`.

    The padding is beta - gamma mean / sqrt(var + eps) with the running statistics, in training those that this batch
    has just updated, and passes no gradient.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise and pad all time steps."""
        y = super().forward(input)
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        with torch.no_grad():
            zero = self.bias - mean * self.weight * torch.rsqrt(var + self.eps)
            border = 1 - pad(torch.ones_like(y[0, 0, 0]), (1, 1, 1, 1))
            frame = zero.to(y.dtype).view(-1, 1, 1) * border
        return pad(y, (1, 1, 1, 1)) + frame


class RepConv(nn.Module):
    """Pointwise, BatchNorm with padding, depthwise 3 x 3, pointwise, BatchNorm on `[T, B, C, H, W]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = Conv2d(dim, dim, 1, bias=False)
        self.pad = NormPad(dim)
        self.depthwise = Conv2d(dim, dim, 3, groups=dim, bias=False)
        self.outer = Conv2d(dim, dim, 1, bias=False)
        self.norm = BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        y: Tensor = self.norm(self.outer(self.depthwise(self.pad(self.inner(x)))))
        return y


class RepProjection(nn.Module):
    """RepConv and a second BatchNorm on `[T, B, C, H, W]`, then spikes unless `spiking=False`."""

    def __init__(self, dim: int, *, spiking: bool = True, max_spikes: int = 4) -> None:
        super().__init__()
        self.spiking = spiking
        self.rep = RepConv(dim)
        if spiking:
            self.fire = NormNeuron(dim, integer_neuron(max_spikes))
        else:
            self.norm = BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        y = self.rep(x)
        out: Tensor = self.fire(y) if self.spiking else self.norm(y)
        return out


class SDSARepConv(nn.Module):
    """Attention on maps `[T, B, C, H, W]` of membranes, a branch in the same shape out.

    Args:
        dim: C. num_heads: h, which divides C.
        order: `qk_v` is (Q K^T) V, `q_kv` is Q (K^T V); `auto` takes the one with fewer operations.
        max_spikes: of the integer neurons, 4 ("1 x 4") or 8.
    """

    def __init__(self, dim: int, num_heads: int, *, order: Order = "auto", max_spikes: int = 4) -> None:
        super().__init__()
        check_heads(dim, num_heads, "SDSARepConv")
        if order not in ORDERS:
            raise ValueError(f"SDSARepConv got order={order!r}; expected {', '.join(map(repr, ORDERS))}.")
        self.dim, self.num_heads, self.order = dim, num_heads, order
        self.scale = float((dim // num_heads) ** -0.5)
        self.neuron = integer_neuron(max_spikes)
        self.q, self.k, self.v = (RepProjection(dim, max_spikes=max_spikes) for _ in range(3))
        self.attn_neuron = integer_neuron(max_spikes)
        self.proj = RepProjection(dim, spiking=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        _, restore = to_tokens(x, "TBCHW", self.dim, "SDSARepConv")
        spikes = self.neuron(x)
        q, k, v = (self._heads(part(spikes)) for part in (self.q, self.k, self.v))
        mixed = merge_heads(product(q, k, v, self.scale, self.order))
        out: Tensor = self.proj(restore(self.attn_neuron(mixed)))
        return out

    def _heads(self, maps: Tensor) -> Tensor:
        """`[T, B, C, H, W]` -> `[T, B, h, N, d]`."""
        return split_heads(maps.flatten(3).transpose(2, 3), self.num_heads)

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.num_heads}, order={self.order!r}"
