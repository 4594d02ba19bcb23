"""Labelled images in files of any size, which are read when they are asked for: a folder of class folders.

    root/train/<class>/<name>.jpg
    root/val/<class>/<name>.jpg         or root/test/

Classes are numbered in the sorted order of their folders' names, images in that of their own within each class. The
names are held as one array of bytes: worker processes share it, where a million Python strings would be copied to each.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spikeloom.datasets.images import Part, require_root

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_SHOWN = 3  # names in a message


class UnreadableImageError(ValueError):
    """A file that cannot be decoded."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """N labelled images.

    folder: where they lie. names: `[N]` bytes, the path of each below it. labels: `[N]` int64, numbers of `classes`.
    says: one line that names the set and the part.
    """

    folder: Path
    names: npt.NDArray[np.bytes_]
    labels: Tensor
    classes: tuple[str, ...]
    says: str

    def __post_init__(self) -> None:
        if self.labels.dtype != torch.int64 or self.labels.shape != self.names.shape:
            raise ValueError(
                f"labels is {self.labels.dtype} {list(self.labels.shape)}; expected int64 {list(self.names.shape)}, "
                "one label per name."
            )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.folder / os.fsdecode(bytes(self.names[index]))

    def read(self, index: int) -> Image:
        """Decode an image, as RGB.

        Raises:
            UnreadableImageError: the file is missing, damaged or no image.
        """
        from PIL import Image

        path = self.path(index)
        try:
            with warnings.catch_warnings():
                # some of ImageNet's files have wrong EXIF entries, which do not matter
                warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
                with Image.open(path) as image:
                    return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
            raise UnreadableImageError(f"{path} ({type(error).__name__}: {error})") from error

    def select(self, indices: Sequence[int] | Tensor) -> ImageFiles:
        """The images `indices` `[K]` in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        says = f"{self.says} ({len(chosen)} chosen)"
        return ImageFiles(self.folder, self.names[chosen.numpy()], self.labels[chosen], self.classes, says)


def read_image_folder(root: str | Path, part: Part = "train") -> ImageFiles:
    """The images of root/train, or, as the test part, of root/test, or of root/val where there is no root/test.

    Raises:
        FileNotFoundError: a folder is missing. ValueError: a class has no images, or the parts have other classes.
    """
    root = Path(root)
    require_torchvision()
    folder = part_folder(root, part)
    classes = class_names(root)
    check_classes(folder, classes, root)
    return read_classes(folder, classes, f"{root.name} {part}")


def class_names(root: str | Path) -> tuple[str, ...]:
    """Names of the classes, sorted: the folders in root/train, or in the test part where there is no root/train.

    Raises:
        FileNotFoundError: neither is there. ValueError: there is no class folder.
    """
    root = Path(root)
    folder = root / "train" if (root / "train").is_dir() else part_folder(root, "test")
    found = subfolders(folder)
    if not found:
        raise ValueError(f"{folder} has no class folders; expected {folder}/<class>/<name>.jpg.")
    return found


def part_folder(root: Path, part: Part) -> Path:
    """The folder of a part.

    Raises:
        FileNotFoundError: it is missing.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part is {part!r}; expected 'train' or 'test'.")
    require_root(root, "train/ and val/ or test/")
    names = ("train",) if part == "train" else ("test", "val")
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(
        f"{root} has no folder {' or '.join(names)}; expected {root}/train/<class>/<name>.jpg and the same in val or "
        "test. Pass the folder that holds them as --root."
    )


def subfolders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, sorted; hidden ones are not."""
    with os.scandir(folder) as entries:
        return tuple(sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()))


def check_classes(folder: Path, classes: Sequence[str], root: Path) -> None:
    """Refuse a part whose class folders are not those of the training part.

    Raises:
        ValueError: some are missing, or there are others.
    """
    found = set(subfolders(folder))
    missing, strange = sorted(set(classes) - found), sorted(found - set(classes))
    if missing or strange:
        differs = [f"{says} {_some(names)}" for says, names in (("lacks", missing), ("also has", strange)) if names]
        raise ValueError(
            f"{folder} has {len(found)} class folders and {root / 'train'} {len(classes)}: the former "
            f"{' and '.join(differs)}. Expected the same classes in both: labels are numbers in their sorted order."
        )


def read_classes(folder: Path, classes: Sequence[str], says: str) -> ImageFiles:
    """The images of folder/<class>/, class by class.

    Raises:
        ValueError: a class has none.
    """
    names: list[bytes] = []
    counts: list[int] = []
    for name in classes:
        files = image_names(folder / name)
        names += [os.fsencode(f"{name}/{file}") for file in files]
        counts.append(len(files))
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(classes)} class folders in {folder} hold no image: {_some(empty)}. Expected files "
            f"that end in {', '.join(SUFFIXES)} in each; put them there or take the folder away."
        )
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))
    return ImageFiles(folder, np.array(names), labels, tuple(classes), f"{says}: {len(names):,} images")


def image_names(folder: Path) -> list[str]:
    """Names of the images in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES) and not e.name.startswith("."))


def require_torchvision() -> None:
    """Raise where images cannot be decoded.

    Raises:
        ImportError: torchvision is missing.
    """
    try:
        import torchvision.transforms.v2  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Images in files are decoded with torchvision, which cannot be imported. Install it with "
            "`pip install 'spikeloom[images]'`."
        ) from error


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
