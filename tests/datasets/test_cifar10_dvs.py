"""CIFAR10-DVS: AEDAT 2.0 files written bit by bit, the split rule, and broken files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from spikeloom.datasets import CIFAR10DVS, read_aedat2
from spikeloom.datasets.cifar10_dvs import CLASSES, SPLIT_RULE

HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file\r\n# Timestamps tick is 1 us\r\n"


def write(path: Path, *events: tuple[int, int, int, int], extra: bytes = b"", header: bytes = HEADER) -> Path:
    """Events (raw x, raw y, raw polarity, t) by the format's own words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join((y << 8 | x << 1 | p).to_bytes(4, "big") + t.to_bytes(4, "big") for x, y, p, t in events)
    path.write_bytes(header + data + extra)
    return path


def write_set(root: Path, count: int) -> None:
    """`count` recordings a class; number i of each has i + 1 events."""
    for name in CLASSES:
        for i in range(count):
            write(root / name / f"cifar10_{name}_{i}.aedat", *[(1, 2, 0, t) for t in range(i + 1)])


def test_bits_axes_and_polarity(tmp_path: Path) -> None:
    path = write(tmp_path / "a.aedat", (0, 0, 0, 1_000), (127, 3, 1, 1_000), (5, 100, 0, 1_250))
    events = read_aedat2(path)
    assert events.x.tolist() == [127, 124, 27]  # 127 - raw y
    assert events.y.tolist() == [127, 0, 122]  # 127 - raw x
    assert events.p.tolist() == [1, 0, 1]  # 0 in the file is ON
    assert events.t.tolist() == [0, 0, 250]
    assert (events.height, events.width) == (128, 128)


def test_the_same_as_spikingjelly(tmp_path: Path) -> None:
    reader = pytest.importorskip("spikingjelly.datasets.cifar10_dvs")
    draw = np.random.default_rng(0).integers
    times = np.sort(draw(0, 2**30, 500))
    columns = (draw(0, 128, 500), draw(0, 128, 500), draw(0, 2, 500), times)
    path = write(tmp_path / "a.aedat", *zip(*(column.tolist() for column in columns), strict=True))
    theirs, ours = reader._load_origin_data(path), read_aedat2(path)
    for name in ("x", "y", "p"):
        assert getattr(ours, name).tolist() == theirs[name].tolist(), name
    assert (ours.t + int(times[0])).tolist() == theirs["t"].tolist()


def test_events_that_are_no_pixels_are_left_out(tmp_path: Path) -> None:
    special = (0x8000 | 5).to_bytes(4, "big") + bytes(4) + (0x8000_0000).to_bytes(4, "big") + bytes(4)
    path = write(tmp_path / "a.aedat", (1, 1, 0, 7), extra=special)
    assert read_aedat2(path).t.tolist() == [0]


def test_an_empty_recording(tmp_path: Path) -> None:
    assert len(read_aedat2(write(tmp_path / "a.aedat"))) == 0


@pytest.mark.parametrize("cut", range(1, 8))
def test_cut_off_files_are_refused(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "a.aedat", (1, 1, 0, 7), extra=bytes(8)[cut:])
    with pytest.raises(ValueError, match=rf"a.aedat has {16 - cut} bytes after its header; .* 8 or 16"):
        read_aedat2(path)


@pytest.mark.parametrize("header", [b"", b"#!AER-DAT3.1\r\n", b"#!AER-DAT2.0", b"PK"])
def test_other_formats_are_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(ValueError, match=r"an AEDAT 2\.0 file begins with"):
        read_aedat2(write(tmp_path / "a.aedat", (1, 1, 0, 7), header=header))


def test_the_first_nine_tenths_by_file_name_train(tmp_path: Path) -> None:
    write_set(tmp_path, 20)
    train, test = CIFAR10DVS(tmp_path), CIFAR10DVS(tmp_path, "test")
    assert (len(train), len(test)) == (180, 20)
    assert test.labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert [file.name for file in test.files[:2]] == ["cifar10_airplane_8.aedat", "cifar10_airplane_9.aedat"]
    assert [file.name for file in train.files[:3]] == [f"cifar10_airplane_{i}.aedat" for i in (0, 1, 10)]
    assert not set(train.files) & set(test.files)
    assert train.says == "CIFAR10-DVS train: 180 recordings; partial: 200 of 10,000 recordings were found"


def test_the_split_by_number(tmp_path: Path) -> None:
    write_set(tmp_path / "extract", 11)
    test = CIFAR10DVS(tmp_path, "test", order="number")
    assert [file.name for file in test.files] == [f"cifar10_{name}_10.aedat" for name in CLASSES]
    train = CIFAR10DVS(tmp_path, "train", order="number")
    assert len(train) == 100  # 9.9 of 11 is rounded up
    packed = train.pack([99, 0])
    assert packed.lengths.tolist() == [10, 1]
    assert packed.labels is not None
    assert packed.labels.tolist() == [9, 0]
    assert train[99][1] == 9
    assert torch.equal(train[99][0].t, torch.arange(10))


@pytest.mark.parametrize(("count", "held"), [(9, 0), (10, 10)])
def test_a_class_needs_ten_recordings_to_test_on_one(tmp_path: Path, count: int, held: int) -> None:
    write_set(tmp_path, count)
    assert len(CIFAR10DVS(tmp_path, "test")) == held
    assert "needs 10 recordings" in SPLIT_RULE


def test_missing_folders_say_what_is_expected(tmp_path: Path) -> None:
    write(tmp_path / "airplane" / "cifar10_airplane_0.aedat")
    with pytest.raises(FileNotFoundError, match=r"no folder automobile, bird, .*figshare.*unpack them"):
        CIFAR10DVS(tmp_path)
    for name in CLASSES:
        (tmp_path / name).mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError, match=r"no recording cifar10_automobile_<i>.aedat"):
        CIFAR10DVS(tmp_path)
    with pytest.raises(ValueError, match="split is 'valid'"):
        CIFAR10DVS(tmp_path, "valid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="order is 'date'"):
        CIFAR10DVS(tmp_path, order="date")  # type: ignore[arg-type]
