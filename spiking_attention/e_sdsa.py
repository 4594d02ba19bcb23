"""Efficient spike-driven self-attention (E-SDSA) with integer spikes: the base models of Spike-driven Transformer V3.

    u       = S(x)                                 S: up to four spikes, divided by 4; no memory
    Q, K    = S(BN(W u))                           [T, B, h, N, d],   d = C / h
    V       = S(BN(W u))                           [T, B, h, N, ratio d]
    out     = BN(W S(2 d^-1/2 Q K^T V))            membranes, to be added to x

Paper: Yao et al. 2025, arXiv:2411.16061, with the sizes of the authors' code (BICLab/Spike-Driven-Transformer-V3,
commit 00fcd1f, `MS_Attention_linear`). There is no softmax, and every sum is a whole number of 1/64: in float32 both
orders of the product give the same bits, and the cheaper one is taken. Half precision rounds the sums.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.spiking_attention.integer import integer_neuron
from spikeloom.spiking_attention.layout import Layout, check_heads, check_layout, merge_heads, split_heads, to_tokens
from spikeloom.spiking_attention.normed import PointwiseNorm
from spikeloom.spiking_attention.products import ORDERS, Order, product
from spikeloom.synapses import Projection


class ESDSA(nn.Module):
    """E-SDSA on `[T, B, C, H, W]` (or another layout) of membranes, a branch in the same shape out.

    Args:
        dim: C. num_heads: h, which divides C.
        ratio: channels of V per channel of Q.
        order: `qk_v` is (Q K^T) V, `q_kv` is Q (K^T V); `auto` takes the one with fewer operations.
        layout: axes of input and output: "TBNC", "TBCN" or "TBCHW".
        max_spikes: of the integer neurons, 4 ("1 x 4") or 8.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        ratio: int = 4,
        order: Order = "auto",
        layout: Layout = "TBCHW",
        max_spikes: int = 4,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads, "ESDSA")
        check_layout(layout, "ESDSA")
        if order not in ORDERS:
            raise ValueError(f"ESDSA got order={order!r}; expected {', '.join(map(repr, ORDERS))}.")
        if ratio < 1 or ratio != int(ratio):
            raise ValueError(f"ESDSA got ratio={ratio}; expected a whole number >= 1 (the paper's code has 4).")
        self.dim, self.num_heads, self.order, self.layout = dim, num_heads, order, layout
        self.scale = 2 * (dim // num_heads) ** -0.5
        self.neuron = integer_neuron(max_spikes)
        self.q = Projection(dim, dim, neuron=integer_neuron(max_spikes))
        self.k = Projection(dim, dim, neuron=integer_neuron(max_spikes))
        self.v = Projection(dim, ratio * dim, neuron=integer_neuron(max_spikes))
        self.attn_neuron = integer_neuron(max_spikes)
        self.proj = PointwiseNorm(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        tokens, restore = to_tokens(x, self.layout, self.dim, "ESDSA")
        spikes = self.neuron(tokens)
        q, k, v = (split_heads(part(spikes), self.num_heads) for part in (self.q, self.k, self.v))
        order = cheaper(q.shape[-2], q.shape[-1], v.shape[-1]) if self.order == "auto" else self.order
        mixed = merge_heads(product(q, k, v, self.scale, order))
        return restore(self.proj(self.attn_neuron(mixed)))

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.num_heads}, order={self.order!r}, layout={self.layout!r}"


def cheaper(N: int, d: int, e: int) -> Order:
    """The order of Q K^T V with fewer products for Q, K `[N, d]` and V `[N, e]`: N^2 (d + e) against 2 N d e."""
    return "q_kv" if N * (d + e) > 2 * d * e else "qk_v"
