"""Spike-driven self-attention (SDSA), first version: masks and additions, no matrix product of activations.

    Q, K, V = LIF(BN(W s))                             spikes [T, B, N, C], s = LIF(u) the spikes of the stream
    g       = LIF_0.5(sum_tokens K * V)                one bit per channel, [T, B, 1, C]
    u'      = u + BN(W (g * Q) + b)

Paper: Yao, Hu, Zhou, Yuan, Tian, Xu, Li 2023, "Spike-driven Transformer", NeurIPS 2023, arXiv:2307.01694, section 3.3;
order of operations as in the authors' code (BICLab/Spike-Driven-Transformer, commit 3faa822, `MS_SSA_Conv`).

g is exactly the OR over tokens of K AND V: with threshold 0.5 and tau 2 a count of 1 or more fires whatever the
membrane was, and a count of 0 leaves an empty membrane empty. The neuron is kept for its gradient, which is not without
memory. Without `dvs` the number of heads has no influence.

Quirk: the event-camera mode of the authors' code, `dvs=True`, pools spikes by 3 x 3 (stride 1: a dilation) four times.
K and V are pooled over space. K * V and g * Q are pooled where the axes are [heads, N, d], that is over neighbouring
tokens (in row-major order, across the ends of rows) and neighbouring channels of a head, not over space. The published
weights were trained so, and it is kept as it is.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention.layout import Layout, check_heads, check_layout, merge_heads, split_heads
from spikeloom.spiking_attention.membrane import MembraneProjection, Pair, pair_tokens
from spikeloom.synapses import MaxPool2d, Projection


class SDSA(nn.Module):
    """Spike-driven self-attention on a pair (s, u) with s = LIF(u): `(s, u) -> (s', u')`, see `membrane`.

    Args:
        dim: C. num_heads: h, which divides C; they matter with `dvs` only.
        dvs: the pooling of the event-camera models, see above; needs maps.
        layout: axes of input and output: "TBCHW", "TBNC" or "TBCN".
        last: no neuron follows: the result is (None, u').
    """

    def __init__(
        self, dim: int, num_heads: int, *, dvs: bool = False, layout: Layout = "TBCHW", last: bool = False
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads, "SDSA")
        check_layout(layout, "SDSA")
        if dvs and layout != "TBCHW":
            raise ValueError(f"SDSA got dvs=True with layout={layout!r}; pooling over space needs maps: 'TBCHW'.")
        self.dim, self.num_heads, self.dvs, self.layout = dim, num_heads, dvs, layout
        self.q = Projection(dim, dim, spikes=True)
        self.k = Projection(dim, dim, spikes=True)
        self.v = Projection(dim, dim, spikes=True)
        self.attn_lif = LIF(v_threshold=0.5)
        self.pool = MaxPool2d(3, 1, 1)
        self.proj = MembraneProjection(dim, dim, last=last)

    def forward(self, spikes: Tensor, u: Tensor) -> Pair:
        """Run all time steps."""
        s, stream, restore = pair_tokens(spikes, u, self.layout, self.dim, "SDSA")
        q, k, v = self.q(s), self.k(s), self.v(s)
        mixed = self._pooled(q, k, v, tuple(u.shape[3:])) if self.dvs else q * self._gate(k * v)
        return restore(self.proj(mixed, stream))

    def _gate(self, both: Tensor) -> Tensor:
        """K * V `[..., N, C]` -> g `[..., 1, C]`."""
        gate: Tensor = self.attn_lif(both.sum(-2, keepdim=True))
        return gate

    def _pooled(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, ...]) -> Tensor:
        """g * Q with the four poolings of the event-camera mode; tokens in, tokens out."""
        k, v = (self.pool(x.transpose(2, 3).unflatten(3, size)).flatten(3).transpose(2, 3) for x in (k, v))
        q, k, v = (split_heads(x, self.num_heads) for x in (q, k, v))
        # [T, B, h, N, d]: heads stand where MaxPool2d has channels, tokens and channels of a head where it has space
        return merge_heads(self.pool(q * self._gate(self.pool(k * v))))

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.num_heads}, dvs={self.dvs}, layout={self.layout!r}"
