"""QK token attention on the membrane stream: the early stages of MS-QKFormer, the baseline of the Max-Former paper.

    Q, K = LIF(BN(W s))                                s = LIF(u) the spikes of the stream; [T, B, N, C]
    A  = LIF_0.5(sum of Q over a head's channels)      [T, B, N, h]
    u' = u + BN(W (A * K) + b),    s' = LIF(u')

Papers: QKFormer (see `qk`), arXiv:2403.16552; Fang et al. 2025, arXiv:2505.18608, which puts it between a neuron on the
stream and a shortcut of membranes. One spike of Q in a head is enough to pass the token, so wide heads pass nearly all.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention.layout import Layout, check_heads, check_layout
from spikeloom.spiking_attention.membrane import MembraneProjection, Pair, pair_tokens
from spikeloom.synapses import Projection


class MembraneQKToken(nn.Module):
    """QK token attention on a pair (s, u) with s = LIF(u): `(s, u) -> (s', u')`, see `membrane`.

    Args:
        dim: C. num_heads: h, which divides C.
        layout: axes of input and output: "TBCHW", "TBNC" or "TBCN".
        last: no neuron follows: the result is (None, u').
    """

    def __init__(self, dim: int, num_heads: int, *, layout: Layout = "TBCHW", last: bool = False) -> None:
        super().__init__()
        check_heads(dim, num_heads, "MembraneQKToken")
        check_layout(layout, "MembraneQKToken")
        self.dim, self.num_heads, self.layout = dim, num_heads, layout
        self.q = Projection(dim, dim, spikes=True)
        self.k = Projection(dim, dim, spikes=True)
        self.attn_lif = LIF(v_threshold=0.5)
        self.proj = MembraneProjection(dim, dim, last=last)

    def forward(self, spikes: Tensor, u: Tensor) -> Pair:
        """Run all time steps."""
        s, stream, restore = pair_tokens(spikes, u, self.layout, self.dim, "MembraneQKToken")
        heads = (self.num_heads, -1)
        passes: Tensor = self.attn_lif(self.q(s).unflatten(3, heads).sum(4))
        return restore(self.proj((passes.unsqueeze(4) * self.k(s).unflatten(3, heads)).flatten(3), stream))

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.num_heads}, layout={self.layout!r}"
