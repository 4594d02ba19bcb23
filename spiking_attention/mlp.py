"""The channel mixer of Spikformer and QKFormer: two projections of every token.

    out = LIF(BN(W2 LIF(BN(W1 x + b1)) + b2))

Paper: Zhou et al. 2023, arXiv:2209.15425, section 3.1 (MLP block).
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.spiking_attention.layout import Layout, check_layout, to_tokens
from spikeloom.synapses import Projection


class SpikingMLP(nn.Module):
    """Two projections with bias on `[T, B, N, C]` (or another layout), spikes out in the shape of the input.

    Args:
        dim: C. hidden: channels between the two.
        layout: axes of input and output: "TBNC", "TBCN" or "TBCHW".
    """

    def __init__(self, dim: int, hidden: int, *, layout: Layout = "TBNC") -> None:
        super().__init__()
        check_layout(layout, "SpikingMLP")
        self.dim, self.layout = dim, layout
        self.fc1 = Projection(dim, hidden, bias=True)
        self.fc2 = Projection(hidden, dim, bias=True, spikes=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        tokens, restore = to_tokens(x, self.layout, self.dim, "SpikingMLP")
        return restore(self.fc2(self.fc1(tokens)))
