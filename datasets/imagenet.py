"""ImageNet-1k (ILSVRC 2012, classification): Russakovsky et al. 2015, arXiv:1409.0575.

    root/train/<wnid>/<name>.JPEG       1,000 folders, 1,281,167 images
    root/val/<wnid>/<name>.JPEG         50,000 images

or validation images as the archive has them, root/val/ILSVRC2012_val_<number>.JPEG, with
root/ILSVRC2012_devkit_t12.tar.gz, or the meta.bin that torchvision makes of it, for their labels. Labels are numbers in
the sorted order of the wnids, as everywhere. Nothing is downloaded.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from spikeloom.datasets.image_files import (
    ImageFiles,
    check_classes,
    class_names,
    image_names,
    part_folder,
    read_classes,
    require_torchvision,
    subfolders,
)
from spikeloom.datasets.images import Part, require_root

CLASSES = 1000
_DEVKIT, _META = "ILSVRC2012_devkit_t12.tar.gz", "meta.bin"


def read_imagenet(root: str | Path, part: Part = "train") -> ImageFiles:
    """The training images, or the validation images, which are what results on ImageNet are measured on, as "test".

    Raises:
        FileNotFoundError: a folder, or what says the labels, is missing. ValueError: other than 1,000 classes, or a
            class without images. ImportError: without torchvision, or without SciPy where the archive is read.
    """
    root = require_root(root, "train/ and val/")
    require_torchvision()
    folder = part_folder(root, "train") if part == "train" else root / "val"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{root} has no folder {folder.name}; expected {folder}/<wnid>/<name>.JPEG, with train beside it. Pass the "
            "folder that holds train and val as --root."
        )
    if part == "test" and not subfolders(folder):
        return _flat(root, folder)
    classes = class_names(root) if (root / "train").is_dir() else subfolders(folder)
    if len(classes) != CLASSES:
        raise ValueError(
            f"{root} has {len(classes)} class folders; expected the {CLASSES:,} of ImageNet-1k. If it is a subset, "
            "pass --data.name image_folder, which takes any number of classes; else the copy is not complete."
        )
    check_classes(folder, classes, root)
    return read_classes(folder, classes, f"ImageNet-1k {part}")


def _flat(root: Path, folder: Path) -> ImageFiles:
    """Validation images without class folders, labelled by the development kit."""
    names = image_names(folder)
    if not names:
        raise ValueError(f"{folder} holds no images and no class folders; expected {folder}/<wnid>/<name>.JPEG.")
    wnids, of_images = _labels(root, folder)
    if len(names) != len(of_images):
        raise ValueError(
            f"{folder} holds {len(names):,} images, and the development kit has labels for {len(of_images):,}; "
            "expected as many. Unpack ILSVRC2012_img_val.tar again."
        )
    number = {wnid: index for index, wnid in enumerate(wnids)}
    labels = torch.tensor([number[wnid] for wnid in of_images])
    encoded = np.array([os.fsencode(name) for name in names])
    return ImageFiles(folder, encoded, labels, wnids, f"ImageNet-1k test: {len(names):,} images")


def _labels(root: Path, folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """All wnids, sorted, and the wnid of each validation image in the order of their names.

    Raises:
        FileNotFoundError: there is no development kit. ValueError: it is damaged.
    """
    from torchvision.datasets.imagenet import load_meta_file, parse_devkit_archive

    if (root / _META).is_file():
        names, of_images = load_meta_file(str(root))
        return tuple(sorted(names)), list(of_images)
    archive = (root / _DEVKIT).resolve()
    if not archive.is_file():
        raise FileNotFoundError(
            f"{folder} has images without class folders, and neither {_DEVKIT} nor torchvision's {_META} lies in "
            f"{root} to say their labels. Put one there, or sort the images into {folder}/<wnid>/."
        )
    with tempfile.TemporaryDirectory() as scratch:  # torchvision writes its result beside the archive otherwise
        try:
            parse_devkit_archive(scratch, str(archive))
        except ImportError as error:
            raise ImportError(f"{archive} is read with SciPy. Install it with `pip install scipy`.") from error
        except RuntimeError as error:
            raise ValueError(f"{archive} is damaged (its checksum is wrong). Get it again.") from error
        names, of_images = load_meta_file(scratch)
    return tuple(sorted(names)), list(of_images)
