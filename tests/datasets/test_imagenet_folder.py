"""Images in class folders: order, labels, decoding, selection, ImageNet's two layouts, and what is refused."""

from __future__ import annotations

import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from spikeloom_tests.training.image_folders import photo, write_folder

from spikeloom.datasets import ImageFiles, imagenet, read_image_folder, read_imagenet
from spikeloom.datasets.image_files import UnreadableImageError, class_names


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("folder"))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """ImageNet with three classes."""
    monkeypatch.setattr(imagenet, "CLASSES", 3)


def test_classes_and_files_are_sorted(root: Path) -> None:
    files = read_image_folder(root)
    assert files.classes == ("n00000000", "n00000001", "n00000002")
    assert files.labels.tolist() == [label for label in range(3) for _ in range(8)]
    assert [files.path(i).name for i in (0, 7, 8)] == ["n00000000_0.JPEG", "n00000000_7.JPEG", "n00000001_0.JPEG"]
    assert all(files.path(i).is_file() for i in range(len(files)))
    assert files.says == f"{root.name} train: 24 images"
    assert len(read_image_folder(root, "test")) == 9


def test_images_are_decoded_as_rgb(root: Path) -> None:
    files = read_image_folder(root)
    with Image.open(root / "train" / "n00000001" / "n00000001_2.JPEG") as image:
        assert np.array_equal(np.asarray(files.read(10)), np.asarray(image.convert("RGB")))
    grey = np.asarray(files.read(1))
    assert grey.shape[2] == 3
    assert (grey == grey[..., :1]).all()


def test_selection_keeps_files_and_labels_together(root: Path) -> None:
    files = read_image_folder(root)
    some = files.select(torch.tensor([23, 0, 9]))
    assert (len(some), some.labels.tolist()) == (3, [2, 0, 1])
    assert [some.path(i) for i in range(3)] == [files.path(i) for i in (23, 0, 9)]
    assert some.says.endswith("(3 chosen)")


def test_test_comes_before_val_and_odd_files_are_left_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path, classes=2, train=2, test=1)
    write_folder(tmp_path / "other", classes=2, train=1, test=2, val="test")
    (tmp_path / "other" / "test").rename(root / "test")
    (root / "train" / "n00000000" / "._n1.jpg").write_bytes(b"")
    (root / "train" / "n00000000" / "notes.txt").write_text("")
    (root / "train" / "n00000001" / "z.PNG").write_bytes(b"")
    (root / "train" / ".cache").mkdir()
    assert len(read_image_folder(root, "test")) == 4
    assert read_image_folder(root).labels.tolist() == [0, 0, 1, 1, 1]


def test_names_may_hold_any_character(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "größe 1"
    folder.mkdir(parents=True)
    photo(np.random.default_rng(0), 0, (20, 20)).save(folder / "日本.jpg")
    files = read_image_folder(tmp_path)
    assert (files.classes, files.path(0)) == (("größe 1",), folder / "日本.jpg")
    assert files.read(0).size == (20, 20)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_image_is_named(content: bytes | None, tmp_path: Path) -> None:
    root = write_folder(tmp_path, classes=1, train=1, test=1)
    path = next((root / "train" / "n00000000").iterdir())
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    with pytest.raises(UnreadableImageError, match=re.escape(str(path))):
        read_image_folder(root).read(0)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("read", [read_image_folder, read_imagenet])
def test_a_root_that_does_not_exist_is_told(read: Callable[..., ImageFiles], part: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"/nothing does not exist\. Pass .* holds train/ .* --root\."):
        read(tmp_path / "nothing", part)


def test_missing_folders_and_images_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no folder train; expected .*/train/<class>/<name>.jpg"):
        read_image_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no folder test or val"):
        read_image_folder(tmp_path, "test")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="train has no class folders"):
        read_image_folder(tmp_path)
    for name in "abcde":
        (tmp_path / "train" / name).mkdir()
    photo(np.random.default_rng(0), 0, (8, 8)).save(tmp_path / "train" / "a" / "x.jpg")
    with pytest.raises(ValueError, match=r"4 of 5 class folders in .*train hold no image: b, c, d and 1 more"):
        read_image_folder(tmp_path)
    with pytest.raises(ValueError, match="part is 'dev'; expected 'train' or 'test'"):
        read_image_folder(tmp_path, "dev")  # type: ignore[arg-type]


def test_parts_with_other_classes_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=1, test=1)
    (root / "val" / "n00000002").rename(root / "val" / "other")
    with pytest.raises(
        ValueError, match=r"val has 3 class folders and .*train 3: the former lacks n00000002 and also has other\."
    ):
        read_image_folder(root, "test")


def test_a_test_part_alone_can_be_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path, train=1, test=2)
    (root / "train").rename(root / "elsewhere")
    assert class_names(root) == ("n00000000", "n00000001", "n00000002")
    assert len(read_image_folder(root, "test")) == 6


def test_imagenet_has_a_thousand_classes(root: Path) -> None:
    with pytest.raises(ValueError, match=r"has 3 class folders; expected the 1,000 .* pass --data.name image_folder"):
        read_imagenet(root)


@pytest.mark.usefixtures("few")
def test_imagenet_in_class_folders(root: Path, tmp_path: Path) -> None:
    train, test = read_imagenet(root), read_imagenet(root, "test")
    assert (len(train), train.says) == (24, "ImageNet-1k train: 24 images")
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(FileNotFoundError, match=r"has no folder val; expected .*/val/<wnid>/<name>.JPEG"):
        read_imagenet(tmp_path, "test")


def _flat(root: Path) -> Path:
    """Five validation images without class folders."""
    (root / "val").mkdir(parents=True)
    for number in range(5):
        image = photo(np.random.default_rng(number), 0, (20, 20))
        image.save(root / "val" / f"ILSVRC2012_val_{number + 1:08d}.JPEG")
    return root


def test_flat_validation_images_have_the_labels_of_the_meta_file(tmp_path: Path) -> None:
    root = _flat(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither ILSVRC2012_devkit_t12.tar.gz nor torchvision's meta.bin"):
        read_imagenet(root, "test")
    wnids = ["n02", "n01", "n03", "n01", "n02"]
    torch.save(({"n03": ("c",), "n01": ("a",), "n02": ("b",)}, wnids), root / "meta.bin")
    files = read_imagenet(root, "test")
    assert isinstance(files, ImageFiles)
    assert (files.classes, files.labels.tolist()) == (("n01", "n02", "n03"), [1, 0, 2, 0, 1])
    assert files.path(1).name == "ILSVRC2012_val_00000002.JPEG"
    next((root / "val").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"holds 4 images, and the development kit has labels for 5"):
        read_imagenet(root, "test")


def test_flat_validation_images_have_the_labels_of_the_development_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    root, kit = _flat(tmp_path / "root"), tmp_path / "kit"
    (kit / "data").mkdir(parents=True)
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    rows = [(1, "n03", "c", "", 0), (2, "n01", "a", "", 0), (3, "n02", "b, bb", "", 0), (4, "n00", "all", "", 3)]
    scipy_io.savemat(kit / "data" / "meta.mat", {"synsets": np.array(rows, dtype=fields)})
    (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n2\n1\n2\n3\n")
    name = "ILSVRC2012_devkit_t12"
    with tarfile.open(root / f"{name}.tar.gz", "w:gz") as archive:
        archive.add(kit, name)
    with pytest.raises(ValueError, match=r"ILSVRC2012_devkit_t12.tar.gz is damaged \(its checksum is wrong\)"):
        read_imagenet(root, "test")
    import torchvision.datasets.imagenet as theirs

    monkeypatch.setitem(theirs.ARCHIVE_META, "devkit", (f"{name}.tar.gz", None))
    files = read_imagenet(root, "test")
    assert (files.classes, files.labels.tolist()) == (("n01", "n02", "n03"), [1, 0, 2, 0, 1])
    assert sorted(path.name for path in root.iterdir()) == [f"{name}.tar.gz", "val"]


def test_without_torchvision_it_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(ImportError, match=r"pip install 'spikeloom\[images\]'"):
        read_image_folder(root)
