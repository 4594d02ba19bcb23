"""Affine maps of images and frames, one map per sample: where in the source each pixel of the result comes from.

Coordinates are in pixels; pixel k covers [k, k + 1), its centre is at k + 0.5. A map is `[B, 2, 3]` float32 with rows
(x, y): source = map[:, :, :2] @ (x, y) + map[:, :, 2], which is the inverse of the motion that one sees.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeloom.datasets.host_draws import on_device


def identity_maps(count: int) -> Tensor:
    """`count` maps that change nothing, `[B, 2, 3]`."""
    return torch.eye(2, 3).repeat(count, 1, 1)


def about_centre(maps: Tensor, H: int, W: int) -> Tensor:
    """The same maps with the centre of the image, not its corner, as origin."""
    centre = torch.tensor([W / 2, H / 2])
    moved = maps.clone()
    moved[:, :, 2] += centre - maps[:, :, :2] @ centre
    return moved


def source_points(maps: Tensor, H: int, W: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Source columns and rows `[B, H, W]` of the centre of each pixel of the result."""
    maps = on_device(maps, device)
    x = torch.arange(W, device=device) + 0.5  # [W]
    y = (torch.arange(H, device=device) + 0.5)[:, None]  # [H, 1]
    across, down = (
        row[:, 0, None, None] * x + row[:, 1, None, None] * y + row[:, 2, None, None] for row in maps.unbind(1)
    )
    return across, down


def warp_nearest(frames: Tensor, maps: Tensor) -> Tensor:
    """Move each sample of `[T, B, C, H, W]`, any dtype, by its map `[B, 2, 3]`: nearest pixel, 0 from outside."""
    T, B, C, H, W = frames.shape
    across, down = source_points(maps, H, W, frames.device)
    outside = (across < 0) | (across >= W) | (down < 0) | (down >= H)  # [B, H, W]
    column, row = across.floor().long().clamp_(0, W - 1), down.floor().long().clamp_(0, H - 1)
    source = (row * W + column).view(1, B, 1, H * W).expand(T, B, C, H * W)
    moved = frames.reshape(T, B, C, H * W).gather(3, source).view(T, B, C, H, W)
    return moved.masked_fill_(outside[None, :, None], 0)


def warp_smooth(images: Tensor, maps: Tensor, fill: Tensor, mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Move each of `[B, C, H, W]` uint8 by its map `[B, 2, 3]`; `fill` `[C]` where the centre comes from outside.

    As Pillow does: samples near the edge repeat the edge, and nothing is mixed with the fill. Bicubic is torch's kernel
    (a = -0.75; Pillow's is -0.5).
    """
    H, W = images.shape[2:]
    across, down = source_points(maps, H, W, images.device)
    grid = torch.stack((across * (2 / W) - 1, down * (2 / H) - 1), dim=3)  # grid_sample's -1..1 spans the outer edges
    moved = F.grid_sample(images.float(), grid, mode=mode, padding_mode="border", align_corners=False)
    outside = ((across < 0) | (across >= W) | (down < 0) | (down >= H))[:, None]  # [B, 1, H, W]
    filled = torch.where(outside, fill.to(moved)[:, None, None], moved)
    return filled.round_().clamp_(0, 255).to(torch.uint8)
