"""Parts of packed recordings: a recorded split, stores of their own, and what is no source to train from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spikeloom.cli import main
from spikeloom.datasets import Events, EventStore, frames_by_count, frames_by_time, open_parts, pack_store, split_parts
from spikeloom.datasets import event_store as module

SIZE = (12, 16)


def recording(seed: int, count: int = 40, size: tuple[int, int] = SIZE, start: int = 500) -> Events:
    generator = torch.Generator().manual_seed(seed)
    t = torch.randint(0, 90_000, (count,), generator=generator) + start
    x, y = (torch.randint(0, side, (count,), generator=generator) for side in (size[1], size[0]))
    return Events.from_arrays(t, x, y, torch.randint(0, 2, (count,), generator=generator), *size)


def packed(path: Path, labels: list[int], size: tuple[int, int] = SIZE, **options: object) -> EventStore:
    counts = [0 if i == 1 else 40 for i in range(len(labels))]  # one recording without events
    made = [(recording(i, count, size), label) for i, (label, count) in enumerate(zip(labels, counts, strict=True))]
    pack_store(path, made, *size, **options)  # type: ignore[arg-type]
    return EventStore(path)


def test_a_split_holds_out_its_share_of_each_class() -> None:
    labels = [0] * 20 + [1] * 10 + [2] * 3
    parts = split_parts(labels, 0.2, 0.1)
    by_class = [parts[torch.tensor(labels) == label].bincount(minlength=3).tolist() for label in range(3)]
    assert by_class == [[14, 2, 4], [7, 1, 2], [1, 1, 1]]
    assert torch.equal(parts, split_parts(labels, 0.2, 0.1))
    with pytest.raises(ValueError, match="Class 1 has 2 recordings: too few"):
        split_parts([0, 0, 0, 1, 1], 0.2, 0.2)
    for shares in ((0.0, 0.1), (0.6, 0.4), (1.0, 0.0), (0.1, -0.1)):
        with pytest.raises(ValueError, match="expected 0 < test"):
            split_parts(labels, *shares)


def test_a_recorded_split_comes_back(tmp_path: Path) -> None:
    labels = [0, 0, 0, 1, 1, 1]
    split = split_parts(labels, 0.3, 0.3)
    store = packed(tmp_path / "own.events", labels, classes=["a", "b"], parts=split)
    assert store.parts is not None
    assert torch.equal(store.parts, split)
    parts = open_parts(tmp_path / "own.events")
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "validation": 2, "test": 2}
    assert sorted(torch.cat([part.numbers for part in parts.values()]).tolist()) == list(range(6))
    assert {part.classes for part in parts.values()} == {("a", "b")}
    assert parts["test"].says.endswith("own.events: 2 recordings")
    assert parts["test"].select([1]).labels.tolist() == [1]
    with pytest.raises(ValueError, match="expected one each, 0 to 2 for train, validation, test"):
        packed(tmp_path / "other.events", labels, parts=[0, 1, 3, 0, 0, 0])


class Halting:
    """Six recordings; the second cannot be read."""

    labels = torch.tensor([0, 0, 0, 1, 1, 1])

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[Events, int]:
        if index == 1:
            raise ValueError("recording 1 is damaged")
        return recording(index), int(self.labels[index])


def test_recordings_left_out_leave_the_split_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "own.events"
    with pytest.warns(RuntimeWarning, match="Recording 1 is left out"):
        pack_store(path, Halting(), *SIZE, parts=[0, 1, 2, 0, 0, 2], on_error="skip")
    parts = open_parts(path)
    assert (parts["train"].numbers.tolist(), parts["test"].numbers.tolist()) == ([0, 2, 3], [1, 4])
    assert "validation" not in parts
    assert torch.equal(EventStore(path)[4][0].t, recording(5).t)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_frames_are_those_of_the_recordings(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0, 0, 1, 1]
    packed(tmp_path / "own.events", labels, parts=[0, 0, 0, 2])
    part = open_parts(tmp_path / "own.events")["train"]
    assert part.classes == ("0", "1")
    if backend == "reference":
        monkeypatch.setattr(module, "choose", lambda *_: backend)
    chosen = torch.tensor([2, 0, 1])
    events = part.store.select(part.numbers[chosen])
    assert int(events.t.min()) >= 500  # by the recordings' own clock
    for end_us in (1, 400, 30_001, 90_500):
        assert torch.equal(part.frames_by_time(chosen, 7, end_us), frames_by_time(events, 7, end_us=end_us))
    assert torch.equal(part.frames_by_number(chosen, 3), frames_by_count(events, 3, remainder="last"))
    unpacked = part.unpack(*part.words(chosen))
    for name in ("t", "x", "y", "p", "offsets"):
        assert torch.equal(getattr(unpacked, name), getattr(events, name))


def test_damage_is_found_at_the_first_read(tmp_path: Path) -> None:
    path = tmp_path / "own.events"
    packed(path, [0, 0, 1, 1], parts=[0, 2, 0, 2])
    data = bytearray(path.read_bytes())
    data[64 + 8 * 45] ^= 2  # a column of the third recording: still on the sensor
    path.write_bytes(data)
    part = open_parts(path)["train"]
    part.frames_by_time(torch.tensor([0]), 2, 90_000)
    with pytest.raises(ValueError, match=r"own.events: recording 2 \(bytes .* The file is damaged"):
        part.frames_by_time(torch.tensor([1]), 2, 90_000)


def test_what_is_no_source_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no train.events and no test.events in the folder"):
        open_parts(tmp_path)
    packed(tmp_path / "train.events", [0, 1], classes=["a", "b"])
    with pytest.raises(FileNotFoundError, match=r"no test.events .*spikeloom data pack DATASET FOLDER .*test.events"):
        open_parts(tmp_path)
    for labels, size, classes, says in (
        ([0, 1], (12, 20), ["a", "b"], "of a sensor of 12 x 20, .* of 12 x 16"),
        ([0, 1], SIZE, ["b", "a"], r"has the classes b, a, .*train.events a, b"),
        ([], SIZE, ["a", "b"], "has no recordings in the part test"),
        ([0, -1], SIZE, ["a", "b"], r"recording 1 has the label -1, which stands for none"),
        ([0, 2], SIZE, ["a", "b"], "labels up to 2, but names only 2 classes"),
    ):
        packed(tmp_path / "test.events", labels, size, classes=classes)
        with pytest.raises(ValueError, match=says):
            open_parts(tmp_path)
    packed(tmp_path / "test.events", [0], classes=["a", "b"])
    with pytest.raises(ValueError, match=r"Every recording of .*test.events is in .*train.events, too"):
        open_parts(tmp_path)
    with pytest.raises(ValueError, match=r"whether it is to train or to test on.*--test 0.2"):
        open_parts(tmp_path / "train.events")
    packed(tmp_path / "empty.events", [])
    with pytest.raises(ValueError, match="holds no recordings"):
        open_parts(tmp_path / "empty.events")
    packed(tmp_path / "nothing_tested.events", [0, 1], parts=[0, 0])
    with pytest.raises(ValueError, match="no recordings in the part test"):
        open_parts(tmp_path / "nothing_tested.events")


def test_the_command_records_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for first, name in ((0, "nod"), (5, "wave")):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(first, first + 5):
            t, x, y, p = (getattr(recording(i), column).numpy() for column in "txyp")
            module.np.savez(tmp_path / "own" / name / f"{i}.npz", t=t, x=x, y=y, p=p)
    store = tmp_path / "own.events"
    call = ["data", "pack", "folder", str(tmp_path / "own"), str(store), "--height", "12", "--width", "16"]
    assert main([*call, "--validation", "0.2"]) == 1
    assert "--test asks for" in capsys.readouterr().err.replace("\n", " ")
    assert main([*call, "--test", "0.2", "--validation", "0.2"]) == 0
    assert main(["data", "info", str(store)]) == 0
    assert "6 train, 2 validation, 2 test" in capsys.readouterr().out
    assert open_parts(store)["train"].classes == ("nod", "wave")
