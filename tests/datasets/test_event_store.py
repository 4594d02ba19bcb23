"""The packed event store: what goes in comes out, whatever interrupts the packing; damage is found."""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from spikeloom.datasets import Events, EventStore, PackedEvents, frames_by_time, pack_store
from spikeloom.datasets import event_store as module

SIZE = (30, 40)


class Source:
    """Recordings of given lengths, labels 0, 1, ...; `bad` cannot be read; `pause` seconds each."""

    def __init__(self, lengths: list[int], bad: tuple[int, ...] = (), pause: float = 0.0) -> None:
        self.lengths, self.bad, self.pause = lengths, bad, pause

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        time.sleep(self.pause)
        if index in self.bad:
            raise ValueError(f"recording {index} ends at byte 17")
        draw = np.random.default_rng(index)
        n = self.lengths[index]
        t = np.sort(draw.integers(0, 400_000, n)) + 1_000_000 * index
        xs, ys, ps = draw.integers(0, 40, n), draw.integers(0, 30, n), draw.integers(0, 2, n)
        return Events.from_arrays(t, xs, ys, ps, *SIZE), index


def same(store: EventStore, source: Source, indices: list[int]) -> None:
    assert len(store) == len(indices)
    for place, index in enumerate(indices):
        events, label = store[place]
        expected, expected_label = source[index]
        assert label == expected_label
        for name in "txyp":
            assert torch.equal(getattr(events, name), getattr(expected, name))


LENGTHS = [100, 0, 1, 2500, 7]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(0, 60), max_size=6))
def test_what_goes_in_comes_out(lengths: list[int], tmp_path: Path) -> None:
    source = Source(lengths)
    assert pack_store(tmp_path / "a.events", source, *SIZE, classes=["zero", "one"]).packed == len(lengths)
    store = EventStore(tmp_path / "a.events")
    same(store, source, list(range(len(lengths))))
    assert store.classes == ("zero", "one")
    assert store.event_counts.tolist() == lengths
    assert store.verify() == []
    assert [file.name for file in tmp_path.iterdir()] == ["a.events"]


@pytest.mark.parametrize("end_us", [None, 250_000])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_frames_are_those_of_the_recordings(
    end_us: int | None, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(LENGTHS)
    pack_store(tmp_path / "a.events", source, *SIZE)
    store = EventStore(tmp_path / "a.events")
    monkeypatch.setattr(module, "choose", lambda *_: backend)
    frames = store.frames([3, 0, 1, 3], 6, end_us=end_us)
    for place, index in enumerate([3, 0, 1, 3]):
        events, _ = source[index]
        start = events.t[0] if len(events) else 0
        moved = Events(events.t - start, events.x, events.y, events.p, *SIZE)
        assert torch.equal(frames[:, place], frames_by_time(moved, 6, end_us=end_us))
    if end_us is None:
        assert int(frames.sum()) == 5100


def test_batches_in_worker_processes(tmp_path: Path) -> None:
    source = Source(LENGTHS)
    pack_store(tmp_path / "a.events", source, *SIZE)
    store = pickle.loads(pickle.dumps(EventStore(tmp_path / "a.events")))

    def collate(batch: list[tuple[Events, int]]) -> tuple[PackedEvents, list[int]]:
        return PackedEvents.from_events([events for events, _ in batch]), [label for _, label in batch]

    (first, labels), *_ = list(DataLoader(store, batch_size=4, num_workers=1, collate_fn=collate))
    assert labels == [0, 1, 2, 3]
    assert torch.equal(first.t, store.select([0, 1, 2, 3]).t)


def test_recordings_that_cannot_be_read(tmp_path: Path) -> None:
    source = Source(LENGTHS, bad=(1, 3))
    with pytest.raises(ValueError, match="ends at byte 17"):
        pack_store(tmp_path / "a.events", source, *SIZE)
    with pytest.warns(RuntimeWarning, match="is left out"):
        result = pack_store(tmp_path / "a.events", source, *SIZE, on_error="skip")
    assert (result.packed, [index for index, _ in result.left_out]) == (3, [1, 3])
    same(EventStore(tmp_path / "a.events"), source, [0, 2, 4])


def test_an_error_leaves_what_was_packed_and_the_old_store(tmp_path: Path) -> None:
    path = tmp_path / "a.events"
    pack_store(path, Source([5]), *SIZE)
    before = path.read_bytes()
    module_writer = sys.modules["spikeloom.datasets.store_writer"]
    size = module_writer._SYNC_BYTES  # type: ignore[attr-defined]
    module_writer._SYNC_BYTES = 1  # type: ignore[attr-defined]
    try:
        with pytest.raises(ValueError, match="byte 17"):
            pack_store(path, Source(LENGTHS, bad=(4,)), *SIZE)
    finally:
        module_writer._SYNC_BYTES = size  # type: ignore[attr-defined]
    assert path.read_bytes() == before
    assert pack_store(path, Source(LENGTHS), *SIZE).resumed == 4
    same(EventStore(path), Source(LENGTHS), [0, 1, 2, 3, 4])


def test_a_full_disk_is_an_error_and_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands for the disk: writing fails in the middle of a recording."""
    path, source = tmp_path / "a.events", Source([200] * 20)
    monkeypatch.setattr("spikeloom.datasets.store_writer._SYNC_BYTES", 4096)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: .*a.events.part cannot grow.* call this again"):
            pack_store(path, source, *SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()
    assert pack_store(path, source, *SIZE).resumed >= 6
    assert EventStore(path).verify() == []
    same(EventStore(path), source, list(range(20)))


def test_a_journal_of_another_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.events"
    module_writer = sys.modules["spikeloom.datasets.store_writer"]
    size, module_writer._SYNC_BYTES = module_writer._SYNC_BYTES, 1  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="byte 17"):
        pack_store(path, Source(LENGTHS, bad=(4,)), *SIZE)
    module_writer._SYNC_BYTES = size  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="of another source"):
        pack_store(path, Source([1, 2]), *SIZE)


def test_two_at_one_path(tmp_path: Path) -> None:
    path = tmp_path / "a.events"
    with path.with_name("a.events.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="Another process"):
            pack_store(path, Source(LENGTHS), *SIZE)


KILLED = """
import os, random, signal, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork: there are no other threads
from test_event_store import SIZE, Source
from spikeloom.datasets import pack_store, store_writer
store_writer._SYNC_BYTES = 4096
draw, kills = random.Random(5), 0
for _ in range(8):
    child = os.fork()
    if not child:
        pack_store(sys.argv[1], Source([200] * 120, pause=0.002), *SIZE)
        os._exit(0)
    time.sleep(draw.uniform(0.01, 0.06))
    os.kill(child, signal.SIGKILL)
    kills += os.waitpid(child, 0)[1] == signal.SIGKILL
print(kills)
"""


def test_killed_at_random_moments(tmp_path: Path) -> None:
    path = tmp_path / "a.events"
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parent)!r})\n{KILLED}"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 4
    source = Source([200] * 120)
    assert pack_store(path, source, *SIZE).resumed > 0
    store = EventStore(path)
    assert store.verify() == []
    same(store, source, list(range(120)))


@pytest.mark.parametrize("byte", [3, 9, 17, 30, -1, -40])
def test_damage_to_header_or_tables_is_refused(byte: int, tmp_path: Path) -> None:
    path = tmp_path / "a.events"
    pack_store(path, Source(LENGTHS), *SIZE)
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is not a whole event store"):
        EventStore(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not a whole event store"):
        EventStore(path)


def test_damage_to_events_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.events"
    pack_store(path, Source(LENGTHS), *SIZE)
    with path.open("r+b") as file:
        file.seek(64 + 8 * 150)
        file.write(b"\xff" * 7)
    store = EventStore(path)
    assert [line.split(" (")[0] for line in store.verify()] == ["recording 3"]
    with pytest.raises(ValueError, match="off the sensor"):
        store.frames([3], 4, end_us=400_000_000_000)
    with pytest.raises(ValueError, match="damaged"):
        store[3]


def test_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an event store is a file"):
        pack_store(tmp_path / "a.npz", Source(LENGTHS), *SIZE)
    with pytest.raises(ValueError, match="30 x 40; the store is for 10 x 10"):
        pack_store(tmp_path / "a.events", Source(LENGTHS), 10, 10)
    with pytest.raises(FileNotFoundError, match="begun but not finished"):
        EventStore(tmp_path / "a.events")
    assert os.path.exists(tmp_path / "a.events.journal")
