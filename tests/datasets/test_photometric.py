"""Colour operations on batches: each image gets the very numbers of torchvision's operation on it alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spikeloom.datasets.photometric import PHOTOMETRIC, change_colours, strengths

functional = pytest.importorskip("torchvision.transforms.v2.functional")


def alone(name: str, image: Tensor, v: float, sign: float, increasing: bool) -> Tensor:
    """torchvision's operation on one image `[C, H, W]`, with the strength by the rules of the setting strings."""
    factor = max(0.1, 1 + 0.9 * v * sign) if increasing else 1.8 * v + 0.1
    bits = max(4 - int(4 * v), 0) if increasing else int(4 * v)
    threshold = min(int(256 * v), 256)
    threshold = 256 - threshold if increasing else threshold
    if name == "SolarizeAdd":
        added = (image.int() + min(int(110 * v), 128)).clamp(max=255).to(torch.uint8)
        return torch.where(image < 128, added, image)
    if name == "Posterize":
        return image if bits >= 8 else functional.posterize(image, bits)
    if name == "Solarize":
        return image if threshold > 255 else functional.solarize(image, threshold)
    simple = {"AutoContrast": "autocontrast", "Equalize": "equalize", "Invert": "invert"}
    if name in simple:
        return getattr(functional, simple[name])(image)
    adjust = {"Color": "saturation", "Contrast": "contrast", "Brightness": "brightness", "Sharpness": "sharpness"}
    return getattr(functional, f"adjust_{adjust[name]}")(image, factor)


@pytest.mark.parametrize("name", PHOTOMETRIC)
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("increasing", [True, False])
def test_a_batch_is_its_images_one_by_one(name: str, channels: int, increasing: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(24, channels, 4, 5, generator=generator)
    images = (torch.nn.functional.interpolate(coarse, (16, 20), mode="bilinear") * 255).to(torch.uint8)
    images[:4] = torch.randint(256, images[:4].shape, generator=generator).to(torch.uint8)
    images[4:8] = images[4:8, :1]  # grey
    images[8:10] = images[8:10, :, :1, :1]  # flat
    level = torch.rand(24, generator=generator) * 1.5
    level[:3] = torch.tensor([0.0, 1.0, 2.0])
    sign = torch.where(torch.rand(24, generator=generator) < 0.5, -1.0, 1.0)
    changed = change_colours(name, images, strengths(name, level, sign, increasing))
    assert changed.dtype == torch.uint8
    rows = zip(images, level.tolist(), sign.tolist(), strict=True)
    assert torch.equal(changed, torch.stack([alone(name, image, v, s, increasing) for image, v, s in rows]))
