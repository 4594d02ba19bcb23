"""Spiking self-attention on the membrane stream: the last stage of Max-Former, and a variant with a convolution.

    Q, K, V = LIF(BN(W s))                             s = LIF(u) the spikes of the stream; [T, B, h, N, d]
    a  = LIF_0.5(0.125 Q K^T V)
    u' = u + BN(W a + b),    s' = LIF(u')              MembraneSSA
    u' = u + BN(D LIF(BN(W a + b)) + b'),  s' = LIF(u')     MembraneSSAConv, D depth-wise 5 x 5

Paper: Fang et al. 2025, arXiv:2505.18608; the attention is Spikformer's, arXiv:2209.15425 (see `ssa`), between a neuron
on the stream and a shortcut of membranes. The factor is 0.125 for every width of a head, as in the authors' code.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention.layout import Layout, check_heads, check_layout
from spikeloom.spiking_attention.membrane import MembraneProjection, Pair, pair_tokens
from spikeloom.spiking_attention.membrane_conv import MembraneConv
from spikeloom.spiking_attention.products import ORDERS, Order, mix
from spikeloom.spiking_attention.ssa import check_scale
from spikeloom.synapses import Projection


class _Mixed(nn.Module):
    """What both forms share: spikes of the stream -> spikes of the mixed tokens."""

    def __init__(
        self, dim: int, num_heads: int, scale: float | Literal["rsqrt_d"], order: Order, layout: Layout
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_heads(dim, num_heads, name)
        check_layout(layout, name)
        check_scale(scale, name)
        if order not in ORDERS:
            raise ValueError(f"{name} got order={order!r}; expected {', '.join(map(repr, ORDERS))}.")
        self.dim, self.num_heads, self.layout, self.order = dim, num_heads, layout, order
        self.scale = (dim // num_heads) ** -0.5 if isinstance(scale, str) else scale
        self.qkv = Projection(dim, 3 * dim, spikes=True)
        self.attn_lif = LIF(v_threshold=0.5)

    def mixed(self, spikes: Tensor) -> Tensor:
        """Tokens `[T, B, N, C]` in and out."""
        mixed: Tensor = self.attn_lif(mix(self.qkv(spikes), self.num_heads, self.scale, self.order))
        return mixed

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.num_heads}, scale={self.scale}, order={self.order!r}, layout={self.layout!r}"


class MembraneSSA(_Mixed):
    """Spiking self-attention on a pair (s, u) with s = LIF(u): `(s, u) -> (s', u')`, see `membrane`.

    Args:
        dim: C. num_heads: h, which divides C; d = C / h.
        scale: the factor, or "rsqrt_d" for d^-1/2 (not in the paper's code).
        order: of the product, see `SSA`.
        layout: axes of input and output: "TBCHW", "TBNC" or "TBCN".
        last: no neuron follows: the result is (None, u').
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        scale: float | Literal["rsqrt_d"] = 0.125,
        order: Order = "auto",
        layout: Layout = "TBCHW",
        last: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, scale, order, layout)
        self.proj = MembraneProjection(dim, dim, last=last)

    def forward(self, spikes: Tensor, u: Tensor) -> Pair:
        """Run all time steps."""
        s, stream, restore = pair_tokens(spikes, u, self.layout, self.dim, type(self).__name__)
        return restore(self.proj(self.mixed(s), stream))


class MembraneSSAConv(_Mixed):
    """The same with a depth-wise convolution behind the attention, on maps `[T, B, C, H, W]`.

    Args:
        dim: C. num_heads: h, which divides C; d = C / h.
        kernel: side of the depth-wise kernel, odd.
        scale, order, last: as in `MembraneSSA`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        kernel: int = 5,
        scale: float | Literal["rsqrt_d"] = 0.125,
        order: Order = "auto",
        last: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, scale, order, "TBCHW")
        self.proj = Projection(dim, dim, bias=True, spikes=True)
        self.dwc = MembraneConv(dim, dim, kernel, groups=dim, bias=True, last=last)

    def forward(self, spikes: Tensor, u: Tensor) -> Pair:
        """Run all time steps."""
        s, _, _ = pair_tokens(spikes, u, self.layout, self.dim, type(self).__name__)
        tokens = self.proj(self.mixed(s))
        pair: Pair = self.dwc(tokens.transpose(2, 3).unflatten(3, u.shape[3:]), u)
        return pair
