"""Labelled images read from the files of their publishers: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100.

Every loader takes a folder `root` in which the files already lie; nothing is downloaded. Pixels stay uint8.

MNIST: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits". Fashion-MNIST: H. Xiao,
K. Rasul, R. Vollgraf 2017, arXiv:1708.07747. CIFAR: A. Krizhevsky 2009, "Learning Multiple Layers of Features from
Tiny Images"; the *binary* version: records of one label byte (CIFAR-100: coarse, then fine) and 3,072 pixel bytes, red,
green, blue, each plane row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from spikeloom.datasets.idx import read_idx
from spikeloom.datasets.image_classes import CIFAR10, CIFAR100, DIGITS, FASHION

Part = Literal["train", "test"]

_CIFAR_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE


@dataclass(frozen=True, eq=False)
class Images:
    """N labelled images of one size.

    images: `[N, C, H, W]` uint8. labels: `[N]` int64, 0 <= label < len(classes). classes: their names.
    says: one line that names the set, the part and what is missing of it.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    says: str

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images is {self.images.dtype} {tuple(self.images.shape)}; expected uint8 [N, C, H, W].")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels is {self.labels.dtype} {tuple(self.labels.shape)}; expected int64 [{len(self.images)}]."
            )
        _check_labels("labels", self.labels, len(self.classes))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image `[C, H, W]` uint8 and its label."""
        return self.images[index], int(self.labels[index])

    def select(self, indices: Sequence[int] | Tensor) -> Images:
        """The images `indices` `[K]` in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Images(self.images[chosen], self.labels[chosen], self.classes, f"{self.says} ({len(chosen)} chosen)")


def mnist(root: str | Path, part: Part = "train") -> Images:
    """MNIST: 60,000 / 10,000 grey images `[N, 1, 28, 28]` of digits; IDX files in root, root/raw or root/MNIST/raw."""
    return _idx_pair(root, part, "MNIST", DIGITS, "http://yann.lecun.com/exdb/mnist")


def fashion_mnist(root: str | Path, part: Part = "train") -> Images:
    """Fashion-MNIST: 60,000 / 10,000 grey images `[N, 1, 28, 28]`; IDX files in root, root/raw or
    root/FashionMNIST/raw. Debian's package dataset-fashion-mnist puts them into /usr/share/datasets/fashion-mnist.
    """
    return _idx_pair(root, part, "FashionMNIST", FASHION, "https://github.com/zalandoresearch/fashion-mnist")


def cifar10(root: str | Path, part: Part = "train", *, allow_partial: bool = False) -> Images:
    """CIFAR-10, binary version: 50,000 / 10,000 images `[N, 3, 32, 32]`; files in root or root/cifar-10-batches-bin.

    allow_partial: also accept missing or short files (whole records only); `Images.says` then tells what is missing.
    """
    train = [f"data_batch_{number}.bin" for number in range(1, 6)]
    names = train if _check_part(part) == "train" else ["test_batch.bin"]
    return _cifar(root, part, _Binary("CIFAR-10", "cifar-10-batches-bin", names, 10_000, (10,), CIFAR10), allow_partial)


def cifar100(root: str | Path, part: Part = "train", *, allow_partial: bool = False) -> Images:
    """CIFAR-100, binary version, fine labels: 50,000 / 10,000 images `[N, 3, 32, 32]`; files in root or
    root/cifar-100-binary.

    allow_partial: also accept a short file (whole records only); `Images.says` then tells what is missing.
    """
    records = 50_000 if _check_part(part) == "train" else 10_000
    source = _Binary("CIFAR-100", "cifar-100-binary", [f"{part}.bin"], records, (20, 100), CIFAR100)
    return _cifar(root, part, source, allow_partial)


class _Binary(NamedTuple):
    """Files of a CIFAR set: each of `records` records that begin with one byte per entry of `label_limits`."""

    name: str
    folder: str
    files: list[str]
    records: int
    label_limits: tuple[int, ...]
    classes: tuple[str, ...]

    @property
    def record_bytes(self) -> int:
        return len(self.label_limits) + _PIXELS

    def help(self, root: Path) -> str:
        size = self.records * self.record_bytes
        return (
            f"Expected {', '.join(self.files)} of {size:,} bytes each in {root} or {root / self.folder}. Get "
            f"{self.name}'s binary version from {_CIFAR_PAGE} and unpack it there."
        )


def _cifar(root: str | Path, part: Part, source: _Binary, allow_partial: bool) -> Images:
    root = require_root(root, f"{source.folder}/")
    folder = root / source.folder if (root / source.folder).is_dir() else root
    present = [name for name in source.files if (folder / name).is_file()]
    missing = [name for name in source.files if name not in present]
    if not present or (missing and not allow_partial):
        partial = " allow_partial=True (--data.allow-partial) reads the files that are there." if present else ""
        raise FileNotFoundError(f"Missing in {folder}: {', '.join(missing)}. {source.help(root)}{partial}")
    records = torch.cat([_read_records(folder / name, source, allow_partial) for name in present])
    limits = source.label_limits
    labels = records[:, len(limits) - 1].to(torch.int64)  # the last label byte is the finest
    images = records[:, len(limits) :].reshape(-1, 3, _SIDE, _SIDE).contiguous()
    whole = source.records * len(source.files)
    gap = f", partial: {whole:,} are published" if len(labels) < whole else ""
    return Images(images, labels, source.classes, f"{source.name} {part}: {len(labels):,} images{gap}")


def _read_records(path: Path, source: _Binary, allow_partial: bool) -> Tensor:
    """Records `[n, record bytes]` uint8 of one file, label bytes first."""
    found, expected = path.stat().st_size, source.records * source.record_bytes
    short = allow_partial and 0 < found < expected and found % source.record_bytes == 0
    if found != expected and not short:
        hint = (
            "a whole number of records"
            if allow_partial
            else "allow_partial=True (--data.allow-partial) reads a file of fewer whole records"
        )
        raise ValueError(
            f"{path} is {found:,} bytes long; expected {expected:,} ({source.records:,} records of "
            f"{source.record_bytes:,} bytes; {hint}). The copy or download was probably cut off: get it again from "
            f"{_CIFAR_PAGE}, the binary version."
        )
    records = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).view(-1, source.record_bytes)
    for column, limit in enumerate(source.label_limits):
        _check_labels(f"{path}, label byte {column} of each record,", records[:, column], limit)
    return records


def _idx_pair(root: str | Path, part: Part, name: str, classes: tuple[str, ...], page: str) -> Images:
    """The IDX files of images and labels of one part, both plain or .gz, from the usual folders below root."""
    stem = "train" if _check_part(part) == "train" else "t10k"
    root = require_root(root, f"the four IDX files of {name}")
    folders = (root, root / "raw", root / name / "raw")
    files = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        candidates = [folder / f"{stem}-{kind}{suffix}" for folder in folders for suffix in ("", ".gz")]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"There is no {stem}-{kind} or {stem}-{kind}.gz in {', '.join(map(str, folders))}. Get the four IDX "
                f"files of {name} from {page} and put them into {root}."
            )
        files.append(found)
    images, labels = read_idx(files[0], 3), read_idx(files[1], 1).to(torch.int64)
    if len(images) != len(labels):
        raise ValueError(
            f"{files[0]} holds {len(images)} images and {files[1]} {len(labels)} labels; expected as many."
        )
    _check_labels(str(files[1]), labels, len(classes))
    return Images(images.unsqueeze(1), labels, classes, f"{name} {part}: {len(labels):,} images")


def require_root(root: str | Path, holds: str) -> Path:
    """The folder of a data set.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"The folder {root} does not exist. Pass the one that holds {holds} as --root.")
    return root


def _check_part(part: Part) -> Part:
    if part not in ("train", "test"):
        raise ValueError(f"part is {part!r}; expected 'train' or 'test'.")
    return part


def _check_labels(what: str, labels: Tensor, classes: int) -> None:
    wrong = ((labels < 0) | (labels >= classes)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(f"{what} has label {int(labels[first])} at {first}; expected 0 to {classes - 1}.")
