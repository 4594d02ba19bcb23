"""The channel mixer of Spike-driven Transformer V3: two maps of every token, integer spikes in front of each.

    out = BN(W2 S(BN(W1 S(x) + b1)) + b2)

Paper: Yao et al. 2025, arXiv:2411.16061.
"""

from __future__ import annotations

from torch import Tensor, nn

from spikeloom.spiking_attention.integer import integer_neuron
from spikeloom.spiking_attention.layout import Layout, check_layout, to_tokens
from spikeloom.spiking_attention.normed import PointwiseNorm
from spikeloom.synapses import Projection


class IntegerMLP(nn.Module):
    """Two maps with bias on `[T, B, C, H, W]` (or another layout) of membranes, a branch in the same shape out.

    Args:
        dim: C. hidden: channels between the two.
        layout: axes of input and output: "TBNC", "TBCN" or "TBCHW".
        max_spikes: of the integer neurons, 4 ("1 x 4") or 8.
    """

    def __init__(self, dim: int, hidden: int, *, layout: Layout = "TBCHW", max_spikes: int = 4) -> None:
        super().__init__()
        check_layout(layout, "IntegerMLP")
        self.dim, self.layout = dim, layout
        self.neuron = integer_neuron(max_spikes)
        self.fc1 = Projection(dim, hidden, bias=True, neuron=integer_neuron(max_spikes))
        self.fc2 = PointwiseNorm(hidden, dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        tokens, restore = to_tokens(x, self.layout, self.dim, "IntegerMLP")
        return restore(self.fc2(self.fc1(self.neuron(tokens))))
