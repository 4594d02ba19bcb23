"""Images as batches on the device, uint8 until they are augmented and mixed: then normalised, then erased.

All random numbers of a batch are drawn on the host and go to the device in one copy; nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from spikeloom.datasets.image_augment import (
    crop_at,
    draw_boxes,
    draw_crop,
    draw_flip,
    erase_boxes,
    flip_where,
)
from spikeloom.datasets.images import Images
from spikeloom.datasets.rand_augment import Step
from spikeloom.training.mixing import draw_mixing, mix_by
from spikeloom.training.one_copy import sent
from spikeloom.training.recipe import Augment
from spikeloom.training.sources import Source, make_rand_augment


class NormalImages:
    """Images `[B, C, H, W]` float32 (channels-last in memory), (x / 255 - mean) / std by channel.

    Raises:
        ValueError: the recipe asks for legacy_cutmix, which is of frames.
    """

    def __init__(self, images: Images, source: Source, device: torch.device, augment: Augment) -> None:
        if augment.legacy_cutmix:
            raise ValueError(
                "Augment.legacy_cutmix is set, and the data are images; it changes frames of events alone. Pass "
                "--augment.no-legacy-cutmix."
            )
        self.augment = augment
        self._classes = source.num_classes
        self._images = images.images.to(device)
        self._rand_augment = make_rand_augment(augment, source)
        if self._rand_augment is not None:
            self._fill = self._rand_augment.fill_of(self._images.shape[1], device)
        self._mean = torch.tensor(source.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(source.std, device=device).view(-1, 1, 1)

    def plain(self, indices: Tensor) -> Tensor:
        """Images `[B]` as they are."""
        return self._normal(self._images[indices.to(self._images.device)]).contiguous(memory_format=torch.channels_last)

    def batch(
        self,
        indices: Tensor,
        labels: Tensor,
        epoch: int,
        generator: torch.Generator,
        rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images `[B]` changed at random, and their targets: labels `[B]`, or shares `[B, classes]` where it mixes.

        indices: on the host. labels: of all images, on the device. rows: make these of the batch alone, by the random
        numbers that they have in all of it. A box is erased behind the mixing, so that it is not blended with another
        image.
        """
        change, count, size = self.augment, len(indices), (self._images.shape[2], self._images.shape[3])
        # the order of the draws is part of the results
        offset = draw_crop(count, change.shift_px, generator) if change.shift_px else None
        flipped = draw_flip(count, generator, change.flip) if change.flip else None
        steps = [] if self._rand_augment is None else self._rand_augment.draw(count, size, generator)
        mixing = draw_mixing(change, epoch, generator)
        boxes = draw_boxes(count, size, generator, change.erase) if change.erase else None
        noise = None
        if boxes is not None and change.erase_mode == "pixel":
            noise = torch.randn(count, self._images.shape[1], *size, generator=generator)
        if rows is not None:
            steps = [_step_on(step, rows, count) for step in steps]
            offset, boxes = (None if drawn is None else drawn[:, rows] for drawn in (offset, boxes))
            flipped, noise = (None if drawn is None else drawn[rows] for drawn in (flipped, noise))
            indices = indices[rows]
        drawn = [tensor for tensor in (offset, flipped, boxes, noise) if tensor is not None]
        for step in steps:
            drawn += [step.chosen, step.amount]
        moved = iter(sent([indices, *drawn], self._images.device))
        place = next(moved)
        x, labels = self._images.index_select(0, place), labels.index_select(0, place)
        x = x if offset is None else crop_at(x, change.shift_px, next(moved))
        x = x if flipped is None else flip_where(x, next(moved))
        boxes = None if boxes is None else next(moved)
        noise = None if noise is None else next(moved)
        if self._rand_augment is not None:
            steps = [replace(step, chosen=next(moved), amount=next(moved)) for step in steps]
            x = self._rand_augment.apply(x, steps, self._fill)
        x, targets = mix_by(mixing, x, labels, self._classes)
        x = self._normal(x)
        x = x if boxes is None else erase_boxes(x, boxes, noise)
        return x.contiguous(memory_format=torch.channels_last), targets

    def _normal(self, pixels: Tensor) -> Tensor:
        return pixels.to(torch.float32).div_(255).sub_(self._mean).div_(self._std)


def _step_on(step: Step, rows: Tensor, count: int) -> Step:
    """What a step of RandAugment, drawn for `count` images, does to some of them."""
    place = torch.full((count,), -1)
    place[rows] = torch.arange(len(rows))
    kept = place[step.chosen] >= 0
    return replace(step, chosen=place[step.chosen[kept]], amount=step.amount[kept])
