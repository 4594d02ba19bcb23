"""Parts of a data set, and their batches."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spikeloom.datasets import PackedEvents, frames_by_time
from spikeloom.training import Augment, Data, Recipe, event_batches, sources
from spikeloom.training.data import Batches, held_out, labels_of, load_test, load_train

CPU = torch.device("cpu")


@pytest.fixture
def packed(tiny: Recipe) -> PackedEvents:
    return load_train(tiny.data)[0]


def test_parts_have_all_recordings(tiny: Recipe) -> None:
    train, validation = load_train(tiny.data)
    assert validation is None
    assert labels_of(train).bincount().tolist() == [4] * 10
    assert labels_of(load_test(tiny.data)).bincount().tolist() == [2] * 10


def test_validation_takes_equally_many_of_each_class_out_of_the_training_part(tiny: Recipe) -> None:
    train, validation = load_train(replace(tiny.data, validation=20))
    assert validation is not None
    assert labels_of(train).bincount().tolist() == [2] * 10
    assert labels_of(validation).bincount().tolist() == [2] * 10
    whole = load_train(tiny.data)[0]
    assert len(train.t) + len(validation.t) == len(whole.t)
    with pytest.raises(ValueError, match="there are only 40 training recordings"):
        load_train(replace(tiny.data, validation=40))


def test_held_out_is_always_the_same_and_as_even_as_can_be() -> None:
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 3)
    mask = held_out(labels, 11)
    assert mask.sum() == 11
    assert labels[mask].bincount().tolist() == [4, 4, 3]
    assert torch.equal(held_out(labels, 11), mask)


def test_limit_spreads_over_the_classes(tiny: Recipe) -> None:
    assert labels_of(load_train(replace(tiny.data, limit=10))[0]).tolist() == list(range(10))
    assert len(load_train(replace(tiny.data, limit=99))[0]) == 40


def test_frames_are_those_of_the_events(packed: PackedEvents, tiny: Recipe) -> None:
    counts = frames_by_time(packed, 3, end_us=300_000)
    for encoding, expected in (("count", counts), ("binary", counts > 0), ("sqrt", counts.double().sqrt())):
        settings = replace(tiny.data, encoding=encoding)  # type: ignore[arg-type]
        frames, labels = stack(Batches(packed, settings, 16, CPU))
        torch.testing.assert_close(frames, expected.float())
        assert torch.equal(labels, labels_of(packed))


def stack(batches: Batches) -> tuple[Tensor, Tensor]:
    frames, labels = zip(*batches.in_order(), strict=True)
    assert len(frames) == len(batches)
    assert all(f.flatten(0, 1).is_contiguous(memory_format=torch.channels_last) for f in frames)
    return torch.cat(frames, dim=1), torch.cat(labels)


@pytest.mark.parametrize(("wrong", "found"), [(10, "0 to 10"), (-1, "-1 to 9")], ids=["above", "below"])
def test_a_label_that_is_no_class_is_refused(packed: PackedEvents, tiny: Recipe, wrong: int, found: str) -> None:
    labels = labels_of(packed).clone()
    labels[7] = wrong
    with pytest.raises(
        ValueError, match=rf"nmnist has labels from {found}; expected 0 to 9\. Check the data set's files"
    ):
        Batches(packed.with_labels(labels), tiny.data, 8, CPU)


@pytest.mark.parametrize("augment", [Augment(), Augment(shift_px=2)])
def test_kept_frames_are_the_same_as_binned_ones(
    packed: PackedEvents, tiny: Recipe, augment: Augment, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(tiny.data, encoding="count")
    kept = Batches(packed, settings, 16, CPU, augment)
    monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    binned = Batches(packed, settings, 16, CPU, augment)
    for (x, y), (x2, y2) in zip(kept.shuffled(5, 2), binned.shuffled(5, 2), strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    assert torch.equal(stack(kept)[0], stack(binned)[0])


@pytest.mark.parametrize("augment", [Augment(shift_px=2), Augment(2, 10.0, 0.3, 1000.0)])
def test_an_epoch_can_be_entered_in_the_middle(packed: PackedEvents, tiny: Recipe, augment: Augment) -> None:
    batches = Batches(packed, tiny.data, 16, CPU, augment)
    whole = list(batches.shuffled(seed=1, epoch=3))
    rest = list(batches.shuffled(seed=1, epoch=3, start=1))
    assert [len(labels) for _, labels in whole] == [16, 16, 8]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[1:], rest, strict=True))
    assert sorted(torch.cat([labels for _, labels in whole]).tolist()) == sorted(labels_of(packed).tolist())


def test_epochs_seeds_and_batches_differ(packed: PackedEvents, tiny: Recipe) -> None:
    batches = Batches(packed, tiny.data, 40, CPU, Augment(shift_px=2))
    orders = [next(batches.shuffled(seed, epoch))[1].tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3


def test_augmentation_changes_frames_and_evaluation_does_not(packed: PackedEvents, tiny: Recipe) -> None:
    batches = Batches(packed, replace(tiny.data, encoding="count"), 40, CPU, Augment(drop=0.9))
    assert next(batches.shuffled(0, 0))[0].sum() < 0.9 * next(batches.in_order())[0].sum()
    assert next(batches.in_order())[0].sum() == len(packed.t)


def test_missing_recordings_say_what_to_get() -> None:
    with pytest.raises(ValueError, match=r"Pass --root FOLDER, .*garrickorchard.com/datasets/n-mnist"):
        load_train(Data("nmnist"))


def test_a_wrong_root_says_what_to_get(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*Train.*n-mnist"):
        load_train(Data("nmnist", root=str(tmp_path)))


def test_an_unknown_data_set_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no data set 'nmnst' \(nearest: nmnist, "):
        load_train(Data("nmnst"))


def test_saccades_leave_out_the_first_images_of_each_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the renderer: recording i has one event, at time i."""
    labels = torch.arange(10).repeat_interleave(400)

    def stand_in(part: str, config: object) -> PackedEvents:
        zero = torch.zeros(4000, dtype=torch.int16)
        return PackedEvents(torch.arange(4000), zero, zero, zero.to(torch.uint8), torch.arange(4001), 34, 34, labels)

    monkeypatch.setattr(sources, "saccade_mnist", stand_in)
    packed, _ = load_train(Data(skip_per_class=120))
    assert labels_of(packed).bincount().tolist() == [280] * 10
    assert (packed.t % 400).min() == 120
    assert len(load_train(Data())[0]) == 4000
