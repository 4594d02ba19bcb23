"""Event stores that are not what they say: words that no packing writes, claims, other files, copies, two at work."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spikeloom.cli import main
from spikeloom.datasets import Events, EventStore, open_parts, pack_store, refractory_filter, store_writer
from spikeloom.datasets import event_store as module
from spikeloom.datasets.store_format import HEADER_BYTES, Header, Tables, pack_header, pack_tables


def write(
    path: Path, recordings: list[list[int]], *, size: tuple[int, int] = (8, 9), start: int = 0, **named: Any
) -> Path:
    """A store of words, its checksums right; named: other contents of the tables."""
    words = [np.array(recording, "<i8") for recording in recordings]
    offsets = np.cumsum([0, *map(len, words)]).astype(np.int64)
    starts = np.full(len(words), start, np.int64)
    labels, checksums = np.zeros_like(starts), np.array([zlib.crc32(each.tobytes()) for each in words], np.uint32)
    given = {"offsets": offsets, "starts": starts, "labels": labels, "checksums": checksums, "classes": (), **named}
    data = b"".join(each.tobytes() for each in words)
    return closed(path, data, pack_tables(Tables(**given)), len(words), size)


def closed(path: Path, words: bytes, tables: bytes, count: int, size: tuple[int, int]) -> Path:
    header = pack_header(Header(*size, count, len(words) // 8, HEADER_BYTES + len(words), len(tables)))
    path.write_bytes(header + words + tables)
    return path


def word(t: int, y: int, x: int) -> int:
    return t << 31 | y << 16 | x << 1


def moment(x: int, count: int = 3) -> Events:
    zero = torch.zeros(count, dtype=torch.int64)
    return Events.from_arrays(zero, zero + x, zero, zero, 8, 9)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "words",
    [[word(5, 7, 9)], [word(5, 8, 0)], [word(5, 0, 0), word(4, 0, 0)], [-word(1, 0, 0)]],
    ids=["column", "row", "order", "before 0"],
)
def test_words_that_no_packing_writes(
    words: list[int], backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU would count them as other pixels: it trusts what has its checksum."""
    monkeypatch.setattr(module, "choose", lambda *_: backend)
    store = EventStore(write(tmp_path / "a.events", [[word(0, 7, 8)], words]))
    assert [line.split(" (")[0] for line in store.verify()] == ["recording 1"]
    store.check([0])
    with pytest.raises(ValueError, match=r"recording 1 .* it has events off the sensor or out of order"):
        store.check([0, 1])


@pytest.mark.parametrize("size", [(0, 9), (8, 32768), (2**31, 2**31)])
def test_sensors_that_are_none(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="its header says a sensor of"):
        EventStore(write(tmp_path / "a.events", [[0]], size=size))
    with pytest.raises(ValueError, match="each must be 1 to 32767"):
        pack_store(tmp_path / "b.events", [], *size)  # type: ignore[arg-type]
    assert not (tmp_path / "b.events.part").exists()


@pytest.mark.parametrize("named", [{"start": -1}, {"labels": np.zeros((1, 2), np.int64)}], ids=["start", "shape"])
def test_tables_that_do_not_fit(named: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not agree with its header"):
        EventStore(write(tmp_path / "a.events", [[0]], **named))


def test_tables_do_not_unpack_to_more(tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("offsets.npy", bytes(10**7))
    data = file.getvalue()
    closed(tmp_path / "a.events", b"", data + struct.pack("<I", zlib.crc32(data)), 0, (8, 9))
    with pytest.raises(ValueError, match=r"10,000,000 bytes in"):
        EventStore(tmp_path / "a.events")


def test_a_store_that_was_replaced_is_not_read_by_the_old_tables(tmp_path: Path) -> None:
    path = write(tmp_path / "a.events", [[0], [0]])
    store = EventStore(path)
    write(path, [[0], [0]], labels=np.ones(2, np.int64))
    with pytest.raises(ValueError, match="another file than the store that was opened"):
        store[0]
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="another file than the store that was opened"):
        store.frames([0], 1)


def test_a_store_that_is_cut_off_in_use_does_not_end_the_process(tmp_path: Path) -> None:
    path = write(tmp_path / "a.events", [[0] * 5000, [0]])
    store = EventStore(path)
    assert len(store[0][0]) == 5000
    os.truncate(path, 5000)
    for read in (lambda: store[0], lambda: store.check([0]), lambda: store.frames([1], 1), lambda: store.words([0])):
        with pytest.raises(ValueError, match="was cut off while it was in use"):
            read()


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    pack_store(tmp_path / "new" / "one" / "a.events", [(moment(0), 0)], 8, 9)
    assert len(EventStore(tmp_path / "new" / "one" / "a.events")) == 1


def test_a_store_that_another_process_has_just_finished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finishes when the file under its old name was opened, but not locked yet."""
    path, lock = tmp_path / "a.events", store_writer.fcntl.flock

    def late(*given: Any) -> None:
        monkeypatch.setattr(store_writer.fcntl, "flock", lock)
        os.replace(path.with_name("a.events.part"), path)
        path.write_bytes(b"a whole store")
        lock(*given)

    monkeypatch.setattr(store_writer.fcntl, "flock", late)
    with pytest.raises(BlockingIOError, match="Another process"):
        pack_store(path, [(moment(0), 0)], 8, 9)
    assert path.read_bytes() == b"a whole store"
    assert pack_store(path, [(moment(0), 0)], 8, 9).packed == 1


class Bad:
    """Three recordings; the first is damaged, the last too until it is mended."""

    mended = False

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Events, int]:
        if index == 0:
            raise ValueError("cut off")
        if index == 2 and not self.mended:
            raise KeyError(index)
        return moment(index), 0


def test_what_an_earlier_try_left_out_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "_SYNC_BYTES", 1)
    source = Bad()
    with pytest.warns(RuntimeWarning, match="Recording 0"), pytest.raises(KeyError):
        pack_store(tmp_path / "a.events", source, 8, 9, on_error="skip")
    source.mended = True
    result = pack_store(tmp_path / "a.events", source, 8, 9, on_error="skip")
    assert (result.packed, result.resumed, [index for index, _ in result.left_out]) == (2, 2, [0])


def test_copies_in_two_parts(tmp_path: Path) -> None:
    def packed(name: str, *columns: int) -> None:
        pack_store(tmp_path / f"{name}.events", [(moment(x), 0) for x in columns], 8, 9)

    packed("train", 0, 1, 2)
    packed("test", 3, 4)
    packed("validation", 5)
    assert len(open_parts(tmp_path)) == 3
    for name, columns, says in (
        ("validation", (3, 4), r"the part test of .*test.events is in the part validation"),
        ("validation", (1,), r"the part validation of .* is in the part train"),
    ):
        packed(name, *columns)
        with pytest.raises(ValueError, match=f"Every recording of {says}"):
            open_parts(tmp_path)
        assert len(open_parts(tmp_path, compare=False)) == 3
    packed("validation", 5, 3)
    with pytest.raises(RuntimeWarning, match="1 of 2 recordings of the part test"):
        open_parts(tmp_path)
    pack_store(tmp_path / "one.events", [(moment(x), 0) for x in (0, 1, 1)], 8, 9, parts=[0, 0, 2])
    with pytest.raises(ValueError, match="Every recording of the part test"):
        open_parts(tmp_path / "one.events")


def test_labels_that_are_no_numbers_of_classes_take_no_memory(tmp_path: Path) -> None:
    for label in (2**16, 2**62):
        labels = np.array([0, label], np.int64)
        path = write(tmp_path / "a.events", [[0], [word(0, 0, 1)]], labels=labels, parts=np.array([0, 2], np.uint8))
        with pytest.raises(ValueError, match="names no classes; expected labels from 0, below 65,536"):
            open_parts(path)


def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets and dollars are no markup, neither in classes nor in paths."""
    for name in ("a[/b]$x$", "[red]c"):
        folder = tmp_path / "own" / name.replace("/", "")
        folder.mkdir(parents=True)
        np.savez(folder / "0.npz", t=[0, 5], x=[1, 2], y=[0, 0], p=[0, 1])
    path = tmp_path / "[bold]$^{$.events"
    call = ["data", "pack", "folder", str(tmp_path / "own"), str(path), "--height", "8", "--width", "9"]
    assert main(call) == 0
    assert "[bold]$^{$.events" in capsys.readouterr().out.replace("\n", "")
    assert main(["data", "info", str(path)]) == 0
    assert "[red]c, a[b]$x$" in capsys.readouterr().out
    assert main(["data", "show", str(path), "--out", str(tmp_path / "[seen]"), "--frames", "2"]) == 0
    assert "[seen]" in capsys.readouterr().out
    for index in ("2", "-1"):
        assert main(["data", "show", str(path), "--index", index]) == 1
        assert "has 2 recordings" in capsys.readouterr().err.replace("\n", " ")


def test_a_long_refractory_period_at_late_times() -> None:
    zero = torch.zeros(3, dtype=torch.int64)
    late = Events.from_arrays(torch.tensor([2**63 - 9, 2**63 - 8, 2**63 - 1]), zero, zero, zero, 8, 9)
    assert len(refractory_filter(late, 2**61)) == 1
    assert len(refractory_filter(late, 8)) == 2
