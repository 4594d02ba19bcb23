"""What the networks of the SpikMamba code are made of, with everything about them that decides a number.

M = B T frames follow each other sample by sample, tokens are `[M, N, C]`, and `flip` is their order reversed. What is
unusual, and kept: neurons take the M frames for time, so that a sample starts with the membranes that the one before
it left; batch normalisation has a mean and a variance for each place of a token, not for each channel; one linear map
makes value and gate, the gate by being applied twice; only queries and keys spike. In blocks that read both ways also:
the neurons run on from the frames into the reversed frames; the gate of the reversed half stays reversed; a convolution
reaches from one half into the other; a linear map mixes places; the second residual starts from the normalised tokens.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.models.drop_path import DropPath
from spikeloom.neurons import LIF
from spikeloom.spiking_attention.rotary import rotate, rotations
from spikeloom.spiking_attention.windowed_linear import linear_attention
from spikeloom.synapses import BatchNorm1d


class PlaceNorm(BatchNorm1d):
    """Batch normalisation with statistics for each place of a token: `[M, N, C]` -> `[M, N, C]`, N features."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the M frames and the channels."""
        return super().forward(x.unsqueeze(1)).squeeze(1)


class RotaryTable(nn.Module):
    """The rotary codes as an entry of the state dict, computed in float32."""

    rotations: Tensor

    def __init__(self, grid: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.register_buffer("rotations", rotations(*grid, dim).float())

    def forward(self, x: Tensor) -> Tensor:
        """Turn tokens `[..., N, C]`, row by row."""
        return rotate(x, self.rotations)


class DepthwiseMap(nn.Conv2d):
    """A depth-wise 3 x 3 convolution on tokens: `[M, N, C]` as a map of `rows` rows."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, rows: int) -> Tensor:  # type: ignore[override]
        """Convolve every map."""
        maps = x.unflatten(1, (rows, -1)).movedim(-1, 1)
        return super().forward(maps).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Linear attention inside frames, of K inputs one behind the other: `[K, M, N, C]` -> the same.

    In training each of the K is normalised by its own statistics, and the running ones take each in turn.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], dropout: float) -> None:
        super().__init__()
        self.num_heads, self.rows = num_heads, grid[0]
        self.qk = nn.Linear(dim, 2 * dim)
        self.drop = nn.Dropout(dropout)
        self.qk_norm = PlaceNorm(grid[0] * grid[1])
        self.qk_lif = LIF()
        self.lepe = DepthwiseMap(dim)
        self.rope = RotaryTable(grid, dim)

    def forward(self, u: Tensor) -> Tensor:
        """Run the K inputs; the neurons' time is K M."""
        currents = torch.cat([self.qk_norm(self.drop(self.qk(part))) for part in u])
        q, k = (1 + self.qk_lif(currents)).chunk(2, dim=2)
        v = u.flatten(0, 1)
        mixed = linear_attention(q, k, v, self.rope, self.num_heads) + self.lepe(v, self.rows)
        return mixed.view(u.shape)


class MLP(nn.Module):
    """W_2 GELU(W_1 x)."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2, self.drop = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Run all tokens."""
        return cast(Tensor, self.drop(self.fc2(self.drop(F.gelu(self.fc1(x))))))


class AttentionBlock(nn.Module):
    """`sla`: convolution, gated linear attention, convolution and MLP, on `[M, N, C]`.

    Args:
        dim: C. num_heads: divides C. grid: (h, w), N = h w.
        rates: of dropout on queries and keys, of dropout in the MLP, and of DropPath, which takes single frames.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], rates: tuple[float, float, float]) -> None:
        super().__init__()
        self.rows = grid[0]
        self.cpe1, self.cpe2, self.dwc = DepthwiseMap(dim), DepthwiseMap(dim), DepthwiseMap(dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.in_proj, self.act_proj, self.out_proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.attn = Attention(dim, num_heads, grid, rates[0])
        self.mlp = MLP(dim, rates[1])
        self.drop_path = DropPath(rates[2], axis=0)

    def forward(self, x: Tensor) -> Tensor:
        """Run all frames."""
        x = x + self.cpe1(x, self.rows)
        y = self.act_proj(self.norm1(x))
        gate = F.silu(self.act_proj(y))
        u = F.silu(self.dwc(self.in_proj(y), self.rows))
        x = x + self.drop_path(self.out_proj(self.attn(u.unsqueeze(0)).squeeze(0) * gate))
        return self._finish(x)

    def _finish(self, x: Tensor) -> Tensor:
        """The second convolution and the MLP."""
        x = x + self.cpe2(x, self.rows)
        return cast(Tensor, x + self.drop_path(self.mlp(self.norm2(x))))


class TwoWayBlock(AttentionBlock):
    """`bisla`: the same on the tokens and, behind them, the tokens in reversed order."""

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], rates: tuple[float, float, float]) -> None:
        super().__init__(dim, num_heads, grid, rates)
        N = grid[0] * grid[1]
        self.dim2 = nn.Linear(2 * N, N)

    def forward(self, x: Tensor) -> Tensor:
        """Run all frames."""
        x = x + self.cpe1(x, self.rows)
        normed = self.norm1(x)
        y = self.act_proj(torch.cat([normed, normed.flip(1)], 1))  # [M, 2 N, C]
        gate = F.silu(self.act_proj(y))
        u = F.silu(self.dwc(self.in_proj(y), 2 * self.rows))
        ahead, back = self.attn(torch.stack(u.chunk(2, dim=1)))
        both = self.out_proj(torch.cat([ahead, back.flip(1)], 1) * gate)
        mixed = self.dim2(both.transpose(1, 2)).transpose(1, 2)
        out = normed + self.cpe2(x + self.drop_path(mixed), self.rows)
        return cast(Tensor, out + self.drop_path(self.mlp(self.norm2(out))))
