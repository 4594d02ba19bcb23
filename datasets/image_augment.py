"""Random changes of image batches, and the soft targets that go with mixing. Only the given generator decides.

Crop, flip and erasing draw per image; mixup and cutmix draw once per batch and mix each sample with the one at the
mirrored place of the batch, as timm's "batch" mode does. RandAugment is in `rand_augment.py`. Order of the published
recipes: crop, flip and RandAugment on uint8, mix and round to uint8, normalise, erase.

Erasing: Zhong et al. 2017, arXiv:1708.04896. mixup: Zhang et al. 2017, arXiv:1710.09412. CutMix: Yun et al. 2019,
arXiv:1905.04899.

Every change comes in two halves, so that a whole batch can be drawn on the host and sent to a GPU in one copy: `draw_*`
asks the generator, the other half (`crop_at`, `flip_where`, `erase_boxes`, `blend`, `paste`) works on the device of the
images and never waits for it.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_ATTEMPTS = 10  # an erased box must fit; after so many draws that do not the image is left alone


def random_crop(images: Tensor, padding: int, generator: torch.Generator, fill: float = 0) -> Tensor:
    """Pad `[B, C, H, W]` by `padding` pixels of `fill` on every side and cut a window `[H, W]` anywhere from it."""
    offset = draw_crop(len(_check_images(images)), padding, generator)
    return crop_at(images, padding, offset.to(images.device), fill)


def draw_crop(count: int, padding: int, generator: torch.Generator) -> Tensor:
    """First row and column `[2, B]` int64, 0 to 2 padding, of the windows of `crop_at`."""
    if padding < 0:
        raise ValueError(f"padding is {padding}; expected a whole number of pixels >= 0.")
    return torch.randint(2 * padding + 1, (2, count), generator=generator, device=generator.device)


def crop_at(images: Tensor, padding: int, offset: Tensor, fill: float = 0) -> Tensor:
    """The windows of `[B, C, H, W]`, padded as for `random_crop`, that begin at `offset` `[2, B]`."""
    B, _, H, W = images.shape
    row = torch.arange(H, device=images.device) + offset[0, :, None]  # [B, H]
    column = torch.arange(W, device=images.device) + offset[1, :, None]  # [B, W]
    padded = F.pad(images, (padding,) * 4, value=fill)
    sample = torch.arange(B, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[sample, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2).contiguous()


def flip_images(images: Tensor, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """Mirror each of `[B, C, H, W]` left to right with the given probability."""
    return flip_where(images, draw_flip(len(_check_images(images)), generator, probability).to(images.device))


def draw_flip(count: int, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """Which images to mirror: `[B]` bool."""
    _check_probability(probability)
    return _uniform(count, generator) < probability


def flip_where(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror those of `[B, C, H, W]` left to right for which `[B]` is true."""
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def random_erase(
    images: Tensor,
    generator: torch.Generator,
    probability: float = 0.25,
    mode: Literal["const", "pixel"] = "const",
    *,
    min_area: float = 0.02,
    max_area: float = 1 / 3,
    min_aspect: float = 0.3,
) -> Tensor:
    """Erase one box in each of the normalised float images `[B, C, H, W]` with the given probability.

    The box's area is uniform in [min_area, max_area] of the image, the logarithm of height / width uniform between
    log(min_aspect) and -log(min_aspect). mode "const": zeros, which is the mean of normalised data; "pixel": a standard
    normal number for each pixel and channel.
    """
    B, _, H, W = _check_images(images).shape
    if mode not in ("const", "pixel"):
        raise ValueError(f"mode is {mode!r}; expected 'const' or 'pixel'.")
    if not images.is_floating_point():
        raise ValueError(f"images is {images.dtype}; erase after normalising: 0 stands for the mean of the data.")
    boxes = draw_boxes(B, (H, W), generator, probability, min_area=min_area, max_area=max_area, min_aspect=min_aspect)
    noise = None
    if mode == "pixel":
        noise = torch.randn(images.shape, generator=generator, device=generator.device).to(images)
    return erase_boxes(images, boxes.to(images.device), noise)


def draw_boxes(
    count: int,
    size: tuple[int, int],
    generator: torch.Generator,
    probability: float = 0.25,
    *,
    min_area: float = 0.02,
    max_area: float = 1 / 3,
    min_aspect: float = 0.3,
) -> Tensor:
    """Top, left, height and width `[4, B]` float32 of the boxes to erase from images of `size` H, W; 0: none."""
    _check_probability(probability)
    if not (0 < min_area <= max_area <= 1 and 0 < min_aspect <= 1):
        raise ValueError(
            f"Areas {min_area} to {max_area} with least aspect {min_aspect}; expected 0 < min_area <= max_area <= 1 "
            "and 0 < min_aspect <= 1."
        )
    H, W = size
    chosen = _uniform(count, generator) < probability
    u = torch.rand(2, _ATTEMPTS, count, generator=generator, device=generator.device)
    area = (min_area + (max_area - min_area) * u[0]) * (H * W)
    aspect = ((2 * u[1] - 1) * -math.log(min_aspect)).exp()
    height, width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()  # [attempts, B]
    fits = (height < H) & (width < W)
    first = fits.to(torch.uint8).argmax(0, keepdim=True)
    height, width = height.gather(0, first)[0], width.gather(0, first)[0]
    place = torch.rand(2, count, generator=generator, device=generator.device)
    top, left = (place[0] * (H - height + 1)).floor(), (place[1] * (W - width + 1)).floor()
    return torch.stack((top, left, height, width)) * (chosen & fits.any(0))


def erase_boxes(images: Tensor, boxes: Tensor, noise: Tensor | None = None) -> Tensor:
    """Put 0, or `noise` of the same shape, into one box `[4, B]` of each of `[B, C, H, W]`."""
    H, W = images.shape[2:]
    top, left, height, width = boxes
    inside = (_boxes(top, height, H)[:, :, None] & _boxes(left, width, W)[:, None, :])[:, None]  # [B, 1, H, W]
    return images.masked_fill(inside, 0) if noise is None else torch.where(inside, noise, images)


def one_hot_smoothed(labels: Tensor, classes: int, smoothing: float = 0.1) -> Tensor:
    """Soft targets `[B, K]` float32 of labels `[B]`: smoothing / K everywhere, and 1 - smoothing more at the label."""
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(f"labels is {labels.dtype} {tuple(labels.shape)}; expected int64 [B].")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}; expected 0 <= smoothing < 1.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"Labels span {int(labels.min())} to {int(labels.max())}; expected 0 to {classes - 1}, as classes is "
            f"{classes}."
        )
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes


def mixup(
    inputs: Tensor,
    targets: Tensor,
    alpha: float,
    generator: torch.Generator,
    probability: float = 1.0,
    *,
    batch_axis: int = 0,
) -> tuple[Tensor, Tensor]:
    """Blend a batch with its mirror: s x + (1 - s) x', and the soft targets `[B, K]` alike; s ~ Beta(alpha, alpha).

    inputs: floating point, any shape; batch_axis: 0 for `[B, C, H, W]`, 1 for `[T, B, C, H, W]`. With 1 - probability
    the batch is returned as it is.
    """
    _check_mixing(inputs, targets, alpha, probability, batch_axis)
    return blend(inputs, targets, draw_share(alpha, generator, probability), batch_axis=batch_axis)


def blend(inputs: Tensor, targets: Tensor, share: float, *, batch_axis: int = 0) -> tuple[Tensor, Tensor]:
    """`mixup` by a given s; s = 1 returns what was given."""
    if share == 1:
        return inputs, targets
    mixed = inputs * share + inputs.flip(batch_axis) * (1 - share)
    return mixed, targets * share + targets.flip(0) * (1 - share)


def cutmix(
    inputs: Tensor,
    targets: Tensor,
    alpha: float,
    generator: torch.Generator,
    probability: float = 1.0,
    *,
    batch_axis: int = 0,
    axes: tuple[int, int] = (-2, -1),
) -> tuple[Tensor, Tensor]:
    """Paste one box of the mirrored batch into inputs `[..., H, W]`; the soft targets `[B, K]` mix by its true area.

    The box has sides sqrt(1 - s) of the image's, s ~ Beta(alpha, alpha), and a centre anywhere; what lies outside the
    image is cut off. batch_axis and probability: see `mixup`. axes: see `paste`.
    """
    _check_mixing(inputs, targets, alpha, probability, batch_axis)
    share, centre = draw_share(alpha, generator, probability), draw_centre(generator)
    return paste(inputs, targets, share, centre, batch_axis=batch_axis, axes=axes)


def draw_centre(generator: torch.Generator) -> tuple[float, float]:
    """Row and column of the centre of `cutmix`'s box, as parts of H and W."""
    row, column = torch.rand(2, generator=generator, device=generator.device).tolist()
    return row, column


def paste(
    inputs: Tensor,
    targets: Tensor,
    share: float,
    centre: tuple[float, float],
    *,
    batch_axis: int = 0,
    axes: tuple[int, int] = (-2, -1),
) -> tuple[Tensor, Tensor]:
    """`cutmix` by a given s and centre; s = 1 returns what was given.

    axes: which axes of the inputs the box's rows and columns cut. (-3, -2) is what timm's code does to frames
    `[B, T, C, H, W]`: C and H, so a box of rows from C on pastes nothing, while the targets mix by its area in H, W.
    """
    if share == 1:
        return inputs, targets
    H, W = inputs.shape[-2:]
    rows, columns = (
        _cut(length, int(length * math.sqrt(1 - share)), int(place * length))
        for length, place in zip((H, W), centre, strict=True)
    )
    box = [slice(None)] * inputs.ndim
    box[axes[0]], box[axes[1]] = rows, columns
    mixed = inputs.clone()
    mixed[tuple(box)] = inputs.flip(batch_axis)[tuple(box)]
    kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (H * W)
    return mixed, targets * kept + targets.flip(0) * (1 - kept)


def draw_share(alpha: float, generator: torch.Generator, probability: float = 1.0) -> float:
    """The part of the batch itself in the mixture: 1 with 1 - probability, else from Beta(alpha, alpha)."""
    used = float(_uniform(1, generator)) < probability
    # torch's Beta takes no generator: one seed is drawn from it for NumPy's
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return float(np.random.default_rng(seed).beta(alpha, alpha)) if used else 1.0


def _cut(length: int, size: int, centre: int) -> slice:
    return slice(max(centre - size // 2, 0), min(centre + size // 2, length))


def _boxes(start: Tensor, size: Tensor, length: int) -> Tensor:
    """`[B, length]` bool: true from start to start + size."""
    position = torch.arange(length, device=start.device)
    return (position >= start[:, None]) & (position < (start + size)[:, None])


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=generator.device)


def _check_images(images: Tensor) -> Tensor:
    if images.ndim != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}; expected [B, C, H, W].")
    return images


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}; expected a number from 0 to 1.")


def _check_mixing(inputs: Tensor, targets: Tensor, alpha: float, probability: float, batch_axis: int) -> None:
    _check_probability(probability)
    if alpha <= 0:
        raise ValueError(f"alpha is {alpha}; expected a number > 0. To turn mixing off, do not call it.")
    if not inputs.is_floating_point():
        raise ValueError(f"inputs is {inputs.dtype}; expected floating point: cast pixels and event counts.")
    if not targets.is_floating_point() or targets.ndim != 2 or len(targets) != inputs.shape[batch_axis]:
        raise ValueError(
            f"targets is {targets.dtype} {tuple(targets.shape)}; expected floating [{inputs.shape[batch_axis]}, K], "
            "one row per sample: one_hot_smoothed makes it from labels."
        )
