"""The image readers: files written here in the publishers' formats, whole, cut off and wrong."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spikeloom.datasets import Images, cifar10, cifar100, fashion_mnist, mnist
from spikeloom.datasets.image_classes import CIFAR100

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
Write = Callable[[Path, bytes], None]


def idx(*shape: int, data: bytes) -> bytes:
    return bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape) + data


def plain(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def packed(path: Path, data: bytes) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data))


def write_mnist(folder: Path, write: Write = plain, stem: str = "train") -> None:
    """Three images whose first pixels are 1, 2, 3 and last 11, 12, 13; labels 7, 0, 9."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = b"".join(bytes([n]) + bytes(782) + bytes([10 + n]) for n in (1, 2, 3))
    write(folder / f"{stem}-images-idx3-ubyte", idx(3, 28, 28, data=pixels))
    write(folder / f"{stem}-labels-idx1-ubyte", idx(3, data=bytes([7, 0, 9])))


def records(*labels: tuple[int, ...]) -> bytes:
    """CIFAR records; red is 10 + record, green 20 + record, blue 30 + record, with pixel (row 0, column 1) = 255."""
    planes = ((10, 20, 30),) * len(labels)
    return b"".join(
        bytes(label) + b"".join(bytes([c + n]) + b"\xff" + bytes([c + n]) * 1022 for c in colours)
        for n, (label, colours) in enumerate(zip(labels, planes, strict=True))
    )


@pytest.mark.parametrize("write", [plain, packed])
@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
def test_mnist_files_plain_and_compressed(tmp_path: Path, write: Write, below: str) -> None:
    write_mnist(tmp_path / below, write)
    images = mnist(tmp_path)
    assert images.images.shape == (3, 1, 28, 28)
    assert images.images.dtype == torch.uint8
    assert images.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert images.images[:, 0, 27, 27].tolist() == [11, 12, 13]
    assert images.labels.tolist() == [7, 0, 9]
    assert images.says == "MNIST train: 3 images"
    assert len(images.classes) == 10


def test_fashion_reads_the_test_part_from_its_usual_folder(tmp_path: Path) -> None:
    write_mnist(tmp_path / "FashionMNIST" / "raw", packed, stem="t10k")
    images = fashion_mnist(tmp_path, "test")
    assert [images.classes[label] for label in images.labels] == ["Sneaker", "T-shirt/top", "Ankle boot"]
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte .*zalandoresearch.*put them into"):
        fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("images-idx3", idx(3, 28, 28, data=bytes(2351)), r"train-images-idx3-ubyte holds 2367 bytes.*promises 2368"),
        ("images-idx3", idx(3, 28, 28, data=bytes(2353)), r"holds 2369 bytes.*promises 2368"),
        ("images-idx3", idx(3, 28, data=bytes(84)), r"begins with the bytes 00 00 08 02.*00 00 08 03"),
        ("images-idx3", b"\0\0\x08", r"holds 3 bytes; an IDX header of 3 axes takes 16"),
        ("images-idx3", idx(2, 28, 28, data=bytes(1568)), r"holds 2 images and .* 3 labels"),
        ("labels-idx1", idx(3, data=bytes([7, 0, 10])), r"labels-idx1-ubyte has label 10 at 2; expected 0 to 9"),
    ],
)
@pytest.mark.parametrize("write", [plain, packed])
def test_wrong_idx_files_are_refused(tmp_path: Path, write: Write, name: str, data: bytes, message: str) -> None:
    write_mnist(tmp_path, write)
    write(tmp_path / f"train-{name}-ubyte", data)
    with pytest.raises(ValueError, match=message if write is plain else message.replace("ubyte ", "ubyte.gz ")):
        mnist(tmp_path)


def test_cut_off_and_corrupt_compressed_files_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"ubyte\.gz holds \d+ bytes; its header .*promises 2368"):
        mnist(tmp_path)
    path.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match="ends within gzip's check sum"):
        mnist(tmp_path)
    path.write_bytes(whole[:-8] + bytes(8))
    with pytest.raises(ValueError, match="not a whole gzip file"):
        mnist(tmp_path)
    path.write_bytes(b"hello")
    with pytest.raises(ValueError, match="not a whole gzip file"):
        mnist(tmp_path)


def test_cifar10_records(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(records((number,), (9,)))
    with pytest.raises(ValueError, match=r"is 6,146 bytes long; expected 30,730,000 .*--data.allow-partial"):
        cifar10(tmp_path)
    images = cifar10(tmp_path, allow_partial=True)
    assert images.images.shape == (10, 3, 32, 32)
    assert images.labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert images.images[1, :, 31, 31].tolist() == [11, 21, 31]
    assert images.images[1, :, 0, 1].tolist() == [255, 255, 255]
    assert images.images[1, :, 1, 0].tolist() == [11, 21, 31]
    assert images.says == "CIFAR-10 train: 10 images, partial: 50,000 are published"


@pytest.mark.parametrize("read", [mnist, fashion_mnist, cifar10, cifar100])
def test_a_root_that_does_not_exist_is_told(read: Callable[..., Images], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/nothing does not exist\. Pass the one that holds .* as --root\."):
        read(tmp_path / "nothing")


def test_cifar10_of_full_size(tmp_path: Path) -> None:
    (tmp_path / "test_batch.bin").write_bytes(records(*((n % 10,) for n in range(10))) * 1000)
    images = cifar10(tmp_path, "test")
    assert images.says == "CIFAR-10 test: 10,000 images"
    assert torch.equal(images.labels.bincount(), torch.full((10,), 1000))


def test_missing_batches_are_listed(tmp_path: Path) -> None:
    (tmp_path / "data_batch_2.bin").write_bytes(records((1,)))
    with pytest.raises(
        FileNotFoundError, match=r"data_batch_1.bin, data_batch_3.*of 30,730,000 bytes.*kriz/cifar.*--data.allow-p"
    ):
        cifar10(tmp_path)
    assert cifar10(tmp_path, allow_partial=True).labels.tolist() == [1]
    with pytest.raises(FileNotFoundError, match=r"Missing in .*: test_batch.bin. Expected"):
        cifar10(tmp_path, "test", allow_partial=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (records((3,))[:-1], r"is 3,072 bytes long; expected 30,730,000"),
        (b"", "is 0 bytes long"),
        (records((3,), (10,)), r"label byte 0 of each record, has label 10 at 1; expected 0 to 9"),
    ],
)
def test_wrong_cifar10_files_are_refused_even_partial(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "test_batch.bin").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        cifar10(tmp_path, "test", allow_partial=True)


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    path = tmp_path / "test.bin"
    path.write_bytes(records((19, 99), (0, 4)))
    with pytest.raises(ValueError, match=r"is 6,148 bytes long; expected 30,740,000"):
        cifar100(tmp_path, "test")
    images = cifar100(tmp_path, "test", allow_partial=True)
    assert [images.classes[label] for label in images.labels] == ["worm", "beaver"]
    assert images.images[0, :, 5, 5].tolist() == [10, 20, 30]
    path.write_bytes(records((20, 0)))
    with pytest.raises(ValueError, match=r"label byte 0 of each record, has label 20"):
        cifar100(tmp_path, "test", allow_partial=True)
    path.write_bytes(records((0, 100)))
    with pytest.raises(ValueError, match=r"label byte 1 of each record, has label 100"):
        cifar100(tmp_path, "test", allow_partial=True)
    assert len(set(CIFAR100)) == 100
    assert list(CIFAR100) == sorted(CIFAR100)


def test_images_are_checked_and_selected() -> None:
    pixels = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1)
    images = Images(pixels, torch.tensor([2, 0, 1]), ("a", "b", "c"), "x")
    chosen = images.select([2, 0])
    assert chosen.labels.tolist() == [1, 2]
    assert chosen.images.flatten().tolist() == [2, 0]
    assert images[2][1] == 1
    with pytest.raises(ValueError, match=r"expected uint8 \[N, C, H, W\]"):
        Images(pixels.float(), torch.tensor([2, 0, 1]), ("a", "b", "c"), "x")
    with pytest.raises(ValueError, match=r"expected int64 \[3\]"):
        Images(pixels, torch.tensor([2, 0]), ("a", "b", "c"), "x")
    with pytest.raises(ValueError, match="has label 2 at 0; expected 0 to 1"):
        Images(pixels, torch.tensor([2, 0, 1]), ("a", "b"), "x")
    for load in (mnist, fashion_mnist, cifar10, cifar100):
        with pytest.raises(ValueError, match="part is 'valid'"):
            load("/nowhere", "valid")  # type: ignore[arg-type]


@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_fashion_test_part() -> None:
    images = fashion_mnist(DEBIAN_FASHION, "test")
    assert images.images.shape == (10_000, 1, 28, 28)
    assert torch.equal(images.labels.bincount(), torch.full((10,), 1000))
    assert images.labels[:4].tolist() == [9, 2, 1, 1]
