"""The N-MNIST reader: hand-written bytes, the real samples, and files that are broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spikeloom.datasets import NMNIST, Events, read_bin, write_bin


def write(path: Path, *events: tuple[int, int, int, int]) -> Path:
    """(x, y, p, t) as 5 bytes each, by the format's own words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(bytes([x, y]) + (p << 23 | t).to_bytes(3, "big") for x, y, p, t in events)
    path.write_bytes(data)
    return path


def test_hand_written_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes([3, 33, 0x80, 0x01, 0x02, 0, 5, 0x7F, 0xFF, 0xFF]))
    events = read_bin(path)
    assert events.x.tolist() == [3, 0]
    assert events.y.tolist() == [33, 5]
    assert events.p.tolist() == [1, 0]
    assert events.t.tolist() == [258, 2**23 - 1]
    assert (events.height, events.width) == (34, 34)


def test_overflow_events_delay_all_that_follow(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", (1, 1, 0, 8_000), (0, 240, 0, 0), (2, 2, 1, 10), (0, 240, 0, 0), (3, 3, 1, 20))
    events = read_bin(path)
    assert events.t.tolist() == [8_000, 8_192 + 10, 2 * 8_192 + 20]
    assert events.x.tolist() == [1, 2, 3]
    assert events.p.tolist() == [0, 1, 1]


def test_what_is_written_is_read(make_packed: Any, tmp_path: Path) -> None:
    events = make_packed(200)[0]
    write_bin(tmp_path / "a.bin", events)
    assert (tmp_path / "a.bin").stat().st_size == 1000
    again = read_bin(tmp_path / "a.bin", height=5, width=7)
    for name in ("t", "x", "y", "p"):
        assert torch.equal(getattr(again, name), getattr(events, name)), name


def test_recordings_that_do_not_fit_the_format_are_not_written(tmp_path: Path) -> None:
    for events in (
        Events.from_arrays([], [], [], [], 34, 34),
        Events.from_arrays([2**23], [0], [0], [0], 34, 34),
        Events.from_arrays([0], [0], [0], [0], 260, 346),
    ):
        with pytest.raises(ValueError, match="do not fit the format"):
            write_bin(tmp_path / "a.bin", events)
    assert not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize("size", [0, 4, 21_624])
def test_cut_off_files_are_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"a.bin is {size} bytes long.*unpack the archive again"):
        read_bin(path)


def test_events_outside_the_sensor_name_file_and_event(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", (1, 1, 0, 0), (34, 2, 0, 1))
    with pytest.raises(ValueError, match=r"a\.bin is not .*Event 1 of 2 is at x=34, y=2"):
        read_bin(path)


def test_missing_folders_say_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no folder .*Train. Expected ROOT/Train/<label>/<id>.bin.*garrickorchard"
    ):
        NMNIST(tmp_path)
    (tmp_path / "Test" / "3").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no recording under .*Test"):
        NMNIST(tmp_path, "test")
    with pytest.raises(ValueError, match="split is 'Train'"):
        NMNIST(tmp_path, "Train")  # type: ignore[arg-type]


def test_data_set_is_ordered_by_label_and_id(tmp_path: Path) -> None:
    for label, name, x in ((7, "00002", 2), (7, "00001", 1), (0, "00009", 9)):
        write(tmp_path / "Train" / str(label) / f"{name}.bin", (x, 0, 1, 5))
    data = NMNIST(tmp_path)
    assert data.labels.tolist() == [0, 7, 7]
    assert len(data) == 3
    assert [(int(events.x[0]), label) for events, label in (data[i] for i in range(3))] == [(9, 0), (1, 7), (2, 7)]
    packed = data.pack([2, 0])
    assert packed.x.tolist() == [2, 9]
    assert packed.labels is not None
    assert packed.labels.tolist() == [7, 0]


def test_real_samples(nmnist_root: Path) -> None:
    train, test = NMNIST(nmnist_root, "train"), NMNIST(nmnist_root, "test")
    assert (len(train), len(test)) == (700, 100)
    assert set(test.labels.tolist()) == set(range(10))
    packed = test.pack()
    assert packed.lengths.sum() == sum(file.stat().st_size for file in test.files) // 5
    last = packed.t[packed.offsets[1:] - 1]
    assert last.min() > 290_000
    assert last.max() < 320_000
