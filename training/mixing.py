"""Mixup and cutmix of batches, images and frames alike, by a recipe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeloom.datasets.image_augment import blend, draw_centre, draw_share, paste
from spikeloom.training.recipe import Augment


@dataclass(frozen=True)
class Mixing:
    """How a batch is mixed. share: of each sample itself, 1: all of it. centre: of cutmix's box; None: mixup."""

    share: float
    centre: tuple[float, float] | None


def draw_mixing(augment: Augment, epoch: int, generator: torch.Generator) -> Mixing | None:
    """One draw for the whole batch; None: the recipe does not mix (any more), and targets stay labels."""
    if not (augment.mixup or augment.cutmix) or (augment.mix_epochs is not None and epoch >= augment.mix_epochs):
        return None
    by_mixup = not augment.cutmix or (augment.mixup > 0 and float(torch.rand(1, generator=generator)) < 0.5)
    share = draw_share(augment.mixup if by_mixup else augment.cutmix, generator, augment.mix_prob)
    return Mixing(share, None if by_mixup else draw_centre(generator))


def mix_by(
    mixing: Mixing | None, inputs: Tensor, labels: Tensor, classes: int, *, legacy_cutmix: bool = False
) -> tuple[Tensor, Tensor]:
    """Inputs `[B, C, H, W]` or `[T, B, C, H, W]` and labels `[B]` mixed as was drawn, with shares `[B, classes]`.

    Mixed uint8 images are rounded to uint8. Smoothing is left to the loss. Does not wait for the device.

    legacy_cutmix: cut C and H of frames, see `Augment.legacy_cutmix`.

    Raises:
        ValueError: legacy_cutmix with images, where the authors' code cuts what it should.
    """
    if mixing is None:
        return inputs, labels
    if legacy_cutmix and inputs.ndim != 5:
        raise ValueError(
            f"Augment.legacy_cutmix is set, and the inputs are {tuple(inputs.shape)}; expected frames [T, B, C, H, W]. "
            "Pass --augment.no-legacy-cutmix."
        )
    shares = (labels[:, None] == torch.arange(classes, device=labels.device)).to(torch.float32)
    if mixing.share == 1:
        return inputs, shares
    values, axis = inputs.to(torch.float32), inputs.ndim - 4
    if mixing.centre is None:
        mixed, shares = blend(values, shares, mixing.share, batch_axis=axis)
    else:
        axes = (-3, -2) if legacy_cutmix else (-2, -1)
        mixed, shares = paste(values, shares, mixing.share, mixing.centre, batch_axis=axis, axes=axes)
    return (mixed if inputs.is_floating_point() else mixed.round().to(inputs.dtype)), shares


def mix(
    inputs: Tensor, labels: Tensor, classes: int, augment: Augment, epoch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw, and mix: inputs and labels as they are if the recipe does not mix in this epoch."""
    drawn = draw_mixing(augment, epoch, generator)
    return mix_by(drawn, inputs, labels, classes, legacy_cutmix=augment.legacy_cutmix)
