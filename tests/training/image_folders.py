"""Folders of small JPEG files, as users and ImageNet have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photo(rng: np.random.Generator, hue: int, size: tuple[int, int]) -> Image.Image:
    """Smooth noise of one colour, `size` (width, height)."""
    small = rng.integers(0, 120, (5, 6, 3), dtype=np.uint8)
    small[..., hue % 3] = 255 - small[..., hue % 3] // (1 + hue // 3)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def write_folder(root: Path, classes: int = 3, train: int = 8, test: int = 3, *, val: str = "val") -> Path:
    """train/ and val/ with a folder per class (n00000000, n00000001, ..); sizes differ, one file is a grey image."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), (val, test)):
        for label in range(classes):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count):
                size = (int(rng.integers(36, 60)), int(rng.integers(36, 60)))
                image = photo(rng, label, size)
                if (part, label, number) == ("train", 0, 1):
                    image = image.convert("L")
                image.save(folder / f"{folder.name}_{number}.JPEG", quality=90)
    return root
