"""QK attention: which tokens, or which channels, pass; cost is linear in tokens and channels.

    Q, K = LIF(BN(W x))                                spikes [T, B, N, C]; head i owns channels i d .. (i + 1) d - 1
    token:    A = LIF_0.5(sum of Q over a head's channels)      [T, B, N, h]
    channel:  A = LIF_0.5(sum of Q over tokens)                 [T, B, C]
    out = LIF(BN(W (A * K) + b))

Paper: Zhou, Zhang, Zhou, Yu, Huang, Fan, Yuan, Ma, Zhou, Tian 2024, "QKFormer: Hierarchical Spiking Transformer using
Q-K Attention", arXiv:2403.16552. There is no V, no scale and no product of matrices. The authors' code has the token
form alone (zhouchenlin2096/QKFormer, commit c2a00e8); the channel form is the paper's formula.

The input of the attention neuron is a whole number, so its spikes are a logical or: see `fires_if_any`. Only the spikes
are that simple: the gradient runs through the membrane wherever the neuron stays silent, so the neuron is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention.layout import Layout, check_heads, check_layout, to_tokens
from spikeloom.synapses import Projection


class _QK(nn.Module):
    """Projections, neuron and layout of both forms; `gate` says what of K passes."""

    def __init__(self, dim: int, layout: Layout) -> None:
        super().__init__()
        check_layout(layout, type(self).__name__)
        self.dim, self.layout = dim, layout
        self.q = Projection(dim, dim)
        self.k = Projection(dim, dim)
        self.attn_lif = LIF(v_threshold=0.5)
        self.proj = Projection(dim, dim, bias=True, spikes=True)

    def gate(self, q: Tensor, k: Tensor) -> Tensor:
        """A * K for spikes `[T, B, N, C]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        tokens, restore = to_tokens(x, self.layout, self.dim, type(self).__name__)
        return restore(self.proj(self.gate(self.q(tokens), self.k(tokens))))


class QKTokenAttention(_QK):
    """QK token attention on `[T, B, N, C]` (or another layout), spikes out in the shape of the input.

    A head passes a token's K if any of the token's Q in this head fires. Tokens meet only in the batch statistics.

    Args:
        dim: C. num_heads: h, which divides C; d = C / h.
        layout: axes of input and output: "TBNC", "TBCN" or "TBCHW".
    """

    def __init__(self, dim: int, num_heads: int, *, layout: Layout = "TBNC") -> None:
        check_heads(dim, num_heads, "QKTokenAttention")
        super().__init__(dim, layout)
        self.num_heads = num_heads

    def gate(self, q: Tensor, k: Tensor) -> Tensor:
        """A * K for spikes `[T, B, N, C]`."""
        heads = (self.num_heads, -1)
        passes: Tensor = self.attn_lif(q.unflatten(3, heads).sum(4))  # [T, B, N, h]
        return (passes.unsqueeze(4) * k.unflatten(3, heads)).flatten(3)

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.num_heads}, layout={self.layout!r}"


class QKChannelAttention(_QK):
    """QK channel attention on `[T, B, N, C]` (or another layout), spikes out in the shape of the input.

    A channel of K passes if any token's Q in this channel fires. The sum runs over tokens within a channel, so the
    paper's split of the channels into heads changes nothing, and there is no number of heads to give.

    Args:
        dim: C.
        layout: axes of input and output: "TBNC", "TBCN" or "TBCHW".
    """

    def __init__(self, dim: int, *, layout: Layout = "TBNC") -> None:
        super().__init__(dim, layout)

    def gate(self, q: Tensor, k: Tensor) -> Tensor:
        """A * K for spikes `[T, B, N, C]`."""
        passes: Tensor = self.attn_lif(q.sum(2))  # [T, B, C]
        return passes.unsqueeze(2) * k

    def extra_repr(self) -> str:
        return f"{self.dim}, layout={self.layout!r}"


def fires_if_any(counts: Tensor) -> Tensor:
    """The spikes of `LIF(v_threshold=0.5)` for counts `[T, ...]`, without its membrane: 1 where a count is not 0.

    The neuron halves its input (tau = 2) and resets to 0. Let v = 0 before a step. A count n >= 1 gives h = n / 2, at
    least 0.5: it fires (a tie fires) and v becomes 0. A count of 0 gives h = 0: it is silent and v stays 0. So v is 0
    after every step of a run that begins at rest, and each step is a logical or of what was counted.

    Only for whole numbers >= 0 and a neuron that begins at rest; neither is checked. There is no gradient: for that
    take the neuron, whose slope at a silent step is not 0.
    """
    return torch.ge(counts, 1).to(counts.dtype)
