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
operations are torchvision's. All images of a batch that one operation falls on go through it together: one warp for all
geometric ones, one call for each colour operation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor

from spikeloom.datasets.affine import about_centre, identity_maps, warp_smooth
from spikeloom.datasets.photometric import PHOTOMETRIC, change_colours, functional, strengths

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
TIMM_OPERATIONS = PHOTOMETRIC + GEOMETRIC
SPIKFORMER_OPERATIONS = ("Equalize", "Rotate", "ShearX", "TranslateX", "TranslateY")
"""What Spikformer's CIFAR scripts leave of timm's list."""

Interpolation = Literal["bilinear", "bicubic", "random"]

_FULL = 10.0  # the magnitude at which v = 1


@dataclass(frozen=True)
class Step:
    """One operation on some images of a batch.

    kind: how the geometric operations interpolate ("bilinear", "bicubic"), or one of PHOTOMETRIC. chosen: the images'
    numbers `[k]` int64. amount: maps `[k, 2, 3]`, or strengths `[k]` of a colour operation.
    """

    kind: str
    chosen: Tensor
    amount: Tensor


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
            functional()  # what is missing shows here, not in a batch

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
        steps = self.draw(len(images), (images.shape[2], images.shape[3]), generator)
        moved = [Step(step.kind, step.chosen.to(images.device), step.amount.to(images.device)) for step in steps]
        return self.apply(images, moved, self.fill_of(images.shape[1], images.device))

    def fill_of(self, channels: int, device: torch.device) -> Tensor:
        """`fill` as `apply` takes it: `[C]`."""
        return torch.tensor(self.fill, device=device).expand(channels)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator) -> list[Step]:
        """The operations of a batch of `count` images of H, W = size, in their order, on the host."""
        return [step for _ in range(self.layers) for step in self._layer(count, size, generator)]

    def apply(self, images: Tensor, steps: Sequence[Step], fill: Tensor) -> Tensor:
        """Apply operations, whose tensors lie on the images' device, to `[B, C, H, W]` uint8; a new tensor."""
        result = images.clone()
        for step in steps:
            some = result.index_select(0, step.chosen)
            if step.kind in PHOTOMETRIC:
                some = change_colours(step.kind, some, step.amount)
            else:
                some = warp_smooth(some, step.amount, fill, cast(Literal["bilinear", "bicubic"], step.kind))
            result.index_copy_(0, step.chosen, some)
        return result

    def _layer(self, B: int, size: tuple[int, int], generator: torch.Generator) -> list[Step]:
        """One operation for each image, or none."""
        device = generator.device
        operation = torch.randint(len(self.operations), (B,), generator=generator, device=device).cpu()
        applied, signs, modes, uniform = torch.rand(4, B, generator=generator, device=device).cpu()
        noise = torch.randn(B, generator=generator, device=device).cpu()
        random = self.magnitude * uniform if self.magnitude_std == float("inf") else self.magnitude_std * noise
        magnitude = random if self.magnitude_std == float("inf") else self.magnitude + random
        level = magnitude.clamp(0, self.magnitude_max) / _FULL
        sign = torch.where(signs < 0.5, -1.0, 1.0)
        bicubic = modes < 0.5 if self.interpolation == "random" else torch.tensor(self.interpolation == "bicubic")
        maps, moved, steps = identity_maps(B), torch.zeros(B, dtype=torch.bool), []
        for number, name in enumerate(self.operations):
            picked = (operation == number) & (applied < self.probability)
            chosen = picked.nonzero().squeeze(1)
            if len(chosen) == 0:
                continue
            if name in GEOMETRIC:
                maps[chosen] = _maps(name, (level * sign)[chosen], *size)
                moved |= picked
            else:
                amount = strengths(name, level[chosen], sign[chosen], self.increasing)
                steps.append(Step(name, chosen, amount))
        for mode, picked in (("bilinear", moved & ~bicubic), ("bicubic", moved & bicubic)):
            chosen = picked.nonzero().squeeze(1)
            if len(chosen):
                steps.append(Step(mode, chosen, maps[chosen]))
        return steps


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
