"""Recordings of different lengths in one array: batches, selections and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spikeloom.datasets import Sequences

LENGTHS = (3, 1, 5, 2)


def make(dtype: torch.dtype = torch.uint8) -> Sequences:
    generator = torch.Generator().manual_seed(0)
    recordings = [torch.randint(1, 9, (length, 4), generator=generator).to(dtype) for length in LENGTHS]
    return Sequences.from_list(recordings, labels=[0, 1, 1, 0], groups=[7, 7, 8, 9], names=("no", "yes"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float16, torch.float32], ids=str)
def test_a_batch_is_its_recordings_and_zeros(dtype: torch.dtype) -> None:
    data = make(dtype)
    assert (len(data), data.channels, data.lengths.tolist()) == (4, 4, [3, 1, 5, 2])
    x, lengths = data.batch([2, 0, 2, 1])
    assert x.dtype == torch.float32
    assert x.shape == (5, 4, 4)
    assert lengths.tolist() == [5, 3, 5, 1]
    for place, index in enumerate([2, 0, 2, 1]):
        assert torch.equal(x[: lengths[place], place], data[index].float())
        assert not x[lengths[place] :, place].any()


def test_steps_cut_or_pad() -> None:
    data = make()
    cut, lengths = data.batch(torch.tensor([2, 1]), steps=2)
    assert cut.shape == (2, 2, 4)
    assert lengths.tolist() == [2, 1]
    assert torch.equal(cut[:, 0], data[2][:2].float())
    padded, lengths = data.batch([0, 3], steps=9)  # the last recording has nothing behind it in the store
    assert padded.shape == (9, 2, 4)
    assert lengths.tolist() == [3, 2]
    assert torch.equal(padded[:2, 1], data[3].float())
    assert not padded[3:].any()


def test_padding_is_zero_whatever_lies_behind() -> None:
    data = Sequences.from_list([torch.ones(1, 2), torch.full((3, 2), torch.nan)])
    x, _ = data.batch([0], steps=4)
    assert torch.equal(x[1:], torch.zeros(3, 1, 2))


def test_a_selection_is_a_store_of_its_own() -> None:
    data = make()
    part = data.select([3, 2, 3])
    assert part.offsets.tolist() == [0, 2, 7, 9]
    assert part.names == ("no", "yes")
    assert part.labels is not None
    assert part.labels.tolist() == [0, 1, 0]
    assert part.groups is not None
    assert part.groups.tolist() == [9, 8, 9]
    assert all(torch.equal(part[i], data[j]) for i, j in enumerate([3, 2, 3]))
    assert torch.equal(part[-1], data[3])
    assert torch.equal(data.to("cpu").values, data.values)
    assert Sequences(data.values, data.offsets).select([1]).labels is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"values": torch.zeros(11, 4, dtype=torch.float64)}, r"float64 \[11, 4\]; expected \[S, N\]"),
        ({"values": torch.zeros(11)}, r"\[11\]; expected \[S, N\]"),
        ({"values": torch.zeros(11, 0)}, "N of 1 or more"),
        ({"offsets": torch.tensor([0, 11], dtype=torch.int32)}, "expected int64"),
        ({"offsets": torch.tensor([0])}, "one recording or more"),
        ({"offsets": torch.tensor([0, 3, 4, 9, 10])}, "rise from 0 to the 11 steps"),
        ({"offsets": torch.tensor([0, 3, 3, 9, 11])}, "a step or more per recording"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels is torch.int64 \[3\]; expected int64 \[4\]"),
        ({"groups": torch.zeros(4)}, r"groups is torch.float32 \[4\]"),
        ({"labels": torch.tensor([0, 2, 1, 0])}, "from 0 to 2; expected numbers from 0 to 1"),
        ({"labels": torch.tensor([0, -1, 1, 0])}, "from -1 to 1"),
        ({"labels": torch.tensor([0, -1, 1, 0]), "names": ()}, "from 0 upwards"),
    ],
)
def test_stores_that_are_none_are_refused(change: dict[str, Any], says: str) -> None:
    data = make()
    fields = {name: getattr(data, name) for name in ("values", "offsets", "labels", "groups", "names")}
    with pytest.raises(ValueError, match=says):
        Sequences(**{**fields, **change})


@pytest.mark.parametrize(
    ("indices", "error", "says"),
    [
        ([], ValueError, "one recording or more"),
        ([[0]], ValueError, r"expected whole numbers \[K\]"),
        (torch.tensor([True, False, True, False]), ValueError, r"mask.nonzero"),
        ([0.0], ValueError, "float32"),
        ([0, 4], IndexError, "0 to 4 were asked for; expected numbers from 0 to 3"),
        ([-1], IndexError, "-1 to -1"),
    ],
    ids=["none", "matrix", "mask", "floats", "above", "below"],
)
def test_recordings_that_are_not_there_are_refused(indices: Any, error: type[Exception], says: str) -> None:
    data = make()
    with pytest.raises(error, match=says):
        data.batch(indices)
    with pytest.raises(error, match=says):
        data.select(indices)


def test_other_mistakes_say_what_they_are() -> None:
    data = make()
    with pytest.raises(ValueError, match="steps is 0; expected 1 or more"):
        data.batch([0], steps=0)
    with pytest.raises(IndexError, match="Recording 4 of 4"):
        data[4]
    with pytest.raises(ValueError, match="one N and one type"):
        Sequences.from_list([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match=r"labels is torch.float32 \[1\]; expected int64"):
        Sequences.from_list([torch.zeros(2, 3)], torch.tensor([0.7]))
    with pytest.raises(ValueError, match="0 recordings"):
        Sequences.from_list([])
