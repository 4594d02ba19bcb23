"""Spiking self-attention (SSA).

    Q, K, V = LIF(BN(W x))                             spikes [T, B, h, N, d]
    out     = LIF(BN(W LIF_0.5(s Q K^T V)))            s = 0.125, one power of two for every width

Paper: Zhou, Zhu, He, Wang, Yan, Tian, Yuan 2023, "Spikformer: When Spiking Neural Network Meets Transformer",
arXiv:2209.15425, eqs. 4-8. There is no softmax, so (Q K^T) V = Q (K^T V): all intermediate values are whole numbers,
both orders give the same bits, and the cheaper one is taken. A count of 1 / s or more fires whatever the membrane was,
so rounding counts above 256 in bfloat16 changes no spike.

QKFormer (arXiv:2403.16552) uses the same cell; its published code runs the last neuron over the samples of the batch as
if they were time steps, see `proj_lif`.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from spikeloom.neurons import LIF
from spikeloom.spiking_attention.layout import Layout, check_heads, check_layout, to_tokens
from spikeloom.spiking_attention.products import ORDERS, Order, mix
from spikeloom.synapses import Projection


def check_scale(scale: float | str, where: str) -> None:
    """Raise unless `scale` is a finite number > 0 or "rsqrt_d"; `where` is what was given it, for the message."""
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if scale != "rsqrt_d" and not (number and math.isfinite(scale) and scale > 0):  # type: ignore[arg-type, operator]
        raise ValueError(f"{where} got scale={scale!r}; expected a finite number > 0, such as 0.125, or 'rsqrt_d'.")


class SSA(nn.Module):
    """Spiking self-attention on `[T, B, N, C]` (or another layout), spikes out in the shape of the input.

    Args:
        dim: C. num_heads: h, which divides C; d = C / h.
        scale: s, or "rsqrt_d" for d^-1/2 (not in the paper's code).
        order: `qk_v` is (Q K^T) V with 2 N^2 d operations per head, `q_kv` is Q (K^T V) with 2 N d^2; `auto` takes the
            cheaper: `q_kv` where N > d.
        bias: of the maps to Q, K and V (the CIFAR flavour of the paper's code has it); the last map always has one.
        layout: axes of input and output: "TBNC", "TBCN" or "TBCHW".
        proj_lif: `time` for every new model. `batch_leak` exists to run QKFormer's published weights as they were
            trained: the last neuron takes [T B] as its time axis, so a sample's output depends on those before it in
            the batch, and published accuracies hold only with the batches of that evaluation.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        scale: float | Literal["rsqrt_d"] = 0.125,
        order: Order = "auto",
        bias: bool = False,
        layout: Layout = "TBNC",
        proj_lif: Literal["time", "batch_leak"] = "time",
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads, "SSA")
        check_layout(layout, "SSA")
        check_scale(scale, "SSA")
        if order not in ORDERS:
            raise ValueError(f"SSA got order={order!r}; expected {', '.join(map(repr, ORDERS))}.")
        if proj_lif not in ("time", "batch_leak"):
            raise ValueError(f"SSA got proj_lif={proj_lif!r}; expected 'time', or 'batch_leak' for QKFormer's weights.")
        self.dim, self.num_heads, self.layout = dim, num_heads, layout
        self.scale = (dim // num_heads) ** -0.5 if isinstance(scale, str) else scale
        self.order, self.proj_lif = order, proj_lif
        self.qkv = Projection(dim, 3 * dim, bias=bias)
        self.attn_lif = LIF(v_threshold=0.5)
        self.proj = Projection(dim, dim, bias=True, spikes=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        tokens, restore = to_tokens(x, self.layout, self.dim, "SSA")
        mixed = self.attn_lif(mix(self.qkv(tokens), self.num_heads, self.scale, self.order))
        if self.proj_lif == "time":
            return restore(self.proj(mixed))
        return restore(self.proj(mixed.flatten(0, 1).unsqueeze(1)).reshape(mixed.shape))

    def extra_repr(self) -> str:
        words = f"{self.dim}, heads={self.num_heads}, scale={self.scale}, order={self.order!r}, layout={self.layout!r}"
        return words if self.proj_lif == "time" else f"{words}, proj_lif={self.proj_lif!r}"
