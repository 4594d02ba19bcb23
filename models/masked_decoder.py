"""The decoder of masked pre-training: a small vision transformer without spikes, thrown away afterwards.

    z = W x + positions;   z = z + attention(LN(z)), z = z + MLP(LN(z))   `depth` times;   patches = W' LN(z)

After He, Chen, Xie, Li, Dollar, Girshick 2022, "Masked Autoencoders Are Scalable Vision Learners" (MAE),
arXiv:2111.06377. Softmax attention, GELU, LayerNorm with eps 1e-6, queries, keys and values without bias.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.models.classifier import truncated_normal
from spikeloom.spiking_attention.layout import check_heads

_EPS = 1e-6
_MLP_RATIO = 4


class DecoderBlock(nn.Module):
    """Pre-norm attention and MLP on `[B, P, D]`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, _EPS), nn.LayerNorm(dim, _EPS)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, _MLP_RATIO * dim), nn.GELU(), nn.Linear(_MLP_RATIO * dim, dim))

    def forward(self, z: Tensor) -> Tensor:
        """One block."""
        # B P 3D -> q, k, v: B heads P d
        q, k, v = self.qkv(self.norm1(z)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        z = z + self.proj(mixed)
        return z + self.mlp(self.norm2(z))


class Decoder(nn.Module):
    """Tokens `[B, P, in_features]` of a grid -> values of its patches `[B, P, out_features]`."""

    def __init__(self, in_features: int, out_features: int, *, dim: int = 256, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        check_heads(dim, heads, "Decoder")
        if dim % 4:
            raise ValueError(f"Decoder got dim={dim}; expected a multiple of 4: sine and cosine of two coordinates.")
        self.dim = dim
        self.embed = nn.Linear(in_features, dim)
        self.blocks = nn.Sequential(*(DecoderBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, _EPS)
        self.out = nn.Linear(dim, out_features)
        self.apply(truncated_normal)

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode the tokens of a grid of (rows, columns), row by row."""
        z = self.embed(tokens)
        z = z + positions(grid, self.dim).to(z)
        patches: Tensor = self.out(self.norm(self.blocks(z)))
        return patches


def positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed 2-D sine-cosine positions `[rows * columns, dim]` float64, on the CPU.

    The first half of the channels tells x, the second y; each is sin(w_i p), then cos(w_i p), i = 0 .. dim/4 - 1, with
    w_i = 10000^(-4 i / dim).
    """
    rates = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) * 4 / dim)
    y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    angles = [place.flatten()[:, None] * rates for place in (x, y)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
