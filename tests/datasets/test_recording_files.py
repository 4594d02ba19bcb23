"""Data sets of files by root: official splits, our splits, what a missing download says; archives; tonic's layout."""

from __future__ import annotations

import io
import tarfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spikeloom_tests.datasets import recordings as made

from spikeloom import datasets as d

COLUMNS = made.columns(40)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_n_caltech101(tmp_path: Path) -> None:
    for name, count in (("ant", 11), ("wheel", 3)):
        for i in range(count):
            write(tmp_path / f"Caltech101/{name}/image_{i:04}.bin", made.n_mnist(COLUMNS))
    splits = [d.NCaltech101(tmp_path, split) for split in ("train", "test", "all")]  # type: ignore[arg-type]
    assert [len(s) for s in splits] == [13, 1, 14]
    assert splits[2].classes == ("ant", "wheel")
    events, label = splits[0][12]
    assert (label, events.height, events.width, int(events.t[0])) == (1, 180, 240, int(COLUMNS[0][0]))
    assert len(splits[0].pack([0, 12])) == 2


def test_n_cars(tmp_path: Path) -> None:
    for part, kind in (("train", "cars"), ("train", "background"), ("test", "cars"), ("test", "background")):
        write(tmp_path / f"Prophesee_Dataset_n_cars/n-cars_{part}/{kind}/obj_0_td.dat", made.dat(COLUMNS))
    data = d.NCARS(tmp_path, "test")
    assert (data.classes, data.labels.tolist()) == (("background", "cars"), [0, 1])
    assert (data[1][0].height, data[1][0].width) == (100, 120)


def test_asl_dvs_is_upright(tmp_path: Path) -> None:
    for letter in "abcdefghiklmnopqrstuvwxy":
        write(tmp_path / f"{letter}/{letter}_0001.mat", made.mat(COLUMNS))
    data = d.ASLDVS(tmp_path)
    events, label = data[9]
    assert (label, data.classes[9]) == (9, "k")
    assert events.x.tolist() == (239 - COLUMNS[1]).tolist()
    assert events.y.tolist() == (179 - COLUMNS[2]).tolist()
    (tmp_path / "b/b_0001.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"letters found: acdef.*NVS2Graph"):
        d.ASLDVS(tmp_path)


def test_dvs_lip(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / f"DVS-Lip/{part}/benefits/0.npy", made.npy(COLUMNS))
    events, label = d.DVSLip(tmp_path, "test")[0]
    assert (label, len(events), events.height) == (0, 40, 128)


def test_hardvs_follows_the_list(tmp_path: Path) -> None:
    write(tmp_path / "action_007/dvSave-2021_10_15.npz", made.npz(COLUMNS))
    write(tmp_path / "val_label.txt", b"action_007/dvSave-2021_10_15 6\n\n")
    data = d.HARDVS(tmp_path, "val")
    assert data.labels.tolist() == [6]
    assert len(data[0][0]) == 40
    write(tmp_path / "train_label.txt", b"action_007/other 6\n")
    with pytest.raises(FileNotFoundError, match=r"line 1 names .*other\.npz"):
        d.HARDVS(tmp_path, "train")
    write(tmp_path / "test_label.txt", b"../secret/file 6\n")
    with pytest.raises(ValueError, match="line 1"):
        d.HARDVS(tmp_path, "test")


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        (d.NCaltech101, "garrickorchard.com"),
        (d.NCARS, r"prophesee\.ai"),
        (d.ASLDVS, "NVS2Graph"),
        (d.DVSLip, "event-based-lipreading"),
        (d.HARDVS, "Event-AHU/HARDVS"),
        (d.NMNIST, "garrickorchard.com"),
        (d.CIFAR10DVS, "figshare.com"),
        (d.DVSGesture, "dvsgesture"),
    ],
)
def test_a_missing_download_says_what_to_do(kind: Any, page: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"(?s)Expected .*{page}") as caught:
        kind(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ValueError, match="split is 'all of it'"):
        kind(tmp_path, "all of it")


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    write(tmp_path / "wave/a.raw", made.evt3(COLUMNS))
    write(tmp_path / "nod/b.npz", made.npz(COLUMNS))
    write(tmp_path / "nod/notes.txt", b"")
    data = d.EventFolder(tmp_path, 128, 128)
    assert (data.classes, data.labels.tolist()) == (("nod", "wave"), [0, 1])
    assert torch.equal(data[0][0].t, data[1][0].t)
    with pytest.raises(FileNotFoundError, match="no recording"):
        d.EventFolder(tmp_path / "nod", 128, 128)


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"inside")
    return path


def tarred(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            member.size = 6 if member.isfile() else 0
            archive.addfile(member, io.BytesIO(b"inside") if member.isfile() else None)
    return path


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "..\\out.txt", "C:/out.txt"])
def test_archives_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    for archive in (
        zipped(tmp_path / "bad.zip", "good.txt", name),
        tarred(tmp_path / "bad.tar.gz", tarfile.TarInfo("good.txt"), tarfile.TarInfo(name)),
    ):
        with pytest.raises(ValueError, match="outside the folder"):
            d.unpack_archive(archive, inside)
    assert not inside.exists()


def test_archives_with_links_are_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with pytest.raises(ValueError, match="link or device"):
        d.unpack_archive(tarred(tmp_path / "bad.tgz", link), tmp_path / "inside")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside/out").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="by a link"):
        d.unpack_archive(zipped(tmp_path / "a.zip", "out/x.txt"), tmp_path / "inside")


def test_archives_unpack(tmp_path: Path) -> None:
    found = d.unpack_archive(zipped(tmp_path / "a.zip", "x/y.txt", "z.txt"), tmp_path / "one")
    assert [f.read_bytes() for f in found] == [b"inside"] * 2
    found = d.unpack_archive(tarred(tmp_path / "a.tar.gz", tarfile.TarInfo("x/y.txt")), tmp_path / "two")
    assert found == [tmp_path / "two/x/y.txt"]
    with pytest.raises(ValueError, match="more than 7 bytes"):
        d.unpack_archive(tmp_path / "a.zip", tmp_path / "three", max_bytes=7)
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    with pytest.raises(ValueError, match="not a whole archive"):
        d.unpack_archive(tmp_path / "a.zip", tmp_path / "four")


class LikeTonic:
    """What the wrappers need of a data set of tonic."""

    sensor_size = (120, 100, 2)
    classes = ("a", "b")

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Any, int]:
        t, x, y, p = COLUMNS
        array = np.zeros(len(t), dtype=[("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")])
        for name, column in zip("txyp", (t, x, y, p), strict=True):
            array[name] = column
        return array if index else array[::-1], index


def test_from_tonic_and_back() -> None:
    data = d.from_tonic(LikeTonic())
    events, label = data[1]
    assert (events.height, events.width, label, data.classes) == (100, 120, 1, ("a", "b"))
    assert data[0][0].t.tolist() == events.t.tolist()  # put in order
    array, _ = LikeTonic()[1]
    ours = d.for_tonic(partial(d.refractory_filter, period_us=500), LikeTonic.sensor_size)
    assert ours(array)["t"].tolist() == d.refractory_filter(events, 500).t.tolist()
    theirs = d.tonic_transform(lambda a: a[a["p"]])
    assert theirs(events).p.unique().tolist() == [1]
    with pytest.raises(ValueError, match="sensor_size"):
        d.from_tonic([])


def test_a_real_transform_of_tonic() -> None:
    transforms = pytest.importorskip("tonic.transforms")
    events = d.from_tonic(LikeTonic())[1][0]
    flipped = d.tonic_transform(transforms.RandomFlipLR(sensor_size=LikeTonic.sensor_size, p=1.0))(events)
    assert flipped.x.tolist() == (119 - events.x).tolist()
    whole = transforms.Compose([d.for_tonic(lambda e: e, LikeTonic.sensor_size)])(events.to_structured())
    assert whole.tolist() == events.to_structured().tolist()
