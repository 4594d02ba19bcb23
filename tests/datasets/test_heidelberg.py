"""Files of the form of the Spiking Heidelberg Digits and Spiking Speech Commands, and damaged ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from spikeloom.datasets import bin_spikes, shd, ssc
from spikeloom.datasets.hdf5_ragged import check_ragged
from spikeloom.datasets.spike_bins import bin_recordings

h5py = pytest.importorskip("h5py")

Recording = tuple[NDArray[Any], NDArray[Any]]


def draw(recordings: int, seed: int = 0) -> list[Recording]:
    """Spikes as in the files: float16 seconds, ascending, and uint16 units; a recording of one spike among them."""
    rng = np.random.default_rng(seed)
    sizes = [1, *rng.integers(2, 900, recordings - 1)]
    return [
        (np.sort(rng.random(n) * rng.uniform(0.1, 1.2)).astype(np.float16), rng.integers(0, 700, n).astype(np.uint16))
        for n in sizes
    ]


def write(path: Path, recordings: list[Recording], classes: int = 20, **changes: Any) -> Path:
    """A file in the published form; a change replaces a column, or leaves it out (None)."""
    R = len(recordings)
    columns: dict[str, Any] = {
        "labels": np.arange(R) % classes,
        "extra/speaker": np.arange(R) % 3,
        "extra/keys": np.array([f"word {k}".encode() for k in range(classes)], dtype="S12"),
    }
    columns.update({name.replace("__", "/"): column for name, column in changes.items()})
    with h5py.File(path, "w") as file:
        for name, place, kind in (("times", 0, np.float16), ("units", 1, np.uint16)):
            data = file.create_dataset(f"spikes/{name}", (R,), dtype=h5py.vlen_dtype(kind))
            for number, recording in enumerate(recordings):
                data[number] = recording[place]
        for name, column in columns.items():
            if column is not None:
                file[name] = column
    return path


def test_every_recording_is_binned_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the borders of the pieces in which a file is read, too."""
    monkeypatch.setattr("spikeloom.datasets.heidelberg._CHUNK", 7)
    recordings = draw(24)
    write(tmp_path / "shd_test.h5", recordings)
    calls: list[tuple[int, int]] = []
    data = shd(tmp_path, "test", progress=lambda done, total: calls.append((done, total)))
    assert (data.values.dtype, data.channels, len(data)) == (torch.uint8, 140, 24)
    for number, (times, units) in enumerate(recordings):
        alone = bin_spikes(torch.from_numpy(times), torch.from_numpy(units.astype(np.int64)))
        assert torch.equal(data[number].float(), alone), number
        assert int(alone.sum()) == len(times)
    assert data.labels is not None
    assert data.labels.tolist() == [number % 20 for number in range(24)]
    assert data.groups is not None
    assert data.groups.tolist() == [number % 3 for number in range(24)]
    assert data.names[19] == "word 19"
    assert calls == [(7, 24), (14, 24), (21, 24), (24, 24)]


def test_speech_commands_have_three_parts(tmp_path: Path) -> None:
    for seed, part in enumerate(("train", "valid", "test")):
        write(tmp_path / f"ssc_{part}.h5", draw(3, seed), classes=35)
    parts = [ssc(tmp_path, part, duration=5.0, merge=10) for part in ("train", "valid", "test")]
    assert all((len(part), part.channels, len(part.names)) == (3, 70, 35) for part in parts)
    assert len({int(part.values.sum()) for part in parts}) == 3


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"shd_train.h5. Get shd_train.h5.gz from https://compneuro.net/datasets"
    ):
        shd(tmp_path)
    (tmp_path / "ssc_valid.h5.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"Unpack .*ssc_valid.h5.gz \(gunzip\)"):
        ssc(tmp_path, "valid")
    with pytest.raises(ValueError, match="SHD has no validation part"):
        shd(tmp_path, "valid")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="part is 'dev'"):
        ssc(tmp_path, "dev")  # type: ignore[arg-type]


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


@pytest.mark.parametrize(
    "damage",
    [cut_off, lambda path: path.write_bytes(b"<html>not found</html>"), lambda path: path.write_bytes(b"")],
    ids=["cut", "page", "empty"],
)
def test_damaged_files(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    damage(write(tmp_path / "shd_train.h5", draw(30)))
    with pytest.raises(ValueError, match=r"shd_train.h5 is not a whole HDF5 file .* get it again from"):
        shd(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": None}, "has no labels; expected spikes/times"),
        ({"extra__keys": None, "extra__speaker": None}, "has no extra/speaker, extra/keys"),
        ({"labels": np.arange(5)}, "arrays of lengths .*'labels': 5"),
        ({"labels": np.arange(6) + 15}, "labels are from 15 to 20, but extra/keys names 20 classes"),
        ({"labels": np.arange(6) - 1}, "labels are from -1 to 4"),
        ({"labels": np.linspace(0, 1, 6)}, "labels is float64; expected whole numbers"),
    ],
    ids=["no-labels", "no-extra", "length", "above", "below", "floats"],
)
def test_columns_that_do_not_agree(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    write(tmp_path / "shd_train.h5", draw(6), **changes)
    with pytest.raises(ValueError, match=says):
        shd(tmp_path)


def spoil(recording: Recording, how: str) -> Recording:
    times, units = recording
    if how == "unsorted":
        return times[::-1].copy(), units
    if how == "units":
        return times, np.where(np.arange(len(units)) == 1, 700, units).astype(np.uint16)
    if how == "lengths":
        return times, units[:-1]
    if how == "silent":
        return times[:0], units[:0]
    return np.repeat(times[:1], 300), np.repeat(units[:1], 300)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("unsorted", "recordings 0 to 3: .*times are not ascending"),
        ("units", "to 700; expected whole numbers from 0 to 699"),
        ("lengths", "times and units of other lengths"),
        ("silent", "a spike or more per recording"),
        ("many", "300 spikes in one frame and channel"),
    ],
)
def test_spikes_that_are_none(tmp_path: Path, how: str, says: str) -> None:
    recordings = draw(4)
    recordings[2] = spoil(recordings[2], how)
    write(tmp_path / "shd_train.h5", recordings)
    with pytest.raises(ValueError, match=says):
        shd(tmp_path)


def test_a_recording_may_begin_before_the_last_one_ended() -> None:
    times = torch.tensor([0.5, 0.6, 0.1, 0.1, 0.12])
    counts, frames = bin_recordings(times, torch.tensor([0, 1, 2, 3, 699]), torch.tensor([0, 2, 5]))
    assert frames.tolist() == [0, 10, 12]
    assert counts.sum(1).tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 1]


def test_a_time_that_asks_for_too_many_frames_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "shd_train.h5"
    with h5py.File(write(path, draw(2)), "a") as file:
        del file["spikes/times"], file["spikes/units"]
        times = file.create_dataset("spikes/times", (2,), dtype=h5py.vlen_dtype(np.float32))
        units = file.create_dataset("spikes/units", (2,), dtype=h5py.vlen_dtype(np.uint16))
        times[0], units[0] = np.array([0.0, 0.5], np.float32), np.array([1, 2], np.uint16)
        times[1], units[1] = np.array([0.0, 1e9], np.float32), np.array([1, 2], np.uint16)
    with pytest.raises(ValueError, match=r"recordings 0 to 1: a time asks for 100,000,000,000 frames of 10 ms"):
        shd(tmp_path)


@pytest.mark.parametrize("name", ["spikes/times", "labels", "extra/keys"])
def test_groups_and_tables_in_the_place_of_columns_are_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "shd_train.h5", draw(3))
    for replacement in (None, np.zeros((3, 2)), np.float32(1)):
        with h5py.File(path, "a") as file:
            del file[name]
            if replacement is None:
                file.create_group(name)
            else:
                file[name] = replacement
        with pytest.raises(ValueError, match=r"shd_train.h5 has arrays of shapes .*expected columns"):
            shd(tmp_path)


LAYOUTS: dict[str, dict[str, Any]] = {
    "one piece": {},
    "chunks": {"chunks": (2,)},
    "gzip": {"chunks": (8,), "maxshape": (None,), "compression": "gzip", "shuffle": True},
    "lzf": {"chunks": (2,), "compression": "lzf"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", "<u2", ">i8"])
def test_sound_rows_of_every_layout_are_let_in(layout: str, kind: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("rows", (5,), dtype=h5py.vlen_dtype(np.dtype(kind)), **LAYOUTS[layout])
        for row in range(5):
            data[row] = np.arange(row * 300).astype(kind)
    with h5py.File(tmp_path / "a.h5", "r") as file:
        check_ragged(tmp_path / "a.h5", file["rows"])


def test_rows_that_their_heap_does_not_hold_are_refused(tmp_path: Path) -> None:
    """The library reads beyond its memory, or for ever, where these bytes are damaged."""
    path = write(tmp_path / "shd_train.h5", draw(3))
    with h5py.File(path, "r") as file:
        entry = file["spikes/times"].id.get_offset()
    sound = path.read_bytes()
    heap = int.from_bytes(sound[entry + 4 : entry + 12], "little")
    for at, value, says in (
        (entry, 10**6, r"a row of 1,000,000 numbers, which the heap at byte"),
        (heap, 0, r"no heap at byte"),
        (heap + 8, 10**9, r"bytes .* of a file of"),
        (heap + 24, 10**8, r"an object of .* bytes in the heap"),
    ):
        damaged = bytearray(sound)
        damaged[at : at + 4] = value.to_bytes(4, "little")
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"shd_train.h5 cannot be read: {says}"):
            shd(tmp_path)


def test_heaps_that_lie_in_one_another_are_refused(tmp_path: Path) -> None:
    """Each is listed once and holds no byte of another, so that a file of some megabytes cannot take hours."""
    path, size = tmp_path / "a.h5", 3000
    inside = bytearray(size)
    for at in range(0, 512, 64):  # heaps that reach to the end of the row
        rest = size - at
        inside[at : at + 32] = b"GCOL\x01\0\0\0" + rest.to_bytes(8, "little") + b"\x01" + bytes(7)
        inside[at + 24 : at + 32] = (rest - 32).to_bytes(8, "little")
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("rows", (9,), dtype=h5py.vlen_dtype(np.dtype("u1")))
        for row in range(9):
            rows[row] = np.frombuffer(bytes(inside) if row == 0 else b"one", np.uint8)
    with h5py.File(path, "r") as file:
        check_ragged(path, file["rows"])
        entries = file["rows"].id.get_offset()
    data = bytearray(path.read_bytes())
    start = data.index(inside)
    for row in range(1, 9):
        heap = start + 64 * (row - 1)
        data[entries + 16 * row : entries + 16 * row + 16] = struct.pack("<IQI", 1, heap, 1)
    path.write_bytes(data)
    with h5py.File(path, "r") as file, pytest.raises(ValueError, match="heaps that lie in one another"):
        check_ragged(path, file["rows"])
