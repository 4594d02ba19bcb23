"""Mixup and cutmix of batches, images and frames alike, by a recipe."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from spikeloom.datasets.image_augment import cutmix, mixup
from spikeloom.training.recipe import Augment


def mix(
    inputs: Tensor, labels: Tensor, classes: int, augment: Augment, epoch: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs `[B, C, H, W]` or `[T, B, C, H, W]` and labels `[B]`; mixed, with shares `[B, classes]`, if it is asked.

    One draw decides for the whole batch. Mixed uint8 images are rounded to uint8. Smoothing is left to the loss.
    """
    if not (augment.mixup or augment.cutmix) or (augment.mix_epochs is not None and epoch >= augment.mix_epochs):
        return inputs, labels
    by_mixup = not augment.cutmix or (augment.mixup > 0 and float(torch.rand(1, generator=generator)) < 0.5)
    change, alpha = (mixup, augment.mixup) if by_mixup else (cutmix, augment.cutmix)
    shares = F.one_hot(labels, classes).to(torch.float32)
    mixed, shares = change(
        inputs.to(torch.float32), shares, alpha, generator, augment.mix_prob, batch_axis=inputs.ndim - 4
    )
    return (mixed if inputs.is_floating_point() else mixed.round().to(inputs.dtype)), shares
