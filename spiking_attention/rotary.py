"""Rotary position codes of a grid of tokens: the first half of the channels turns with rows, the second with columns.

    theta_j = 10000^(-4 j / C),  j = 0 .. C/4 - 1
    angle[y, x] = (y theta_0, y theta_1, ..., x theta_0, x theta_1, ...)                          C / 2 numbers
    (x_2i, x_2i+1) -> (x_2i cos a_i - x_2i+1 sin a_i,  x_2i sin a_i + x_2i+1 cos a_i)             a = angle[y, x]

Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", arXiv:2104.09864, on two axes as in
Han et al. 2024, "Demystify Mamba in Vision: A Linear Attention Perspective", arXiv:2405.16605. The table spans all
channels, before they are split into heads, so that the first half of the heads sees rows alone, the second columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def rotations(height: int, width: int, dim: int) -> Tensor:
    """Cosines and sines `[height, width, dim / 2, 2]`, float64.

    Raises:
        ValueError: dim is no multiple of 4.
    """
    check_rotary(dim, "rotations")
    theta = 10000.0 ** (-4.0 * torch.arange(dim // 4, dtype=torch.float64) / dim)
    rows = torch.arange(height, dtype=torch.float64)[:, None, None] * theta
    columns = torch.arange(width, dtype=torch.float64)[None, :, None] * theta
    shape = height, width, dim // 4
    angle = torch.cat([rows.expand(shape), columns.expand(shape)], -1)
    return torch.stack([angle.cos(), angle.sin()], -1)


def check_rotary(dim: int, where: str) -> None:
    """Raise unless the channels can be split into pairs for rows and pairs for columns."""
    if dim < 4 or dim % 4:
        raise ValueError(f"{where} got dim={dim}; expected a multiple of 4 (pairs of channels for rows and columns).")


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn tokens `[..., N, C]`, row by row of a grid, by the table `[h, w, C / 2, 2]` of that grid, N = h w."""
    pairs = x.unflatten(-1, (-1, 2))
    turn = table.flatten(0, 1).to(x.dtype)
    cos, sin = turn[..., 0], turn[..., 1]
    a, b = pairs[..., 0], pairs[..., 1]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Rotary(nn.Module):
    """`rotate` on a grid of fixed size. The table is no parameter and in no state dict.

    Whatever type the module is cast to, the table is the float64 one rounded to it, never rounded twice.

    Args:
        height, width: of the grid. dim: C, a multiple of 4.
    """

    table: Tensor

    def __init__(self, height: int, width: int, dim: int) -> None:
        super().__init__()
        self.size = height, width, dim
        self.register_buffer("table", self._rounded(torch.get_default_dtype()), persistent=False)

    def _rounded(self, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        return rotations(*self.size).to(device=device, dtype=dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.table = self._rounded(self.table.dtype, self.table.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Turn tokens `[..., N, C]` of the grid, row by row."""
        return rotate(x, self.table)

    def extra_repr(self) -> str:
        return "{}, {}, dim={}".format(*self.size)
