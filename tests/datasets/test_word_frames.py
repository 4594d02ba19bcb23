"""Words of a store counted where they are on a GPU: the frames of their events."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spikeloom.datasets import Events, EventStore, frames_by_count, pack_store
from spikeloom.datasets.store_format import split_words
from spikeloom.datasets.word_frames import count_words

H, W = 7, 40
COUNTS = (0, 5, 1, 300, 0, 17, 0)


@pytest.fixture
def store(tmp_path: Path) -> EventStore:
    """Recordings of so many events, some of none, at the same places and times more than once."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for count in COUNTS:
        t = torch.randint(100, 160, (count,), generator=generator).sort().values
        x, y, p = (torch.randint(0, below, (count,), generator=generator) for below in (W, H, 2))
        made.append((Events.from_arrays(t, x, y, p, H, W), 0))
    pack_store(tmp_path / "a.events", made, H, W)
    return EventStore(tmp_path / "a.events")


@pytest.mark.parametrize("T", [1, 4, 16])
@pytest.mark.parametrize("chosen", [range(7), (3, 3, 0), (0, 4), ()], ids=["all", "twice", "no events", "none"])
def test_counts_are_those_of_the_events(store: EventStore, T: int, chosen: tuple[int, ...]) -> None:
    words, offsets, _ = store.words(list(chosen))
    found = count_words(words, offsets, T, H, W)
    assert found.dtype == torch.int32
    assert torch.equal(found, frames_by_count(store.select(list(chosen)), T, remainder="last"))


def test_one_tensor_holds_what_is_sent(store: EventStore) -> None:
    chosen = [5, 1, 0, 5]
    words, offsets, starts = split_words(store.gathered(chosen), len(chosen))
    assert offsets.tolist() == [0, 17, 22, 22, 39]
    events = store.select(chosen)
    assert torch.equal((words >> 31) + starts.repeat_interleave(offsets.diff()), events.t)
    assert torch.equal(words >> 1 & 0x7FFF, events.x.long())
    assert torch.equal(words >> 16 & 0x7FFF, events.y.long())
    assert torch.equal(words & 1, events.p.long())


@pytest.mark.gpu
def test_a_gpu_counts_the_same_from_pinned_memory(store: EventStore) -> None:
    sent = store.gathered(range(7), pin=True)
    assert sent.is_pinned()
    words, offsets, _ = split_words(sent.to("cuda", non_blocking=True), 7)
    wanted = frames_by_count(store.select(range(7)), 4, remainder="last")
    assert torch.equal(count_words(words, offsets, 4, H, W).cpu(), wanted)
