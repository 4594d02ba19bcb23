"""Batches of events are made beside the step before: what is read, which numbers come, and that nothing waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spikeloom.datasets import NMNIST, pack_store
from spikeloom.training import Augment, Recipe, aside, event_batches
from spikeloom.training.aside import Aside
from spikeloom.training.data import Batches, load_train
from spikeloom.training.stored_events import ahead

CHANGES = {
    "shifted": Augment(shift_px=2),
    "as published": Augment(flip=0.5, frame_op=True, mixup=0.5, cutmix=0.1, mix_prob=0.5),
    "events changed": Augment(drop=0.3, shift_px=1),
}


def test_a_cpu_makes_batches_at_once() -> None:
    made = torch.ones(2)
    assert Aside(torch.device("cpu")).made(lambda: made) is made


def test_order_on_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for what, on streams that only write down."""
    said: list[str] = []

    class Stream:
        device = torch.device("cuda")

        def __init__(self, name: str = "main") -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            said.append(f"{self.name} waits for {other.name}")

    class Made:
        def record_stream(self, stream: Stream) -> None:
            said.append(f"kept for {stream.name}")

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        said.append(f"on {stream.name}")
        yield
        said.append("on main")

    monkeypatch.setattr(aside.torch.cuda, "Stream", lambda device, priority: Stream("aside"))
    monkeypatch.setattr(aside.torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(aside.torch.cuda, "stream", on)
    beside = Aside(torch.device("cuda"))
    assert said == ["aside waits for main"]  # for what is read, once; never for a step
    said.clear()
    made = Made()
    assert beside.made(lambda: said.append("made") or made) is made  # type: ignore[arg-type, return-value, func-returns-value, comparison-overlap]
    assert said == ["on aside", "made", "on main", "main waits for aside", "kept for main"]


def test_several_are_read_at_once_and_come_in_their_order() -> None:
    together, made = threading.Barrier(3), []

    def make(item: int) -> int:
        if item < 3:
            together.wait(5)  # three at a time, or the barrier breaks
        made.append(item)
        return item * 10

    coming = ahead(make, range(8), 3)
    assert [next(coming), next(coming)] == [0, 10]
    coming.close()  # type: ignore[attr-defined]
    assert set(made) <= set(range(5))  # two, and three ahead of them; none is begun later
    assert not any(thread.name.startswith("read") for thread in threading.enumerate())
    assert list(ahead(make, range(3, 8), 3)) == [30, 40, 50, 60, 70]


@pytest.mark.gpu
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "streamed"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_busy_gpu_is_not_waited_for_and_gives_the_same_frames(
    recordings: Path, tiny: Recipe, tmp_path: Path, name: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    for part in ("train", "test"):
        pack_store(tmp_path / f"{part}.events", NMNIST(recordings, part), 34, 34)  # type: ignore[arg-type]
    data = replace(tiny.data, name="event_store", root=str(tmp_path), split="number", encoding="count")
    train = load_train(data)[0]
    device = torch.device("cuda")
    batches = Batches(train, data, 7, device, CHANGES[name])
    for seed in (0, 3):  # the first epoch loads kernels and takes memory, for which a GPU may be waited for
        torch.cuda.synchronize()
        torch.cuda._sleep(2_000_000_000)  # the step before, about a second
        done = torch.cuda.Event()
        done.record()
        found = [*batches.shuffled(seed, 0)]
    assert not done.query()
    wanted = [*Batches(train, data, 7, torch.device("cpu"), CHANGES[name]).shuffled(3, 0)]
    for (frames, targets), (others, expected) in zip(found, wanted, strict=True):
        torch.testing.assert_close(frames.cpu(), others, rtol=1e-6, atol=1e-6)  # mixing rounds
        torch.testing.assert_close(targets.cpu(), expected)
