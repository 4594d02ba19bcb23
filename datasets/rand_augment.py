"""RandAugment on uint8 image batches, with the operations and magnitude rules of timm's setting strings.

Cubuk et al. 2019, "RandAugment", arXiv:1909.13719; the rules are those of timm (pytorch-image-models) for strings such
as "rand-m9-n1-mstd0.4-inc1":

    m    magnitude, 0 to 10 (10 if not given)
    n    operations per image, drawn with replacement (2 if not given); each is then applied with probability 1/2
    mstd standard deviation of normal noise on the magnitude; above 100: uniform in 0..m
    mmax upper bound of the magnitude (10)
    inc  1: every operation grows stronger with the magnitude

The magnitude is clamped to 0..mmax. With v = magnitude / 10 and a random sign s: rotate by 30 v s degrees; shear by
0.3 v s; translate by 0.45 v s of the side; posterize to int(4 v) bits (inc: 4 - int(4 v), 0 at least); solarize from
t = int(256 v), 256 at most (inc: 256 - t); add int(110 v), 128 at most, to values below 128; colour, contrast,
brightness, sharpness by the factor 1.8 v + 0.1 (inc: max(0.1, 1 + 0.9 v s)). Draws are per image. Geometry follows
Pillow's convention (shear about the corner, rotation about the centre, a fill of the data's mean). The colour
operations are torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal, Self, cast

import torch
from torch import Tensor

from spikeloom.datasets.affine import about_centre, identity_maps, warp_smooth

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
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
TIMM_OPERATIONS = PHOTOMETRIC + GEOMETRIC
SPIKFORMER_OPERATIONS = ("Equalize", "Rotate", "ShearX", "TranslateX", "TranslateY")
"""What Spikformer's CIFAR scripts leave of timm's list."""

Interpolation = Literal["bilinear", "bicubic", "random"]

_FULL = 10.0  # the magnitude at which v = 1


@dataclass(frozen=True)
class RandAugment:
    """RandAugment of the given settings; call it with images `[B, C, H, W]` uint8 (C = 1 or 3) and a generator.

    fill: value per channel (or one for all) of what moves in from outside. interpolation: of the geometric operations;
    "random" draws bilinear or bicubic per image, timm's default.

    Raises:
        ValueError: settings that cannot be. ImportError: colour operations without torchvision.
    """

    magnitude: float = _FULL
    layers: int = 2
    magnitude_std: float = 0.0
    magnitude_max: float = _FULL
    increasing: bool = False
    operations: tuple[str, ...] = TIMM_OPERATIONS
    fill: tuple[int, ...] = (128,)
    interpolation: Interpolation = "random"
    probability: float = 0.5

    def __post_init__(self) -> None:
        unknown = [name for name in self.operations if name not in TIMM_OPERATIONS]
        if unknown or not self.operations:
            raise ValueError(f"operations has {unknown or 'no entry'}; expected some of {', '.join(TIMM_OPERATIONS)}.")
        if self.layers < 1 or self.magnitude < 0 or self.magnitude_std < 0 or self.magnitude_max <= 0:
            raise ValueError(f"{self} is not valid; expected layers >= 1, magnitude >= 0, std >= 0, magnitude_max > 0.")
        if self.interpolation not in ("bilinear", "bicubic", "random"):
            raise ValueError(f"interpolation is {self.interpolation!r}; expected 'bilinear', 'bicubic' or 'random'.")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability}; expected a number from 0 to 1.")
        if any(name in PHOTOMETRIC for name in self.operations):
            _functional()  # what is missing shows here, not in a batch

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        operations: tuple[str, ...] = TIMM_OPERATIONS,
        mean: Sequence[float] | None = None,
        interpolation: Interpolation = "random",
    ) -> Self:
        """Read a timm string; mean (0..1 per channel, of the data) gives the fill, 128 without."""
        head, *sections = text.split("-")
        found = [re.fullmatch(r"(mstd|mmax|inc|m|n)(\d+(?:\.\d+)?|inf)", section) for section in sections]
        if head != "rand" or not all(found):
            raise ValueError(
                f"The setting is {text!r}; expected 'rand' and sections m, n, mstd, mmax, inc with numbers, joined by "
                "'-', such as 'rand-m9-n1-mstd0.4-inc1'."
            )
        names = [match[1] for match in found if match]
        if len(set(names)) < len(names):
            raise ValueError(f"The setting {text!r} has a section twice; expected each once.")
        values = {match[1]: float(match[2]) for match in found if match}
        if not values.get("n", 2.0).is_integer():
            raise ValueError(f"The setting {text!r} has n={values['n']:g}; expected a whole number of operations.")
        std = values.get("mstd", 0.0)
        return cls(
            magnitude=values.get("m", _FULL),
            layers=int(values.get("n", 2)),
            magnitude_std=float("inf") if std > 100 else std,
            magnitude_max=values.get("mmax", _FULL),
            increasing=values.get("inc", 0) > 0,
            operations=operations,
            fill=(128,) if mean is None else tuple(min(255, round(255 * value)) for value in mean),
            interpolation=interpolation,
        )

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment `[B, C, H, W]` uint8; a new tensor of the same shape."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images is {images.dtype} {tuple(images.shape)}; expected uint8 [B, C, H, W] with 1 or 3 channels, "
                "before normalising."
            )
        if len(self.fill) not in (1, images.shape[1]):
            raise ValueError(f"fill has {len(self.fill)} values for {images.shape[1]} channels.")
        result = images.clone()
        for _ in range(self.layers):
            self._layer(result, generator)
        return result

    def _layer(self, images: Tensor, generator: torch.Generator) -> None:
        """One operation for each image, in place."""
        B, device = len(images), generator.device
        operation = torch.randint(len(self.operations), (B,), generator=generator, device=device).cpu()
        applied, signs, modes, uniform = torch.rand(4, B, generator=generator, device=device).cpu()
        noise = torch.randn(B, generator=generator, device=device).cpu()
        random = self.magnitude * uniform if self.magnitude_std == float("inf") else self.magnitude_std * noise
        magnitude = random if self.magnitude_std == float("inf") else self.magnitude + random
        level = magnitude.clamp(0, self.magnitude_max) / _FULL
        sign = torch.where(signs < 0.5, -1.0, 1.0)
        for number, name in enumerate(self.operations):
            chosen = ((operation == number) & (applied < self.probability)).nonzero().squeeze(1)
            if len(chosen) == 0:
                continue
            if name in GEOMETRIC:
                self._move(images, name, chosen, (level * sign)[chosen], modes[chosen] < 0.5)
            else:
                self._colour(images, name, chosen.tolist(), level[chosen].tolist(), sign[chosen].tolist())

    def _move(self, images: Tensor, name: str, chosen: Tensor, amount: Tensor, draw: Tensor) -> None:
        """Geometric operation `name` on images[chosen], by `amount` (v s); `draw`: bicubic where it is free."""
        maps = _maps(name, amount, images.shape[2], images.shape[3])
        bicubic = draw if self.interpolation == "random" else torch.full_like(draw, self.interpolation == "bicubic")
        fill = torch.tensor(self.fill, device=images.device).expand(images.shape[1])
        for mode, picked in (("bilinear", ~bicubic), ("bicubic", bicubic)):
            if bool(picked.any()):
                index = chosen[picked].to(images.device)
                images[index] = warp_smooth(images[index], maps[picked], fill, cast(Literal["bilinear"], mode))

    def _colour(self, images: Tensor, name: str, chosen: list[int], level: list[float], sign: list[float]) -> None:
        """Photometric operation `name` on images[chosen], each with its own strength."""
        F = _functional()
        for index, v, s in zip(chosen, level, sign, strict=True):
            factor = max(0.1, 1 + 0.9 * v * s) if self.increasing else 1.8 * v + 0.1
            images[index] = _PHOTOMETRIC[name](F, images[index], v, factor, self.increasing)


def _maps(name: str, amount: Tensor, H: int, W: int) -> Tensor:
    """Maps `[k, 2, 3]` of a geometric operation; amount `[k]` in -1..1."""
    maps = identity_maps(len(amount))
    if name == "ShearX":
        maps[:, 0, 1] = 0.3 * amount
    elif name == "ShearY":
        maps[:, 1, 0] = 0.3 * amount
    elif name == "TranslateX":
        maps[:, 0, 2] = 0.45 * amount * W
    elif name == "TranslateY":
        maps[:, 1, 2] = 0.45 * amount * H
    else:
        angle = (30 * amount).deg2rad()
        maps[:, 0, 0] = maps[:, 1, 1] = angle.cos()
        maps[:, 0, 1], maps[:, 1, 0] = -angle.sin(), angle.sin()
        maps = about_centre(maps, H, W)
    return maps


def _posterize(F: ModuleType, image: Tensor, v: float, increasing: bool) -> Tensor:
    bits = max(4 - int(4 * v), 0) if increasing else int(4 * v)
    return image if bits >= 8 else F.posterize(image, bits)  # above magnitude 10, `bits` runs out of 0..8


def _solarize(F: ModuleType, image: Tensor, v: float, increasing: bool) -> Tensor:
    threshold = min(int(256 * v), 256)
    threshold = 256 - threshold if increasing else threshold
    return image if threshold > 255 else F.solarize(image, threshold)


def _solarize_add(image: Tensor, v: float) -> Tensor:
    brighter = (image.to(torch.int16) + min(int(110 * v), 128)).clamp_(max=255).to(torch.uint8)
    return torch.where(image < 128, brighter, image)


# F, image [C, H, W] uint8, v, factor, increasing -> image
_PHOTOMETRIC: dict[str, Callable[[ModuleType, Tensor, float, float, bool], Tensor]] = {
    "AutoContrast": lambda F, image, v, factor, inc: F.autocontrast(image),
    "Equalize": lambda F, image, v, factor, inc: F.equalize(image),
    "Invert": lambda F, image, v, factor, inc: 255 - image,
    "Posterize": lambda F, image, v, factor, inc: _posterize(F, image, v, inc),
    "Solarize": lambda F, image, v, factor, inc: _solarize(F, image, v, inc),
    "SolarizeAdd": lambda F, image, v, factor, inc: _solarize_add(image, v),
    "Color": lambda F, image, v, factor, inc: F.adjust_saturation(image, factor),
    "Contrast": lambda F, image, v, factor, inc: F.adjust_contrast(image, factor),
    "Brightness": lambda F, image, v, factor, inc: F.adjust_brightness(image, factor),
    "Sharpness": lambda F, image, v, factor, inc: F.adjust_sharpness(image, factor),
}


def _functional() -> ModuleType:
    try:
        import torchvision.transforms.v2.functional as functional
    except ImportError as error:
        raise ImportError(
            "RandAugment's colour operations need torchvision, which cannot be imported. Install it with "
            "`pip install 'spikeloom[images]'`, or give RandAugment geometric operations only."
        ) from error
    return functional
