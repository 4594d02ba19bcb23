"""Spiking Mamba: a selective state-space model that reads spikes and fires, over all tokens of all frames.

    x, z = split(W_in y);   s = LIF(BN(x))                                       y [T, B, N, C], x and z [T, B, N, Di]
    o    = ssm(s_1 ... s_L) + reversed ssm'(s_L ... s_1),   L = T N              token t N + n; see `SelectiveSSM`
    out  = W_out (LIF(BN(o)) SiLU(z))

Paper: Chen et al. 2024, "SpikMamba: When SNN meets Mamba in Event-based Human Action Recognition", arXiv:2410.16746.
The neurons' places are those of its figure; the normalisations are our reading, and no public code has this layer. The
neurons run over the T frames; convolution and state run over the L tokens, through frames. Gate and state are
real-valued.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import functional as F

from spikeloom.neurons import LIF, Neuron
from spikeloom.spiking_attention.mamba import SelectiveSSM, parts_of
from spikeloom.synapses import Linear, NormNeuron


class SpikeMamba(SelectiveSSM):
    """Token mixer on `[T, B, N, C]`, real-valued out; the names of its parameters are those of `MambaMixer`.

    In one direction it runs in a `Stream`, cut between frames. Its state: membranes in front of the scan, the state of
    `SelectiveSSM.mix`, membranes behind it. In both directions a `Stream` takes one chunk and refuses a second.

    Args:
        dim: channels C.
        bidirectional: scan from both ends, with parameters for each.
        d_state: states per channel, n. d_conv: taps of the convolution. expand: Di / C.
        dt_rank: rank of the time steps' projection; None is C / 16, rounded up.
        neuron: makes the neurons.

    Raises:
        ValueError: a size is below 1.
    """

    streams = True
    starts_itself: ClassVar[tuple[str, ...]] = ("x_proj", "x_proj_b", "dt_proj", "dt_proj_b")
    """Linear maps whose starting values `reset_ssm` or torch's default sets; a model leaves them alone."""

    def __init__(
        self,
        dim: int,
        *,
        bidirectional: bool = True,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        neuron: Callable[[], Neuron] = LIF,
    ) -> None:
        if min(dim, expand) < 1:
            raise ValueError(f"SpikeMamba got dim={dim}, expand={expand}; expected >= 1.")
        rank = ceil(dim / 16) if dt_rank is None else dt_rank
        super().__init__(expand * dim, bidirectional=bidirectional, d_state=d_state, d_conv=d_conv, dt_rank=rank)
        self.dim = dim
        self.in_proj = Linear(dim, 2 * self.features, bias=False)
        self.in_bn = NormNeuron(self.features, neuron())
        self.out_bn = NormNeuron(self.features, neuron())
        self.out_proj = Linear(self.features, dim, bias=False)

    def forward(self, y: Tensor, *, state: Any = None, return_state: bool = False) -> Any:
        """Mix all tokens of all frames; with `return_state` `(out, state)`.

        Raises:
            ValueError: other axes or channels, an empty axis, no state of this layer, or a state for both directions,
                which must see all frames at once.
        """
        if y.ndim != 4 or y.shape[3] != self.dim or 0 in y.shape:
            raise ValueError(
                f"SpikeMamba got tokens of shape {list(y.shape)}; expected [T, B, N, C={self.dim}], no axis empty."
            )
        if self.bidirectional and state is not None:
            raise ValueError(
                "SpikeMamba runs in both directions, so it must see all frames at once and cannot go on from a state; "
                "reset the stream in front of every clip, or build it with bidirectional=False"
            )
        before = parts_of(state, 3, "SpikeMamba", "(membranes, state of the scan, membranes)")
        x, z = self.in_proj(y).chunk(2, dim=3)
        spikes, first = _fire(self.in_bn, x, before[0], return_state)
        sequence = spikes.permute(1, 3, 0, 2)  # [B, Di, T, N]
        carries = return_state and not self.bidirectional
        found = self.mix(sequence.flatten(2), state=before[1], return_state=carries)
        mixed, middle = found if carries else (found, ())
        mixed = mixed.unflatten(2, sequence.shape[2:]).permute(2, 0, 3, 1)
        spikes, last = _fire(self.out_bn, mixed, before[2], return_state)
        out = self.out_proj(spikes * F.silu(z))
        return (out, (first, middle, last)) if return_state else out


def _fire(norm: NormNeuron, x: Tensor, state: Any, return_state: bool) -> tuple[Tensor, Any]:
    """Normalisation over channels and neuron on tokens `[T, B, N, C]`, and the membranes behind the last step."""
    found = norm(x.transpose(2, 3), state=state, return_state=return_state)
    spikes, after = found if return_state else (found, None)
    return spikes.transpose(2, 3), after
