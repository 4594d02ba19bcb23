"""Images as batches on the device, uint8 until they are augmented and mixed: then normalised, then erased."""

from __future__ import annotations

import torch
from torch import Tensor

from spikeloom.datasets.image_augment import flip_images, random_crop, random_erase
from spikeloom.datasets.images import Images
from spikeloom.training.recipe import Augment
from spikeloom.training.sources import Source, make_rand_augment


class NormalImages:
    """Images `[B, C, H, W]` float32 (channels-last in memory), (x / 255 - mean) / std by channel."""

    def __init__(self, images: Images, source: Source, device: torch.device, augment: Augment) -> None:
        self.augment = augment
        self._rand_augment = make_rand_augment(augment, source)
        self._images = images.images.to(device)
        self._mean = torch.tensor(source.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(source.std, device=device).view(-1, 1, 1)

    def plain(self, indices: Tensor) -> Tensor:
        """Images `[B]` as they are."""
        return self._normal(self._pixels(indices)).contiguous(memory_format=torch.channels_last)

    def augmented(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Images `[B]`, changed at random and still uint8: batches are mixed before `finished`."""
        change, x = self.augment, self._pixels(indices)
        if change.shift_px:
            x = random_crop(x, change.shift_px, generator)
        if change.flip:
            x = flip_images(x, generator, change.flip)
        if self._rand_augment is not None:
            x = self._rand_augment(x, generator)
        return x

    def finished(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """What `augmented` gave, mixed or not: normalised, then erased, so that a box is not blended with another."""
        x = self._normal(pixels)
        if self.augment.erase:
            x = random_erase(x, generator, self.augment.erase, self.augment.erase_mode)
        return x.contiguous(memory_format=torch.channels_last)

    def _pixels(self, indices: Tensor) -> Tensor:
        return self._images[indices.to(self._images.device)]

    def _normal(self, pixels: Tensor) -> Tensor:
        return (pixels.to(torch.float32) / 255 - self._mean) / self._std
