"""E-SDSA as the large models of Spike-driven Transformer V3 have it: every map is a stack of two.

    u       = S(x)                                        S: integer spikes, halves rounded up
    Q, K, V = S(BN(BN(W2 BN(W1 u))))                      C -> 1.5 C -> C channels, [T, B, h, N, d]
    out     = BN(BN(W2 BN(W1 S(0.125 Q K^T V))))

Paper: Yao et al. 2025, arXiv:2411.16061; `MS_Attention_Conv_qkv_id` of `Model_Large` in the authors' code
(BICLab/Spike-Driven-Transformer-V3, commit 00fcd1f). No nonlinearity lies between the five layers of a stack, so in
evaluation each is one linear map with a bias, see `Stack.folded`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeloom.spiking_attention.integer import integer_neuron
from spikeloom.spiking_attention.layout import Layout, check_heads, check_layout, merge_heads, split_heads, to_tokens
from spikeloom.spiking_attention.normed import PointwiseNorm
from spikeloom.spiking_attention.products import ORDERS, Order, product
from spikeloom.synapses import BatchNorm2d, NormNeuron


class Stack(nn.Module):
    """Linear, BatchNorm, Linear, BatchNorm, BatchNorm on tokens `[T, B, N, C]`, then spikes unless `spiking=False`."""

    def __init__(self, dim: int, *, spiking: bool = True, max_spikes: int = 4) -> None:
        super().__init__()
        self.spiking = spiking
        self.wide = PointwiseNorm(dim, dim * 3 // 2)
        self.narrow = PointwiseNorm(dim * 3 // 2, dim)
        if spiking:
            self.fire = NormNeuron(dim, integer_neuron(max_spikes, rounding="half_up"))
        else:
            self.norm = BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        rows = self.narrow(self.wide(x)).transpose(2, 3).unsqueeze(3)  # [T, B, C, 1, N], channels last in memory
        out: Tensor = self.fire(rows) if self.spiking else self.norm(rows)
        return out.squeeze(3).transpose(2, 3)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """The one linear map in front of the spikes that the stack is in evaluation: weight `[C, C]`, bias `[C]`."""
        last = self.fire if self.spiking else self.norm
        weight = torch.eye(self.wide.synapse.in_features, device=last.weight.device, dtype=last.weight.dtype)
        bias = weight.new_zeros(len(weight))
        for part in (self.wide.synapse, self.wide.norm, self.narrow.synapse, self.narrow.norm, last):
            if isinstance(part, nn.Linear):
                weight, bias = part.weight @ weight, part.weight @ bias
            else:
                scale = part.weight * torch.rsqrt(part.get_buffer("running_var") + part.eps)
                weight, bias = scale[:, None] * weight, scale * (bias - part.get_buffer("running_mean")) + part.bias
        return weight, bias


class ESDSALarge(nn.Module):
    """E-SDSA of the large models on `[T, B, C, N]` (or another layout) of membranes, a branch in the same shape out.

    Args:
        dim: C, even. num_heads: h, which divides C.
        order: `qk_v` is (Q K^T) V, `q_kv` is Q (K^T V); `auto` takes the one with fewer operations.
        layout: axes of input and output: "TBNC", "TBCN" or "TBCHW".
        max_spikes: of the integer neurons, 4 ("1 x 4") or 8.
    """

    scale = 0.125

    def __init__(
        self, dim: int, num_heads: int, *, order: Order = "auto", layout: Layout = "TBCN", max_spikes: int = 4
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads, "ESDSALarge")
        check_layout(layout, "ESDSALarge")
        if order not in ORDERS:
            raise ValueError(f"ESDSALarge got order={order!r}; expected {', '.join(map(repr, ORDERS))}.")
        if dim % 2:
            raise ValueError(f"ESDSALarge got dim={dim}; expected an even number, its stacks are 1.5 times as wide.")
        self.dim, self.num_heads, self.order, self.layout = dim, num_heads, order, layout
        self.neuron = integer_neuron(max_spikes, rounding="half_up")
        self.q, self.k, self.v = (Stack(dim, max_spikes=max_spikes) for _ in range(3))
        self.attn_neuron = integer_neuron(max_spikes, rounding="half_up")
        self.proj = Stack(dim, spiking=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        tokens, restore = to_tokens(x, self.layout, self.dim, "ESDSALarge")
        spikes = self.neuron(tokens)
        q, k, v = (split_heads(part(spikes), self.num_heads) for part in (self.q, self.k, self.v))
        mixed = merge_heads(product(q, k, v, self.scale, self.order))
        return restore(self.proj(self.attn_neuron(mixed)))

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.num_heads}, order={self.order!r}, layout={self.layout!r}"
