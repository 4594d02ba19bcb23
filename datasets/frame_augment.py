"""Augmentation of event frames as in the published event recipes of the Spikformer family.

First a horizontal flip with probability 1/2. Then one operation per sample, drawn evenly from six; its magnitude is
drawn evenly from 31 values over the range, then its sign:

    identity
    shear-x        m in [-0.3, 0.3]     x moves by tan(m) times the distance from the middle row
    translate-x    m in [-5, 5] px      whole pixels, fractions cut off
    translate-y    m in [-5, 5] px
    rotate         m in [-30, 30] deg   about the centre
    cutout         a square is set to 0

All frames and both polarities of a sample undergo the same. Pixels move to the nearest place; zeros move in. Counts
keep their dtype. The scheme is TrivialAugment (Mueller & Hutter 2021, arXiv:2103.10158), with operations
like those of Neuromorphic Data Augmentation (Li et al. 2022, arXiv:2203.06145).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from spikeloom.datasets.affine import about_centre, identity_maps, warp_nearest
from spikeloom.datasets.augment import flip_frames
from spikeloom.datasets.host_draws import on_device

BINS = 31
OPERATIONS = ("identity", "shear_x", "translate_x", "translate_y", "rotate", "cutout")

_MOST = {"shear_x": 0.3, "translate_x": 5.0, "translate_y": 5.0, "rotate": 30.0}
_CUTOUT_SIDE = (1.0, 30.0)  # pixels
_CUTOUT_AREA = (0.001, 0.11)  # fraction of the sensor


def augment_frames(
    frames: Tensor,
    generator: torch.Generator,
    *,
    flip_probability: float = 0.5,
    cutout: Literal["side", "area"] = "side",
) -> Tensor:
    """Flip, then apply one random operation to each sample of `[T, B, C, H, W]`; the shape and dtype stay.

    cutout="side": a square of 1 to 30 pixels, by the magnitude. cutout="area": a square of 0.1 % to 11 % of the sensor,
    drawn evenly by area; the official training scripts list the magnitudes above but erase such a square.
    """
    if cutout not in ("side", "area"):
        raise ValueError(f"cutout is {cutout!r}; expected 'side' or 'area'.")
    if not 0 <= flip_probability <= 1:
        raise ValueError(f"flip_probability is {flip_probability}; expected a number from 0 to 1.")
    flipped = flip_frames(frames, generator, flip_probability)
    return one_operation_each(flipped, generator, cutout=cutout)


def one_operation_each(
    frames: Tensor, generator: torch.Generator, *, cutout: Literal["side", "area"] = "side"
) -> Tensor:
    """The second half of `augment_frames`: one of `OPERATIONS` for each sample of `[T, B, C, H, W]`."""
    if frames.ndim != 5:
        raise ValueError(f"frames has shape {tuple(frames.shape)}; expected [T, B, C, H, W].")
    B, (H, W) = frames.shape[1], frames.shape[3:]
    operation = _draw(len(OPERATIONS), B, generator)
    position = _draw(BINS, B, generator).double() / (BINS - 1)  # [B], 0 to 1 in 31 steps
    sign = _draw(2, B, generator) * 2 - 1
    place = torch.rand(3, B, generator=generator, device=generator.device).cpu()
    moved = warp_nearest(frames, _maps(operation, (position * 2 - 1) * sign, H, W))
    if cutout == "side":
        side = (_CUTOUT_SIDE[0] + (_CUTOUT_SIDE[1] - _CUTOUT_SIDE[0]) * position).floor()
    else:
        side = ((_CUTOUT_AREA[0] + (_CUTOUT_AREA[1] - _CUTOUT_AREA[0]) * place[2]) * (H * W)).sqrt().round()
    side = side.clamp(max=min(H, W)) * (operation == OPERATIONS.index("cutout"))  # 0: no square
    squares = on_device(_squares(side.long(), place[:2], H, W), frames.device)
    return moved.masked_fill_(squares[None, :, None], 0)


def _maps(operation: Tensor, magnitude: Tensor, H: int, W: int) -> Tensor:
    """Maps `[B, 2, 3]` about the centre; magnitude `[B]` in -1..1, times the range of the sample's operation."""
    maps = identity_maps(len(operation))
    for name, most in _MOST.items():
        chosen = operation == OPERATIONS.index(name)
        m = (magnitude * most)[chosen].float()
        if name == "shear_x":
            maps[chosen, 0, 1] = m.tan()
        elif name == "rotate":
            angle = m.deg2rad()
            maps[chosen, 0, 0] = maps[chosen, 1, 1] = angle.cos()
            maps[chosen, 0, 1], maps[chosen, 1, 0] = -angle.sin(), angle.sin()
        else:
            maps[chosen, 0 if name == "translate_x" else 1, 2] = -m.trunc()  # what moves right comes from the left
    return about_centre(maps, H, W)


def _squares(side: Tensor, place: Tensor, H: int, W: int) -> Tensor:
    """Masks `[B, H, W]` of squares of `side` `[B]` that lie wholly inside, at `place` `[2, B]` in 0..1 of the room."""
    top = (place[0] * (H - side + 1)).floor()[:, None]
    left = (place[1] * (W - side + 1)).floor()[:, None]
    row, column = torch.arange(H)[None], torch.arange(W)[None]
    rows = (row >= top) & (row < top + side[:, None])  # [B, H]
    columns = (column >= left) & (column < left + side[:, None])  # [B, W]
    return rows[:, :, None] & columns[:, None, :]


def _draw(below: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(below, (count,), generator=generator, device=generator.device).cpu()
