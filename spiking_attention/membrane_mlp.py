"""The channel mixer of the Spike-driven Transformer: two projections of every token onto the membrane stream.

    a  = BN(W1 s + b1),    u' = u + BN(W2 LIF(a) + b2)                  s = LIF(u) the spikes of the stream
    a  = u + BN(W1 s + b1),    u' = a + BN(W2 LIF(a) + b2)              if the hidden width is that of the stream

Paper: Yao et al. 2023, "Spike-driven Transformer", arXiv:2307.01694, section 3.2; the second form is that of the
authors' code (BICLab/Spike-Driven-Transformer, commit 3faa822, `MS_MLP_Conv`).
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.spiking_attention.layout import Layout, check_layout
from spikeloom.spiking_attention.membrane import MembraneProjection, Pair, pair_tokens
from spikeloom.synapses import Projection


class MembraneMLP(nn.Module):
    """Two projections on a pair (s, u) with s = LIF(u): `(s, u) -> (s', u')`, see `membrane`.

    Args:
        dim: C. hidden: channels between the two; hidden = dim adds a shortcut around the first.
        layout: axes of input and output: "TBCHW", "TBNC" or "TBCN".
        last: no neuron follows: the result is (None, u').
    """

    def __init__(self, dim: int, hidden: int, *, layout: Layout = "TBCHW", last: bool = False) -> None:
        super().__init__()
        check_layout(layout, "MembraneMLP")
        self.dim, self.layout = dim, layout
        self.shortcut = hidden == dim
        self.fc1 = MembraneProjection(dim, hidden) if self.shortcut else Projection(dim, hidden, bias=True, spikes=True)
        self.fc2 = MembraneProjection(hidden, dim, last=last)

    def forward(self, spikes: Tensor, u: Tensor) -> Pair:
        """Run all time steps."""
        s, stream, restore = pair_tokens(spikes, u, self.layout, self.dim, "MembraneMLP")
        if self.shortcut:
            s, stream = self.fc1(s, stream)
        else:
            s = self.fc1(s)
        return restore(self.fc2(s, stream))
