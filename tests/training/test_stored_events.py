"""Training from an event store: the frames of the files it was packed from, streamed or kept, and errors."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spikeloom.cli import main
from spikeloom.datasets import NMNIST, Events, EventStore, StorePart, pack_store
from spikeloom.training import Augment, Data, Recipe, event_batches, fit
from spikeloom.training.data import Batches, load_test, load_train, outputs_of
from spikeloom.training.faults import DataFaultError
from spikeloom.training.split import Split
from spikeloom.training.stored_events import StoredEvents
from spikeloom.training.threads import ahead

CPU = torch.device("cpu")


@pytest.fixture(params=["kept", "streamed"])
def streamed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that are kept, or too large for that."""
    if request.param == "streamed":
        monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("split", ["time", "number"])
@pytest.mark.parametrize("encoding", ["binary", "count", "sqrt"])
@pytest.mark.parametrize(
    "augment", [Augment(shift_px=2), Augment(drop=0.3, shift_px=1)], ids=["shifted", "events changed"]
)
def test_batches_are_those_of_the_files(
    stores: Path, tiny: Recipe, split: str, encoding: str, augment: Augment
) -> None:
    files = replace(tiny.data, split=split, encoding=encoding, limit=12)
    store = replace(files, name="event_store", root=str(stores))
    pairs = []
    for data in (files, store):
        batches = Batches(load_train(data)[0], data, 5, CPU, augment)
        pairs.append([*batches.shuffled(3, 1, start=1), *batches.in_order()])
    assert len(pairs[0]) == 5
    for (inputs, labels), (others, expected) in zip(*pairs, strict=True):
        assert torch.equal(inputs, others)
        assert torch.equal(labels, expected)


@pytest.mark.parametrize("split", ["time", "number"])
@pytest.mark.parametrize("encoding", ["binary", "count"])
def test_words_read_ahead_give_the_same_frames(stores: Path, tiny: Recipe, split: str, encoding: str) -> None:
    """What a GPU does, but on the CPU: a thread gathers the words, and they are unpacked where they arrive."""
    data = replace(tiny.data, name="event_store", root=str(stores), split=split, encoding=encoding)
    part = load_test(data)
    assert isinstance(part, StorePart)
    events = StoredEvents(part, data, CPU)
    parts = list(torch.arange(len(part)).split(6))
    read = ahead(events._words, parts, 2)
    for indices, words in zip(parts, read, strict=True):
        assert torch.equal(events.frames(words), events.frames(indices))


def test_recordings_without_events_are_frames_of_0(tmp_path: Path) -> None:
    blank = torch.zeros(0, dtype=torch.int64)
    pack_store(tmp_path / "a.events", [(Events.from_arrays(*[blank] * 4, 8, 9), 0)] * 4, 8, 9, parts=[0, 0, 0, 2])
    for split in ("time", "number"):
        data = Data("event_store", root=str(tmp_path / "a.events"), T=2, split=split, encoding="sqrt")  # type: ignore[arg-type]
        part = load_train(data)[0]
        assert isinstance(part, StorePart)
        events, indices = StoredEvents(part, data, CPU), torch.arange(3)
        for given in (indices, events._words(indices)):
            assert torch.equal(events.frames(given), torch.zeros(2, 3, 2, 8, 9, dtype=torch.int32))
        assert not next(Batches(part, data, 3, CPU).in_order())[0].any()


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize(("batch_size", "passes"), [(8, 1), (12, 3), (102, 1)])
def test_two_processes_see_each_recording_once(batch_size: int, passes: int, tmp_path: Path) -> None:
    count = 103
    made = [(Events.from_arrays([5], [i % 16], [i // 16], [0], 8, 16), 0) for i in range(count + 1)]
    pack_store(tmp_path / "a.events", made, 8, 16, parts=[0] * count + [2])
    data = Data("event_store", root=str(tmp_path / "a.events"), T=1)
    trained, evaluated = [], []
    for rank in range(2):
        split = Split(2 * passes, tuple(range(rank * passes, (rank + 1) * passes)))
        batches = Batches(load_train(data)[0], data, batch_size, CPU, Augment(), split)
        parts = [(batch, part) for batch in range(len(batches)) for part in split.own]
        for (batch, part), (frames, _) in zip(parts, batches.shuffled(0, 1), strict=True):
            if split.weight(batches.count(batch), part):  # else one stands in, and does not count
                trained += frames[0, :, 0].flatten(1).argmax(1).tolist()
        for frames, _ in batches.in_order(rank, 2):
            evaluated += frames[0, :, 0].flatten(1).argmax(1).tolist()
    assert sorted(trained) == sorted(evaluated) == list(range(count))


@pytest.mark.usefixtures("streamed")
def test_an_epoch_goes_on_in_its_middle(stores: Path, tiny: Recipe) -> None:
    data = replace(tiny.data, name="event_store", root=str(stores))
    batches = Batches(load_train(data)[0], data, 8, CPU, Augment(shift_px=2, mixup=0.5))
    whole, rest = list(batches.shuffled(0, 2)), list(batches.shuffled(0, 2, start=3))
    assert len(whole) == 5
    for (inputs, targets), (others, expected) in zip(whole[3:], rest, strict=True):
        assert torch.equal(inputs, others)
        assert torch.equal(targets, expected)


def test_one_is_made_ahead_and_errors_arrive() -> None:
    made, wait = [], threading.Event()

    def make(item: int) -> int:
        if item == 3:
            raise KeyError(item)
        made.append(item)
        if item == 2:
            wait.set()
        return item * 10

    def items() -> Iterator[int]:
        yield from range(4)

    coming = ahead(make, items(), 1)
    assert [next(coming), next(coming)] == [0, 10]
    assert wait.wait(5)  # the third is made before it is asked for
    assert made == [0, 1, 2]
    with pytest.raises(KeyError):
        list(coming)
    assert list(ahead(make, [], 1)) == []


def test_a_recipe_trains_from_one_file_and_evaluates(
    stores: Path, tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    path = tmp_path / "own.events"
    digits = NMNIST(tiny.data.root or "", "train")
    blank = torch.zeros(0, dtype=torch.int64)
    nothing = (Events.from_arrays(blank, blank, blank, blank, 34, 34), 0)  # a recording without events
    made = [*(digits[i] for i in range(len(digits))), nothing]
    parts = torch.tensor([0, 0, 1, 2] * 10 + [0])
    pack_store(path, made, 34, 34, classes=[f"digit {i}" for i in range(10)], parts=parts)
    recipe = replace(tiny, data=Data("event_store", root=str(path), T=3, encoding="sqrt", validation=10), epochs=2)
    assert outputs_of(recipe.data) == 10
    train, held = load_train(recipe.data)
    assert (len(train), len(held or [])) == (21, 10)
    result = fit(recipe, tmp_path / "run", device="cpu")
    assert math.isfinite(result.test.mean_loss)
    assert result.test.samples == 10
    assert '"digit 3"' in (result.checkpoint / "config.json").read_text()
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "10 recordings of event_store: packed recordings" in capsys.readouterr().out.replace("\n", " ")


def test_without_a_validation_part_recordings_are_held_out(stores: Path, tiny: Recipe) -> None:
    data = replace(tiny.data, name="event_store", root=str(stores), validation=10)
    train, held = load_train(data)
    assert isinstance(train, StorePart)
    assert isinstance(held, StorePart)
    assert (len(train), held.labels.tolist()) == (30, list(range(10)))


def test_the_command_line(stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["train", "saccade_small", "--data.name", "event_store", "--model", "conv_snn_tiny", "--device", "cpu"]
    call += ["--epochs", "1", "--T", "2", "--out", str(tmp_path / "run"), "--no-energy"]
    assert main([*call, "--root", str(stores)]) == 0
    assert "of event_store: packed recordings" in capsys.readouterr().out.replace("\n", " ")
    assert main([*call[:-3], "--out", str(tmp_path / "other")]) == 1
    assert "train.events and test.events" in capsys.readouterr().err.replace("\n", " ")


def test_times_behind_the_frames_are_refused(tmp_path: Path) -> None:
    zero = torch.zeros(3, dtype=torch.int64)
    made = [(Events.from_arrays(zero + t, zero + x, zero, zero, 8, 8), 0) for x, t in enumerate((0, 500_000, 0))]
    pack_store(tmp_path / "a.events", made, 8, 8, parts=[0, 0, 2])
    data = Data("event_store", root=str(tmp_path / "a.events"))
    with pytest.raises(ValueError, match=r"1 of 2 recordings .* begin behind .* \(recording 1\) at 500,000 us"):
        load_train(data)
    assert len(load_train(replace(data, split="number"))[0]) == 2
    assert len(load_train(replace(data, duration_us=500_000))[0]) == 2


def test_a_warning_tells_of_events_that_are_in_no_frame(tmp_path: Path) -> None:
    t, zero = torch.arange(10) * 100, torch.zeros(10, dtype=torch.int64)
    made = [(Events.from_arrays(t + start, zero + x, zero, zero, 8, 8), 0) for x, start in enumerate((0, 500, 0))]
    pack_store(tmp_path / "a.events", made, 8, 8, parts=[0, 0, 2])
    store = EventStore(tmp_path / "a.events")
    for end in (0, 499, 500, 899, 900, 1_400, 2**40):
        expected = [int((events.t > end).sum()) for events, _ in made]
        assert store.later_than([0, 1, 2], end).tolist() == expected
    data = Data("event_store", root=str(tmp_path / "a.events"), duration_us=900)
    with pytest.warns(UserWarning, match=r"^25% of the events of .*a\.events \(2 recordings looked at\) come behind"):
        load_train(data)
    load_train(replace(data, duration_us=1_300))  # 5 %
    load_train(replace(data, split="number"))


def test_damage_ends_the_training_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zero = torch.zeros(3, dtype=torch.int64)
    made = [(Events.from_arrays(zero, zero + x, zero, zero, 8, 8), 0) for x in range(3)]
    path = tmp_path / "a.events"
    pack_store(path, made, 8, 8, parts=[0, 0, 2])
    data = bytearray(path.read_bytes())
    data[64 + 8 * 3] ^= 2
    path.write_bytes(data)
    settings = Data("event_store", root=str(path), T=2)
    with pytest.raises(DataFaultError, match=r"a.events: recording 1 .* goes on with --resume"):
        Batches(load_train(settings)[0], settings, 2, CPU)


def test_a_sensor_that_the_model_cannot_take_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    zero = torch.zeros(3, dtype=torch.int64)
    made = [(Events.from_arrays(zero, zero + x, zero, zero, 30, 41), 0) for x in range(3)]
    pack_store(tmp_path / "a.events", made, 30, 41, parts=[0, 0, 2])
    data = Data("event_store", root=str(tmp_path / "a.events"), T=2)
    with pytest.raises(ValueError, match=r"30.*41"):
        fit(Recipe(model="spikformer_small", data=data, epochs=1), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("split", ["time", "number"])
def test_a_gpu_bins_the_words_to_the_same_frames(
    stores: Path, tiny: Recipe, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    data = replace(tiny.data, name="event_store", root=str(stores), split=split, encoding="count")
    train = load_train(data)[0]
    found = [
        [*batches.shuffled(0, 0), *batches.in_order()]
        for batches in (Batches(train, data, 7, torch.device(name), Augment(shift_px=1)) for name in ("cpu", "cuda"))
    ]
    for (inputs, labels), (others, expected) in zip(*found, strict=True):
        assert torch.equal(inputs, others.cpu())
        assert torch.equal(labels, expected.cpu())
