"""Spiking causal linear attention: a matrix state per head into which spikes of keys write spikes of values.

    q, k, v = LIF(RMSNorm(W x))                                        three maps without bias; x [L, B, C]
    S_t = e^{-rate_h} S_{t-1} + k_t v_t^T;   a_t = scale S_t^T q_t     per head
    out = W_o LIF(a)

Our own definition, on the recurrence of Lightning attention (Qin et al. 2024, arXiv:2401.04658): there is no published
spiking code. A token is a time step, and the neurons' membranes run on from token to token. Nothing is divided by a sum
of keys, which of spikes can be 0; RMSNorm and the last neuron keep the scale instead. With spikes, a token writes
nnz(k) nnz(v) and reads nnz(q) d sums per head; only the decay multiplies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention.causal_linear import attend, slopes
from spikeloom.spiking_attention.layout import check_heads
from spikeloom.spiking_attention.rms_norm import RMSNorm
from spikeloom.synapses import Linear

State = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...], Tensor]
"""Membranes of q, k, v and of the attention, each `[B, C]`, and S `[B, H, d, d]`: fixed size, however many tokens."""


class SpikingLinearAttention(nn.Module):
    """Causal token mixer on `[L, B, C]`, real-valued out; runs in a `Stream`, cut anywhere.

    Args:
        dim: C. num_heads: H, which divides C; head h has the channels h d to (h + 1) d - 1, d = C / H.
        decay_rate: `[H]`, >= 0; None is 2^(-8 (h + 1) / H).
        scale: of what is read; None is d^-1/2.
        v_threshold, attn_v_threshold: of q, k, v, and of the attention.
        norm_weight: start of the normalisations' weights; 3 lets 10 to 30 % of the neurons fire.
        chunk: tokens of a chunk, see `attend`.

    Raises:
        ValueError: the heads do not divide dim, or decay_rate is not H numbers >= 0.
    """

    streams = True
    decay_rate: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        decay_rate: Tensor | None = None,
        scale: float | None = None,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        attn_v_threshold: float = 0.5,
        norm_weight: float = 3.0,
        chunk: int = 64,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads, "SpikingLinearAttention")
        rate = slopes(num_heads) if decay_rate is None else decay_rate
        if rate.shape != (num_heads,) or not (rate.is_meta or bool((rate >= 0).all())):
            raise ValueError(
                f"SpikingLinearAttention got decay_rate {list(rate.shape)}; expected [{num_heads}] numbers >= 0."
            )
        self.dim, self.num_heads, self.scale, self.chunk = dim, num_heads, scale, chunk
        for name in ("q", "k", "v"):
            norm = RMSNorm(dim)
            nn.init.constant_(norm.weight, norm_weight)
            setattr(self, f"{name}_proj", Linear(dim, dim, bias=False))
            setattr(self, f"{name}_norm", norm)
            setattr(self, f"{name}_lif", LIF(tau, v_threshold, surrogate="atan", alpha=2.0))
        self.attn_lif = LIF(tau, attn_v_threshold, surrogate="atan", alpha=2.0)
        self.out_proj = Linear(dim, dim, bias=False)
        self.register_buffer("decay_rate", rate.detach().to(torch.get_default_dtype()))

    def forward(self, x: Tensor, *, state: State | None = None, return_state: bool = False) -> Any:
        """Run all tokens; with `return_state` `(out, state)`.

        Raises:
            ValueError: other axes or channels.
        """
        if x.ndim != 3 or x.shape[2] != self.dim:
            raise ValueError(f"SpikingLinearAttention got {list(x.shape)}; expected [L, B, C={self.dim}].")
        before: Any = (None,) * 5 if state is None else state
        heads, after = [], []
        for name, membrane in zip("qkv", before, strict=False):
            spikes, membrane = self._fire(name, x, membrane)
            heads.append(spikes.unflatten(2, (self.num_heads, -1)).permute(1, 2, 0, 3))  # [B, H, L, d]
            after.append(membrane)
        q, k, v = heads
        read, S = attend(q, k, v, -self.decay_rate, scale=self.scale, state=before[4], chunk=self.chunk)
        spikes, membrane = self.attn_lif(read.permute(2, 0, 1, 3).flatten(2), state=before[3], return_state=True)
        out: Tensor = self.out_proj(spikes)
        return (out, (*after, membrane, S)) if return_state else out

    def _fire(self, name: str, x: Tensor, membrane: Any) -> Any:
        """Spikes of q, k or v, and their membranes."""
        current = getattr(self, f"{name}_norm")(getattr(self, f"{name}_proj")(x))
        return getattr(self, f"{name}_lif")(current, state=membrane, return_state=True)

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.num_heads}, scale={self.scale}, chunk={self.chunk}"
