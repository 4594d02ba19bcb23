"""Batches of events are made beside the step before: what is read, which numbers come, and that nothing waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from spikeloom_tests.training.test_resume import assert_same_run
from spikeloom_tests.training.two_processes import quiet, signalled
from torch import Tensor

from spikeloom.training import Augment, Recipe, TrainingInterrupted, aside, event_batches, network
from spikeloom.training.aside import Aside
from spikeloom.training.checkpoint import require_checkpoint
from spikeloom.training.data import Batches, generator_for, load_train
from spikeloom.training.event_batches import EventFrames
from spikeloom.training.faults import DataFaultError
from spikeloom.training.loop import start, train_epoch
from spikeloom.training.split import Split
from spikeloom.training.stored_events import StoredEvents
from spikeloom.training.threads import ahead, beside

CPU = torch.device("cpu")

CHANGES = {
    "shifted": Augment(shift_px=2),
    "as published": Augment(flip=0.5, frame_op=True, mixup=0.5, cutmix=0.1, mix_prob=0.5),
    "events changed": Augment(drop=0.3, shift_px=1),
}


def test_a_cpu_makes_batches_at_once() -> None:
    said: list[str] = []

    def batches() -> Generator[tuple[Tensor, Tensor]]:
        try:
            for _ in range(2):
                said.append(threading.current_thread().name)
                yield torch.ones(2), torch.zeros(2)
        finally:
            said.append("closed")

    coming = Aside(CPU).made(batches())
    next(coming)
    assert said == [threading.current_thread().name]  # nothing ahead
    coming.close()
    assert said[1:] == ["closed"]


class PretendedGpu:
    """Streams and events that only write down what waits for what; a thread's stream is its own, as torch's is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self._own = threading.local()
        gpu = self

        class Stream:
            device = torch.device("cuda")

            def __init__(self, name: str) -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                gpu.said.append(f"{self.name} waits for {other.name}")

            def wait_event(self, event: Event) -> None:
                gpu.said.append(f"{self.name} waits for {event.after}")

        class Event:
            def record(self) -> None:
                self.after = f"{gpu.stream}'s {gpu.made[-1]}"

        def on(stream: Stream) -> None:
            self._own.name = stream.name

        self.made: list[str] = []
        monkeypatch.setattr(aside.torch.cuda, "Stream", lambda device, priority: Stream("aside"))
        monkeypatch.setattr(aside.torch.cuda, "Event", Event)
        monkeypatch.setattr(aside.torch.cuda, "current_stream", lambda device: Stream(self.stream))
        monkeypatch.setattr(aside.torch.cuda, "set_stream", on)
        monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: self.said.append(f"kept for {stream.name}"))

    @property
    def stream(self) -> str:
        """Of this thread."""
        return getattr(self._own, "name", "main")


def test_order_on_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PretendedGpu(monkeypatch)
    beside = Aside(torch.device("cuda"))
    assert gpu.said == ["aside waits for main"]  # for what is read, once; never for a step
    gpu.said.clear()
    where = []

    def batches() -> Generator[tuple[Tensor, Tensor]]:
        for number in range(5):
            gpu.made.append(f"batch {number}")
            where.append((threading.current_thread().name, gpu.stream))
            yield torch.full((2,), float(number)), torch.zeros(2)

    found = [int(inputs[0]) for inputs, _ in beside.made(batches())]
    assert found == list(range(5))
    assert where == [("make_0", "aside")] * 5
    assert gpu.said == [
        line
        for number in range(5)
        for line in (f"main waits for aside's batch {number}", "kept for main", "kept for main")
    ] + ["main waits for aside"]


def test_batches_that_nobody_takes_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the stream alone on which the memory that they are made of may be given to others."""
    gpu = PretendedGpu(monkeypatch)
    coming = Aside(torch.device("cuda")).made(
        (gpu.made.append(f"batch {n}"), (torch.ones(1),) * 2)[1] for n in range(9)
    )
    next(coming)
    gpu.said.clear()
    coming.close()
    assert gpu.said == ["main waits for aside"]


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "streamed"])
def test_the_thread_makes_the_same_batches(
    tiny: Recipe, name: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    train = load_train(tiny.data)[0]
    batches = Batches(train, tiny.data, 7, CPU, CHANGES[name], Split(2, (0, 1)))
    wanted = [*batches.shuffled(3, 1), *batches.in_order()]
    gpu = PretendedGpu(monkeypatch)
    gpu.made.append("batch")
    batches.inputs._aside = Aside(torch.device("cuda"))  # type: ignore[union-attr]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    found = [*batches.shuffled(3, 1), *batches.in_order()]
    resumed = [*batches.shuffled(3, 1, start=2)]
    assert torch.equal(torch.get_rng_state(), before)  # its own generators alone
    assert len(found) == len(wanted) == 2 * 6 + 6
    for pairs in (zip(found, wanted, strict=True), zip(resumed, wanted[4:12], strict=True)):
        for (inputs, targets), (others, expected) in pairs:
            assert torch.equal(inputs, others)
            assert inputs.stride() == others.stride()
            assert torch.equal(targets, expected)


def test_an_error_comes_in_its_place_and_the_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, ended = PretendedGpu(monkeypatch), []
    gpu.made.append("batch")

    def batches() -> Generator[tuple[Tensor, Tensor]]:
        try:
            with closing(ahead(lambda item: item, range(9), 2)) as reads:
                for read in reads:
                    if read == 3:
                        raise DataFaultError("broken")
                    yield torch.full((), read), torch.zeros(2)
        finally:
            ended.append(threading.current_thread().name)

    coming = Aside(torch.device("cuda")).made(batches())
    assert [int(next(coming)[0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataFaultError, match="broken"):
        next(coming)
    assert ended == ["make_0"]
    assert not _threads()


def test_a_training_that_stops_leaves_no_thread(stores: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    data = replace(tiny.data, name="event_store", root=str(stores))
    batches = Batches(load_train(data)[0], data, 4, CPU, Augment(shift_px=1))
    gpu = PretendedGpu(monkeypatch)
    gpu.made.append("batch")
    inputs = batches.inputs
    assert isinstance(inputs, EventFrames)
    assert isinstance(inputs._events, StoredEvents)
    inputs._aside = Aside(torch.device("cuda"))
    monkeypatch.setattr(
        inputs._events, "reads", lambda parts, skips: ahead(lambda part: part, parts, 2)
    )  # as for a GPU
    steps = train_epoch(start(tiny, network.build(tiny, 10), CPU), batches)
    next(steps)
    assert {name.split("_")[0] for name in _threads()} == {"make", "read"}
    steps.close()  # type: ignore[attr-defined]
    assert not _threads()


@pytest.fixture
def threaded(stores: Path, tiny: Recipe, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """A recipe whose words are read and whose batches are made ahead, as on a GPU, of tmp_path/train.events."""
    gpu = PretendedGpu(monkeypatch)
    gpu.made.append("batch")
    monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    monkeypatch.setattr(event_batches, "Aside", lambda device: Aside(torch.device("cuda")))
    monkeypatch.setattr(StoredEvents, "reads", lambda self, parts, skips: ahead(self._words, parts, 2))
    yield replace(tiny, data=replace(tiny.data, name="event_store", root=str(stores)), epochs=2)
    assert "main waits for aside's batch" in gpu.said


@pytest.mark.parametrize(("asked", "step"), [(1, 1), (3, 3), (8, 7)])  # it is asked after an epoch, too
def test_a_run_goes_on_with_the_batches_that_it_has_not_seen(
    threaded: Recipe, tmp_path: Path, asked: int, step: int
) -> None:
    """A checkpoint tells how far the steps are, not the thread."""
    whole = quiet(threaded, tmp_path / "whole")
    with pytest.raises(TrainingInterrupted), signalled(0, asked):
        quiet(threaded, tmp_path / "cut")
    assert require_checkpoint(tmp_path / "cut").name == f"checkpoint-{step:06d}"
    assert not _threads()
    resumed = quiet(threaded, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert resumed.test.loss == whole.test.loss


def test_a_run_ends_before_a_damaged_recording_and_goes_on_when_it_is_whole(threaded: Recipe, tmp_path: Path) -> None:
    quiet(threaded, tmp_path / "whole")
    path = tmp_path / "train.events"
    order = torch.randperm(40, generator=generator_for(threaded.seed, 0, epoch=0))
    place = 3 * threaded.batch_size + 1  # in the fourth batch
    written = path.read_bytes()
    damaged = bytearray(written)
    damaged[64 + 8 * 80 * int(order[place])] ^= 2  # each recording has 80 events
    path.write_bytes(damaged)
    with pytest.raises(DataFaultError, match=rf"recording {int(order[place])} .* goes on with --resume"):
        quiet(threaded, tmp_path / "cut")
    assert require_checkpoint(tmp_path / "cut").name == "checkpoint-000003"
    assert not _threads()
    path.write_bytes(written)
    quiet(threaded, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_no_more_than_was_asked_for_is_made() -> None:
    made: list[int] = []
    free = threading.Semaphore(0)

    def make() -> int:
        made.append(len(made))
        free.release()
        return made[-1]

    coming = beside(make, 2)
    assert not _threads()
    for wanted in range(3):
        assert next(coming) == wanted
        for _ in range(3 if wanted == 0 else 1):
            assert free.acquire(timeout=5)
        time.sleep(0.01)
        assert len(made) == wanted + 3  # this one, and two ahead
    coming.close()
    assert not _threads()


@pytest.fixture
def ctrl_c() -> Iterator[Callable[[], None]]:
    """Presses it while the caller waits, with Python's own handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def press() -> None:
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

    yield press
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_wait_for_a_batch(ctrl_c: Callable[[], None]) -> None:
    pressed: list[bool] = []

    def make() -> int:
        if not pressed:
            pressed.append(True)
            ctrl_c()
        return 1

    with pytest.raises(KeyboardInterrupt):
        next(beside(make, 1))
    assert not _threads()


def test_ctrl_c_again_ends_the_wait_for_the_thread(ctrl_c: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose generator is running then, and cannot be closed."""
    gpu, go = PretendedGpu(monkeypatch), threading.Event()
    gpu.made.append("batch")

    def batches() -> Generator[tuple[Tensor, Tensor]]:
        ctrl_c()
        ctrl_c()
        go.wait(5)
        yield torch.ones(2), torch.zeros(2)

    with pytest.raises(KeyboardInterrupt):
        next(Aside(torch.device("cuda")).made(batches()))
    assert _threads() == ["make_0"]
    go.set()
    end = time.monotonic() + 5
    while _threads() and time.monotonic() < end:  # `join` takes a thread for ended whose `join` was interrupted
        time.sleep(0.01)
    assert not _threads()  # it ends when it has made its batch


def test_a_thread_that_nobody_ends_lets_the_process_end() -> None:
    """An iterator that is still referred to when Python exits, as by the traceback of an error."""
    code = "from spikeloom.training.threads import beside\ncoming = beside(lambda: 1, 2)\nnext(coming)\nprint('end')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "end\n"


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("read", "make"))]


def test_several_are_read_at_once_and_come_in_their_order() -> None:
    together, made = threading.Barrier(3), []

    def make(item: int) -> int:
        if item < 3:
            together.wait(5)  # three at a time, or the barrier breaks
        made.append(item)
        return item * 10

    coming = ahead(make, range(8), 3)
    assert [next(coming), next(coming)] == [0, 10]
    coming.close()
    assert set(made) <= set(range(5))  # two, and three ahead of them; none is begun later
    assert not any(thread.name.startswith("read") for thread in threading.enumerate())
    assert list(ahead(make, range(3, 8), 3)) == [30, 40, 50, 60, 70]


@pytest.mark.gpu
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "streamed"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_busy_gpu_is_not_waited_for_and_gives_the_same_frames(
    stores: Path, tiny: Recipe, name: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kept:
        monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    data = replace(tiny.data, name="event_store", root=str(stores), split="number", encoding="count")
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


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_thread_of_a_second_gpu_leaves_the_first_alone() -> None:
    """A context there would take some hundred MiB of it, for each process of a training."""
    code = """
import torch
from spikeloom.training.aside import Aside
torch.cuda.set_device(1)
given = torch.ones(3, device="cuda")
batches = ((given + n, torch.ones(3).pin_memory().to("cuda", non_blocking=True)) for n in range(4))
made = [[*map(torch.Tensor.tolist, batch)] for batch in Aside(torch.device("cuda:1")).made(batches)]
print(made == [[[1.0 + n] * 3, [1.0] * 3] for n in range(4)], torch._C._cuda_hasPrimaryContext(0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "True False\n"
