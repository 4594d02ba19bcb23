"""The packed store: the recordings that come out are those that went in, and files are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spikeloom.datasets import Events, PackedEvents, frames_by_time


def columns(events: Events) -> list[list[int]]:
    return [events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist()]


def test_recordings_come_out_as_they_went_in(make_packed: Any) -> None:
    packed = make_packed(10, 0, 25)
    again = PackedEvents.from_events(list(packed), labels=packed.labels)
    assert len(packed) == 3
    assert packed.lengths.tolist() == [10, 0, 25]
    assert packed.recording_index().tolist() == [0] * 10 + [2] * 25
    assert [columns(a) for a in again] == [columns(b) for b in packed]
    assert columns(packed[-1]) == columns(packed[2])
    with pytest.raises(IndexError, match="Recording 3 of 3"):
        packed[3]


def test_select_gathers_recordings_and_labels_in_order(make_packed: Any) -> None:
    packed = make_packed(10, 0, 25, 4)
    batch = packed.select([3, 1, 0, 3])
    assert [columns(events) for events in batch] == [columns(packed[i]) for i in (3, 1, 0, 3)]
    assert batch.labels is not None
    assert batch.labels.tolist() == [3, 1, 0, 3]
    with pytest.raises(IndexError, match="from 0 to 3"):
        packed.select([0, 4])


def test_keep_filters_events_and_moves_the_offsets(make_packed: Any) -> None:
    packed = make_packed(40, 0, 25)
    kept = packed.keep(packed.p == 1)
    assert [columns(events) for events in kept] == [columns(events[events.p == 1]) for events in packed]
    assert torch.equal(kept.labels, packed.labels)


def test_file_round_trip(make_packed: Any, tmp_path: Path) -> None:
    packed = make_packed(10, 0, 25)
    packed.save(tmp_path / "a.npz")
    loaded = PackedEvents.load(tmp_path / "a.npz")
    assert (loaded.height, loaded.width) == (5, 7)
    assert loaded.labels is not None
    for name in ("t", "x", "y", "p", "offsets", "labels"):
        before, after = getattr(packed, name), getattr(loaded, name)
        assert before.dtype == after.dtype, name
        assert torch.equal(before, after), name
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_interrupted_save_leaves_the_old_file(make_packed: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.npz"
    make_packed(3).save(path)
    before = path.read_bytes()

    def interrupted(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("numpy.savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_packed(9).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_truncated_or_foreign_files_are_refused(make_packed: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    make_packed(300).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"not a whole \.npz file"):
        PackedEvents.load(path)
    torch.zeros(3).numpy().tofile(path)
    with pytest.raises(ValueError, match=r"not a whole \.npz file"):
        PackedEvents.load(path)
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        make_packed(1).save(tmp_path / "a.bin")


def test_file_without_a_column_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", t=np.zeros(3))
    with pytest.raises(ValueError, match=r"lacks \['x', 'y', 'p', 'offsets', 'size'\]"):
        PackedEvents.load(tmp_path / "a.npz")


def test_files_of_other_arrays_name_themselves(tmp_path: Path, make_packed: Any) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError, match=r"no file .*a\.npz"):
        PackedEvents.load(path)
    make_packed(3).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    for change, says in (
        ({"size": np.array([5])}, r"a\.npz: size is torch.int64 \[1\]"),
        ({"offsets": np.array([0, 9])}, r"a\.npz holds no packed events: offsets must rise"),
        ({"x": arrays["x"].astype(np.int32)}, r"a\.npz holds no packed events: Column x is torch.int32"),
        ({"t": np.array(["a", "b", "c"])}, r"a\.npz is not a whole \.npz file"),
    ):
        np.savez(path, **(arrays | change))
        with pytest.raises(ValueError, match=says):
            PackedEvents.load(path)


def test_bad_offsets_labels_and_order_are_refused(make_packed: Any) -> None:
    packed = make_packed(4, 3)
    parts = (packed.t, packed.x, packed.y, packed.p)
    with pytest.raises(ValueError, match="rise from 0"):
        PackedEvents(*parts, torch.tensor([0, 5, 4, 7]), 5, 7)
    with pytest.raises(ValueError, match="rise from 0"):
        PackedEvents(*parts, torch.tensor([0, 4, 6]), 5, 7)
    with pytest.raises(ValueError, match=r"labels is torch.int64 \(3,\)"):
        packed.with_labels([1, 2, 3])
    with pytest.raises(ValueError, match="before event"):
        PackedEvents(packed.t.flip(0), *parts[1:], packed.offsets, 5, 7)
    with pytest.raises(ValueError, match="No recordings"):
        PackedEvents.from_events([])


def test_mixed_sensors_are_refused() -> None:
    recordings = [Events.from_arrays([0], [0], [0], [0], 5, width) for width in (7, 8)]
    with pytest.raises(ValueError, match=r"sizes .*expected one"):
        PackedEvents.from_events(recordings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_select_and_keep_as_on_cpu(make_packed: Any) -> None:
    packed = make_packed(100, 0, 50)
    on_gpu = packed.to("cuda").select([2, 0, 1])
    on_gpu = on_gpu.keep(on_gpu.p == 1)
    here = packed.select([2, 0, 1])
    assert torch.equal(frames_by_time(on_gpu, 3).cpu(), frames_by_time(here.keep(here.p == 1), 3))
    assert on_gpu.labels is not None
    assert on_gpu.labels.tolist() == [2, 0, 1]
