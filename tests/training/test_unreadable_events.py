"""Damaged recordings: of an event store in the middle of an epoch, and of files that are read before a training."""

from __future__ import annotations

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from spikeloom_tests.training.image_folders import write_folder
from spikeloom_tests.training.tiny_files import write_cifar10_dvs, write_gestures
from torch import Tensor

from spikeloom.datasets import Events, EventStore, pack_store
from spikeloom.training import Augment, Data, Recipe, Result, event_batches, fit, get_recipe
from spikeloom.training.aside import Aside
from spikeloom.training.checkpoint import find_checkpoint, require_checkpoint
from spikeloom.training.data import Batches, generator_for, load_test, load_train
from spikeloom.training.event_batches import EventFrames
from spikeloom.training.faults import DataFaultError, UnreadableWarning, stand_ins
from spikeloom.training.split import WHOLE, Split
from spikeloom.training.stored_events import StoredEvents
from spikeloom.training.threads import ahead, beside

CPU = torch.device("cpu")
COUNT, EVENTS, CLASSES, BATCH = 21, 4, 5, 6  # recordings to train on; the last batch of an epoch has three
SEED, EPOCH = 3, 1
CHANGES = {
    "plain": Augment(),
    "shifted": Augment(shift_px=1),
    "as published": Augment(flip=0.5, frame_op=True, mixup=0.5, cutmix=0.1, mix_prob=0.5),
    "events changed": Augment(drop=0.3, shift_px=1, mixup=1.0),
}


def recording(number: int) -> tuple[Events, int]:
    """Events at the one pixel that tells the number, and a label."""
    t = torch.arange(EVENTS) * 70_000
    same = torch.full((EVENTS,), 1)
    return Events.from_arrays(t, same * (number % 16), same * (number // 16), same * 0, 8, 16), number % CLASSES


def write_store(path: Path, numbers: list[int]) -> Data:
    """A store of recordings to train on and five to test on."""
    made = [recording(number) for number in (*numbers, *range(COUNT, COUNT + 5))]
    pack_store(path, made, 8, 16, parts=[0] * len(numbers) + [2] * 5)
    return Data("event_store", root=str(path), T=2, unreadable="skip")


def damage(path: Path, *numbers: int) -> None:
    data = bytearray(path.read_bytes())
    for number in numbers:
        data[64 + 8 * EVENTS * number + 3] ^= 4
    path.write_bytes(data)


def order(epoch: int = EPOCH) -> list[int]:
    return torch.randperm(COUNT, generator=generator_for(SEED, 0, epoch)).tolist()


def shown(lost: set[int]) -> dict[int, int]:
    """Which recording is shown for which in the epoch: the next readable one of its batch, or the last."""
    found = {}
    for start in range(0, COUNT, BATCH):
        batch = order()[start : start + BATCH]
        kept = [number for number in batch if number not in lost]
        for place, number in enumerate(batch):
            found[number] = next((other for other in batch[place:] if other not in lost), kept[-1])
    return found


LOST = {order()[place] for place in (1, 2, 11, 20)}  # two side by side, the last of a batch, the last of all


@pytest.fixture
def damaged(tmp_path: Path) -> Data:
    data = write_store(tmp_path / "a.events", list(range(COUNT)))
    damage(tmp_path / "a.events", *LOST)
    return data


@pytest.fixture(params=["kept", "streamed", "threads"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Frames that are kept, binned batch by batch, or that and made and read ahead, as for a GPU."""
    if request.param != "kept":
        monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    if request.param == "threads":
        monkeypatch.setattr(Aside, "made", lambda self, batches: beside(lambda: next(batches, None), 2))
        reads = lambda self, parts, skips: ahead(lambda part: self._words(part, skips), parts, 3)  # noqa: E731
        monkeypatch.setattr(StoredEvents, "reads", reads)
    return str(request.param)


def epoch_of(data: Data, augment: Augment, split: Split = WHOLE, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    return list(Batches(load_train(data)[0], data, BATCH, CPU, augment, split).shuffled(SEED, EPOCH, start))


def assert_same(found: list[tuple[Tensor, Tensor]], wanted: list[tuple[Tensor, Tensor]]) -> None:
    for (inputs, targets), (others, expected) in zip(found, wanted, strict=True):
        assert torch.equal(inputs, others)
        assert torch.equal(targets, expected)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("split", ["time", "number"])
def test_the_next_readable_recording_is_shown_with_its_label(
    damaged: Data, name: str, split: Any, way: str, tmp_path: Path
) -> None:
    """As if a copy of it had been packed in the place of the damaged one, whatever is done to the batch."""
    damaged = replace(damaged, split=split, encoding="count")
    by = shown(LOST)
    copied = write_store(tmp_path / "b.events", [by[number] for number in range(COUNT)])
    wanted = epoch_of(replace(damaged, root=copied.root), CHANGES[name])
    with pytest.warns(UnreadableWarning) as told:
        found = epoch_of(damaged, CHANGES[name])
    assert_same(found, wanted)
    if name == "plain":
        numbers = [number for frames, _ in found for number in frames.sum((0, 2)).flatten(1).argmax(1).tolist()]
        assert numbers == [by[number] for number in order()]
        assert [label for _, labels in found for label in labels.tolist()] == [number % CLASSES for number in numbers]
    said = [str(warning.message) for warning in told]
    assert [line.split(" in all so far")[0].split("(")[-1] for line in said] == ["2", "3", "4"]
    for number in LOST:
        assert any(f"a.events: recording {number} (bytes " in line for line in said)
    assert "2 of 6 recordings that are read together cannot be read" in said[0]


def test_processes_passes_and_resume_see_the_same_batches(damaged: Data, way: str) -> None:
    augment = CHANGES["events changed"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableWarning)
        whole = epoch_of(damaged, augment)
        assert_same(epoch_of(damaged, augment, start=2), whole[2:])
        for rank in range(2):
            own = Split(2, (rank,), pairs=True)
            parts = [(x[:, own.rows(len(y), rank)], y[own.rows(len(y), rank)]) for x, y in whole]
            assert_same(epoch_of(damaged, augment, own), parts)
        passes = Split(2, (0, 1), pairs=True)
        batches = Batches(load_train(damaged)[0], damaged, BATCH, CPU, augment, passes)
        assert len(list(batches.shuffled(SEED, EPOCH))) == 8
    assert batches.inputs.skipped == len(LOST)  # type: ignore[union-attr]


def test_what_was_made_ahead_and_is_not_taken_is_not_counted(
    damaged: Data, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, made = Batches(load_train(damaged)[0], damaged, BATCH, CPU), threading.Semaphore(0)
    augmented = EventFrames.augmented

    def counted(self: EventFrames, *given: Any) -> Tensor:
        made.release()
        return augmented(self, *given)

    def take_one() -> None:
        coming = batches.shuffled(SEED, EPOCH, start=1)
        next(coming)
        for _ in range(3 if way == "threads" else 1):  # two more are made ahead, of which the last has a damaged one
            assert made.acquire(timeout=5)
        coming.close()  # type: ignore[attr-defined]

    monkeypatch.setattr(EventFrames, "augmented", counted)
    with pytest.warns(UnreadableWarning, match=r"\(1 in all so far\)") as told:
        take_one()
    assert (len(told), batches.inputs.skipped) == (1, 1)  # type: ignore[union-attr]


def test_stop_names_the_recording_and_what_to_do(damaged: Data, way: str) -> None:
    says = rf"a\.events: recording {order()[1]} \(bytes .* checksum.* --resume, .* --data\.unreadable skip"
    with pytest.raises(DataFaultError, match=says if way != "kept" else r"4 of the 21 .* --data\.unreadable skip"):
        epoch_of(replace(damaged, unreadable="stop"), Augment())


def test_an_evaluation_leaves_nothing_out(damaged: Data, way: str) -> None:
    train = load_train(damaged)[0]
    with pytest.raises(DataFaultError, match="cannot be read"):
        list(Batches(train, damaged, BATCH, CPU).in_order())


def test_a_batch_of_damaged_recordings_stops(tmp_path: Path, way: str) -> None:
    data = write_store(tmp_path / "a.events", list(range(COUNT)))
    damage(tmp_path / "a.events", *order()[BATCH : 2 * BATCH])
    coming = Batches(load_train(data)[0], data, BATCH, CPU).shuffled(SEED, EPOCH)
    next(coming)
    with pytest.raises(DataFaultError, match=r"6 of the 6 recordings .* None is left to show in their place"):
        next(coming)


def test_threads_that_map_a_store_at_once_read_one_map(damaged: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of one would read on where the other's assignment had unmapped the file."""
    store, both, mapped = EventStore(str(damaged.root)), threading.Barrier(2), EventStore._mapped

    def together(self: EventStore) -> Any:
        both.wait(5)
        return mapped(self)

    monkeypatch.setattr(EventStore, "_mapped", together)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: store._map(), range(2))
    assert first is second


@pytest.mark.parametrize("way", ["streamed", "threads"], indirect=True)
def test_a_store_that_is_cut_off_in_the_epoch_stops(tmp_path: Path, way: str) -> None:
    data = write_store(tmp_path / "a.events", list(range(COUNT)))
    train = load_train(data)[0]
    coming = Batches(train, data, 2, CPU).shuffled(SEED, EPOCH)
    next(coming)
    os.truncate(tmp_path / "a.events", 100)
    with pytest.raises(DataFaultError, match=r"a\.events was cut off while it was in use.* --resume"):
        list(coming)


def test_tables_and_header_always_stop(tmp_path: Path) -> None:
    data = write_store(tmp_path / "a.events", list(range(COUNT)))
    whole = (tmp_path / "a.events").read_bytes()
    for place in (20, len(whole) - 40):
        (tmp_path / "a.events").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="is not a whole event store"):
            load_train(data)


def quiet(recipe: Recipe, out: Path, resume: bool = False) -> Result:
    return fit(recipe, out, resume=resume, device="cpu", console=Console(quiet=True))


def test_a_run_that_stopped_goes_on_by_skipping(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    data = write_store(tmp_path / "a.events", list(range(COUNT)))
    recipe = replace(tiny, data=data, model_args={"input_size": [8, 16]}, batch_size=BATCH, seed=SEED, epochs=1)
    lost = order(0)[2 * BATCH + 2]  # in the third batch; 0 is before it, and would be found at once
    damage(tmp_path / "a.events", lost)
    with pytest.raises(DataFaultError, match=rf"recording {lost} "):
        quiet(replace(recipe, data=replace(data, unreadable="stop")), tmp_path / "run")
    assert require_checkpoint(tmp_path / "run").name == "checkpoint-000002"
    with pytest.warns(UnreadableWarning, match=rf"recording {lost} "):
        resumed = quiet(recipe, tmp_path / "run", resume=True)
    with pytest.warns(UnreadableWarning, match=rf"recording {lost} "):
        whole = quiet(recipe, tmp_path / "whole")
    assert (resumed.test.loss, resumed.test.correct) == (whole.test.loss, whole.test.correct)
    assert resumed.test.samples == 5


def test_the_first_may_be_damaged_and_what_is_tested_on_may_not(tiny: Recipe, tmp_path: Path) -> None:
    data = write_store(tmp_path / "a.events", list(range(COUNT)))
    recipe = replace(tiny, data=data, model_args={"input_size": [8, 16]}, batch_size=BATCH, epochs=1)
    damage(tmp_path / "a.events", 0)
    with pytest.warns(UnreadableWarning, match="recording 0 "):
        quiet(recipe, tmp_path / "run")
    damage(tmp_path / "a.events", COUNT + 2)
    watching = replace(recipe, watch_test=True)
    with pytest.raises(DataFaultError, match=rf"recording {COUNT + 2} "):
        quiet(watching, tmp_path / "other")
    assert find_checkpoint(tmp_path / "other") is None  # said before the first epoch
    damage(tmp_path / "a.events", *range(1, COUNT))
    with pytest.raises(DataFaultError, match=f"None of the {COUNT} recordings to train on .*recording 20 "):
        quiet(recipe, tmp_path / "none")
    assert not (tmp_path / "none").exists()


NARROW: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "depths": [1, 1, 1], "input_size": [32, 32]}


def test_a_training_starts_where_the_first_image_is_cut_off(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", classes=3, train=8, test=3)
    data = Data("image_folder", root=str(root), T=2, image_size=32, workers=0, unreadable="skip")
    first = min(path for path in (root / "train").rglob("*") if path.is_file())
    first.write_bytes(first.read_bytes()[:50])
    recipe = get_recipe("maxformer_10_384_imagenet_paper")
    recipe = replace(recipe, model_args=NARROW, data=data, augment=Augment(), epochs=1, batch_size=8)
    with pytest.warns(UnreadableWarning, match=first.name):
        assert quiet(recipe, tmp_path / "run").test.samples == 9


def cut(*paths: Path) -> None:
    for path in paths:
        os.truncate(path, path.stat().st_size - 3)


def bins(root: Path, part: str) -> list[Path]:
    return sorted((root / part).rglob("*.bin"))


@pytest.fixture
def files(recordings: Path, tmp_path: Path) -> Path:
    """A copy of the recordings of `tiny`."""
    for path in recordings.rglob("*.bin"):
        copy = tmp_path / "nmnist" / path.relative_to(recordings)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "nmnist"


def test_files_are_left_out_before_the_training(files: Path, tiny: Recipe, tmp_path: Path) -> None:
    data = replace(tiny.data, root=str(files))
    whole = load_train(data)[0]
    lost = [bins(files, "Train")[number] for number in (7, 30)]
    cut(*lost)
    with pytest.raises(DataFaultError, match=rf"{lost[0]} is .* cut off.* --data\.unreadable skip leaves out"):
        load_train(data)
    data = replace(data, unreadable="skip")
    with pytest.warns(UnreadableWarning, match=rf"2 of 40 recordings .*{lost[0]} is .*; {lost[1]} is ") as told:
        left = load_train(data)[0]
    assert len(told) == 1
    wanted = whole.select(torch.tensor([number for number in range(40) if number not in (7, 30)]))  # type: ignore[union-attr]
    for name in ("t", "x", "y", "p", "offsets", "labels"):
        assert torch.equal(getattr(left, name), getattr(wanted, name))
    with pytest.warns(UnreadableWarning, match="2 of 40"):
        assert quiet(replace(tiny, data=data, epochs=1), tmp_path / "run").test.samples == 20
    cut(bins(files, "Test")[3])
    with pytest.raises(DataFaultError, match=r"3/00001\.bin is |1/00001\.bin is "):
        load_test(data)
    cut(*(path for path in bins(files, "Train") if path not in lost))
    with pytest.raises(DataFaultError, match="None of 40 recordings to train on can be read"):
        load_train(data)


def break_dvs(root: Path) -> Path:
    path = write_cifar10_dvs(root) / "bird" / "cifar10_bird_2.aedat"
    cut(path)
    return path


def test_frames_that_are_binned_while_they_are_read(tmp_path: Path) -> None:
    data = Data("cifar10_dvs", root=str(tmp_path), T=2, unreadable="skip")
    path = break_dvs(tmp_path)
    with pytest.warns(UnreadableWarning, match=rf"1 of 90 recordings .*{path}"):
        found = load_train(data)[0]
    assert found.labels.tolist() == [label for label in range(10) for _ in range(8 if label == 2 else 9)]  # type: ignore[union-attr]
    assert len(found.frames) == 89  # type: ignore[union-attr]
    with pytest.raises(DataFaultError, match=rf"{path}"):
        load_train(replace(data, unreadable="stop"))


def test_all_gestures_of_a_file_are_left_out(tmp_path: Path) -> None:
    root = write_gestures(tmp_path)
    cut(root / "DvsGesture" / "user01_lab.aedat")
    data = Data("dvs_gesture", root=str(root), T=2, unreadable="skip")
    with pytest.raises(DataFaultError, match="None of 3 recordings to train on can be read"):
        load_train(data)


@pytest.mark.parametrize(
    ("lost", "shown"),
    [([], [0, 1, 2, 3]), ([1], [0, 2, 2, 3]), ([0, 1], [2, 2, 2, 3]), ([3], [0, 1, 2, 2]), ([0, 2, 3], [1, 1, 1, 1])],
    ids=["none", "middle", "first two", "last", "all but one"],
)
def test_stand_ins(lost: list[int], shown: list[int]) -> None:
    assert stand_ins(lost, 4).tolist() == shown
