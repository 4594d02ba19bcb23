"""Frames by number, cropped frames, and recordings that are binned when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spikeloom_tests.training.tiny_files import write_cifar10_dvs, write_clips, write_gestures

from spikeloom.datasets import CIFAR10DVS, PackedEvents, frames_by_count
from spikeloom.training import Augment, Data, Recipe
from spikeloom.training.data import Batches, load_test, load_train
from spikeloom.training.event_batches import EventFrames
from spikeloom.training.frame_store import StoredFrames, store_frames

CPU = torch.device("cpu")


def test_frames_by_number_hold_equally_many_events(tiny: Recipe) -> None:
    data = replace(tiny.data, split="number", encoding="count")
    frames, _ = next(Batches(load_test(data), data, 20, CPU).in_order())
    assert frames.sum((2, 3, 4))[:2].unique().tolist() == [26.0]  # 80 events: 26, 26, 28
    assert frames.sum((2, 3, 4))[2].unique().tolist() == [28.0]


@pytest.mark.parametrize("shift_px", [0, 2])
def test_a_crop_is_the_middle_of_the_frames(tiny: Recipe, shift_px: int) -> None:
    whole = replace(tiny.data, encoding="count")
    cropped, augment = replace(whole, crop=31), Augment(shift_px=shift_px)
    packed = load_train(whole)[0]
    all_of_it, middle = (next(Batches(packed, data, 8, CPU, augment).shuffled(0, 0))[0] for data in (whole, cropped))
    assert torch.equal(middle, all_of_it[..., 1:32, 1:32])
    with pytest.raises(ValueError, match=r"Data\.crop is 35, but the frames of nmnist have 34 x 34 pixels"):
        Batches(packed, replace(whole, crop=35), 8, CPU)


def test_cifar10_dvs_is_binned_while_it_is_read(tmp_path: Path) -> None:
    root = write_cifar10_dvs(tmp_path, count=10, events=40)
    data = Data("cifar10_dvs", root=str(root), T=4, split="number", encoding="count")
    train, test = load_train(data)[0], load_test(data)
    assert isinstance(train, StoredFrames)
    assert (len(train), len(test)) == (90, 10)
    events = CIFAR10DVS(root, "train").pack()
    expected = frames_by_count(events, 4, remainder="last")
    torch.testing.assert_close(train.frames.transpose(0, 1).int(), expected)
    assert train.frames.dtype == torch.uint8
    limited = load_train(replace(data, limit=5))[0]
    assert limited.labels is not None
    assert limited.labels.tolist() == [0, 2, 4, 6, 8]  # 0, 18, 36, ... of 90


@pytest.mark.parametrize(
    ("events", "dtype"),
    [(255, torch.uint8), (256, torch.int16), (32_767, torch.int16), (32_768, torch.int32)],
    ids=["255", "256", "32767", "32768"],
)
def test_counts_are_kept_in_the_smallest_dtype(events: int, dtype: torch.dtype) -> None:
    data = Data("cifar10_dvs", T=1, encoding="count", duration_us=10**6)
    most = events

    class Bursts:
        def pack(self, indices: Sequence[int]) -> PackedEvents:
            events = most if indices[0] == 1 else 3
            zero = torch.zeros(events, dtype=torch.int16)
            offsets, labels = torch.tensor([0, events]), torch.tensor(indices)
            return PackedEvents(torch.arange(events), zero, zero, zero.to(torch.uint8), offsets, 2, 2, labels)

    stored = store_frames(Bursts(), [[0], [1], [2]], data)
    assert stored.frames[:, 0, 0, 0, 0].tolist() == [3, most, 3]
    assert stored.frames.dtype == dtype
    assert stored.labels.tolist() == [0, 1, 2]


def test_one_part_with_many_counts_widens_the_kept_frames() -> None:
    counts = [3] * 256 + [300]  # parts of 256 recordings are binned at once
    offsets = torch.tensor([0, *counts]).cumsum(0)
    zero = torch.zeros(sum(counts), dtype=torch.int16)
    t, labels = torch.zeros(sum(counts), dtype=torch.int64), torch.zeros(257, dtype=torch.int64)
    packed = PackedEvents(t, zero, zero, zero.to(torch.uint8), offsets, 2, 2, labels)
    kept = EventFrames(packed, Data("nmnist", T=1, encoding="count"), CPU, Augment())
    assert kept._frames is not None
    assert kept._frames.dtype == torch.int16
    assert kept.plain(torch.tensor([0, 256]))[0, :, 0, 0, 0].tolist() == [3, 300]


def test_a_part_without_recordings_names_the_rule_of_the_split(tmp_path: Path) -> None:
    data = Data("cifar10_dvs", root=str(write_cifar10_dvs(tmp_path, count=9)), T=2)
    assert len(load_train(data)[0]) == 90
    with pytest.raises(ValueError, match=r"cifar10_dvs has no recordings in this part; .*90 %, .* needs 10 recordings"):
        load_test(data)


def test_gestures_without_a_row_are_refused(tmp_path: Path) -> None:
    root = write_gestures(tmp_path)
    (root / "DvsGesture" / "user24_led_labels.csv").write_text("class,startTime_usec,endTime_usec\n")
    with pytest.raises(ValueError, match=r"dvs_gesture has no recordings in this part; .* trials_to_test\.txt"):
        load_test(Data("dvs_gesture", root=str(root)))


def test_gestures_of_recordings_and_of_clips(tmp_path: Path) -> None:
    data = Data("dvs_gesture", T=2, split="number", encoding="count")
    cut = load_train(replace(data, root=str(write_gestures(tmp_path / "a"))))[0]
    assert cut.labels is not None
    assert cut.labels.tolist() == [0, 4, 10]
    assert isinstance(cut, StoredFrames)
    assert cut.frames.sum((2, 3, 4)).tolist() == [[50, 50]] * 3
    clips = load_test(replace(data, root=str(write_clips(tmp_path / "b"))))
    assert clips.labels is not None
    assert clips.labels.tolist() == list(range(11))


def test_stored_frames_are_augmented_and_an_epoch_can_be_entered_in_the_middle(tmp_path: Path) -> None:
    data = Data("dvs_gesture", root=str(write_clips(tmp_path)), T=2, split="number", encoding="count")
    augment = Augment(flip=0.5, frame_op=True, mixup=0.5, mix_prob=0.5, shift_px=3)
    batches = Batches(load_train(data)[0], data, 4, CPU, augment)
    whole, rest = list(batches.shuffled(0, 0)), list(batches.shuffled(0, 0, start=1))
    assert whole[0][0].shape == (2, 4, 2, 128, 128)
    assert whole[0][1].shape == (4, 11)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[1:], rest, strict=True))
    plain = Batches(load_train(data)[0], data, 4, CPU)
    assert not torch.equal(next(plain.shuffled(0, 0))[0], whole[0][0])
