"""The colour operations of RandAugment on batches of uint8 images `[k, C, H, W]`, each image with its own strength.

Every function gives, image by image, the numbers of torchvision's operation for one image (on a CPU; a GPU may round a
blended value the other way, by 1). None waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

PHOTOMETRIC = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
)


def strengths(name: str, level: Tensor, sign: Tensor, increasing: bool) -> Tensor:
    """What `change_colours` takes as `strength`, `[k]` float64, of magnitudes v = level >= 0 and signs s = -1 or 1.

    A factor for Color, Contrast, Brightness and Sharpness; a mask of bits for Posterize, a threshold for Solarize, what
    is added for SolarizeAdd; 0 for the others.
    """
    v = level.double()
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return (1 + 0.9 * v * sign.double()).clamp(min=0.1) if increasing else 1.8 * v + 0.1
    if name == "Posterize":
        # above magnitude 10 the bits run out of 0..8
        bits = (4 - (4 * v).trunc() if increasing else (4 * v).trunc()).clamp(0, 8)
        return 256 - 2 ** (8 - bits)
    if name == "Solarize":
        threshold = (256 * v).trunc().clamp(max=256)
        return 256 - threshold if increasing else threshold
    if name == "SolarizeAdd":
        return (110 * v).trunc().clamp(max=128)
    return torch.zeros_like(v)


def change_colours(name: str, images: Tensor, strength: Tensor) -> Tensor:
    """Apply the operation of that name to `[k, C, H, W]` uint8, with strengths `[k]`."""
    return _CHANGES[name](images, strength[:, None, None, None])


def functional() -> ModuleType:
    """torchvision's operations.

    Raises:
        ImportError: torchvision cannot be imported.
    """
    try:
        import torchvision.transforms.v2.functional as found
    except ImportError as error:
        raise ImportError(
            "RandAugment's colour operations need torchvision, which cannot be imported. Install it with "
            "`pip install 'spikeloom[images]'`, or give RandAugment geometric operations only."
        ) from error
    return found


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    equal: Tensor = functional().equalize(images)
    return equal


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    values = images.float()
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    flat = low == high
    scale = ((high - low) * (1 / 255)).masked_fill(flat, 1)
    return ((values - low.masked_fill(flat, 0)) / scale).clamp_(0, 255).to(torch.uint8)


def _solarize_add(images: Tensor, added: Tensor) -> Tensor:
    brighter = (images.to(torch.int16) + added.to(torch.int16)).clamp_(max=255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


def _color(images: Tensor, factor: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factor)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factor)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor.float()).clamp_(0, 255).to(torch.uint8)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    C, H, W = images.shape[1:]
    if H <= 2 or W <= 2:
        return images
    values = images.float()
    kernel = torch.ones(C, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    inner = values[..., 1:-1, 1:-1]
    blurred = F.conv2d(values, kernel, groups=C).div_(13).round_()  # whole numbers: exact in any precision of a GPU
    inner.copy_(_sum(inner, blurred - inner, 1 - factor))
    return values.clamp_(0, 255).to(torch.uint8)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor images + (1 - factor) other."""
    return _sum(images * factor.float(), other, 1 - factor).clamp_(0, 255).to(torch.uint8)


def _sum(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """first + weight second, rounded once to float32, as a fused multiply-add is."""
    return (first.double() + second.double() * weight.float().double()).float()


def _grey(images: Tensor) -> Tensor:
    """Whole numbers `[k, 1, H, W]` float32."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.unbind(1)
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]


_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": lambda images, _: 255 - images,
    "Posterize": lambda images, mask: images & mask.to(torch.uint8),
    "Solarize": lambda images, threshold: torch.where(images >= threshold, 255 - images, images),
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
}
