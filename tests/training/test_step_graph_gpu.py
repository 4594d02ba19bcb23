"""Steps replayed from CUDA graphs against the same steps sent one operation at a time."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from spikeloom_tests.kernels.waits import no_waiting
from spikeloom_tests.training.pretended_graphs import ListedBatches, tensors, train
from torch import Tensor, nn

from spikeloom.training import Augment, Optim, Recipe, event_batches, fit, network, snapshot
from spikeloom.training.data import Batches, load_train
from spikeloom.training.device_step import samples_in
from spikeloom.training.engine import Piece
from spikeloom.training.finite import DivergedError
from spikeloom.training.log import RunLog
from spikeloom.training.loop import Training, settle, start, train_epoch

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")
RECIPE = Recipe(optim=Optim(lr=1e-2, warmup_epochs=0.5, clip_norm=0.5), ema=0.8, epochs=4, bf16=False)
SIZES = (8, 8, 8, 8, 8, 3)  # the last batch of an epoch is smaller, and is captured in the fourth epoch


class Net(nn.Module):
    """Frames `[T, B, 6]` -> logits `[T, B, 4]`; smooth, so that rounding stays rounding."""

    def __init__(self, dropout: float = 0.0, reads: bool = False, width: int = 24) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 8, 1, bias=False), nn.BatchNorm1d(24)
        self.wide, self.last = nn.Linear(24, width), nn.Linear(width, 4)
        self.dropout, self.reads = nn.Dropout(dropout), reads

    def forward(self, frames: Tensor) -> Tensor:
        T, B = frames.shape[:2]
        x = self.dropout(torch.tanh(self.norm(self.first(frames.reshape(T * B, 2, 1, 3)).flatten(1))))
        if self.reads:  # the host waits for the device, which no graph can do
            x = x * (1.0 if x.sum().item() > -1e30 else 0.0)
        logits: Tensor = self.last(torch.tanh(self.wide(x))).unflatten(0, (T, B))
        return logits


def training_of(setting: str, say: Any = None, **options: Any) -> Training:
    torch.manual_seed(0)
    torch.cuda.manual_seed(7)
    return start(replace(RECIPE, cuda_graph=setting), Net(**options), GPU, say or _silent)  # type: ignore[arg-type]


def _silent(step: int, text: str) -> None:
    raise AssertionError(text)


def batches(sizes: tuple[int, ...] = SIZES, spoiled: int | None = None) -> ListedBatches:
    generator = torch.Generator().manual_seed(1)
    made = []
    for number, B in enumerate(sizes):
        frames = torch.randn(3, B, 6, generator=generator)
        made.append(((frames / 0.0 if number == spoiled else frames).to(GPU), (torch.arange(B) % 4).to(GPU)))
    return ListedBatches(made)


def assert_alike(one: Training, other: Training) -> None:
    """The same numbers but for rounding (10 to 24 steps of float32), and the same random numbers drawn."""
    expected, found = tensors(one), tensors(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)


def recorded(training: Training) -> int:
    assert training.updates is not None
    assert training.updates.graphs is not None
    return training.updates.graphs.recorded


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_on_equals_off(dropout: float) -> None:
    data = batches()
    off = training_of("off", dropout=dropout)
    expected = train(off, data, 4)
    drawn = torch.cuda.get_rng_state(GPU)
    on = training_of("on", dropout=dropout)
    assert train(on, data, 4) == pytest.approx(expected, rel=1e-4)
    assert torch.equal(torch.cuda.get_rng_state(GPU), drawn)
    assert_alike(off, on)
    assert recorded(on) == 2
    assert on.step == off.step == 24
    assert on.ema is not None
    assert on.ema.updates == 24


@pytest.mark.parametrize("step", [2, 9, 22], ids=["warm-up", "replayed", "both-sizes"])
def test_resumed_equals_uninterrupted(step: int, tmp_path: Path) -> None:
    data, whole = batches(), training_of("on", dropout=0.3)
    train(whole, data, 4)
    cut = training_of("on", dropout=0.3)
    train(cut, data, step // 6)
    stepping = train_epoch(cut, data)  # type: ignore[arg-type]
    for _ in range(step % 6):
        next(stepping)
    state = snapshot.take(cut, 43)
    weights = {name: value.clone() for name, value in snapshot.weights_of(cut).items()}
    torch.save(state, tmp_path / "state.pt")
    del cut, stepping
    resumed = training_of("on", dropout=0.3)
    loaded = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    snapshot.restore(resumed, weights, loaded, 43, tmp_path)
    assert (resumed.step, resumed.epoch, resumed.batch) == (step, step // 6, step % 6)
    train(resumed, data, 4 - resumed.epoch)
    assert resumed.step == 24
    assert_alike(whole, resumed)


@pytest.mark.parametrize("setting", ["on", "off"])
@pytest.mark.parametrize("bad", [1, 5])
def test_a_bad_step_and_those_after_it_change_nothing(bad: int, setting: str) -> None:
    training = training_of(setting)
    stepping = train_epoch(training, batches((8,) * 9, spoiled=bad))  # type: ignore[arg-type]
    for _ in range(bad):
        next(stepping)
    before = tensors(training)
    with pytest.raises(DivergedError, match=rf"The loss is nan at step {bad} "):
        deque(stepping, maxlen=0)
    torch.cuda.synchronize()
    after = tensors(training)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert (training.step, training.batch) == (bad, bad)


@pytest.mark.parametrize("setting", ["on", "off"])
def test_no_step_waits_for_the_device(setting: str) -> None:
    training, data = training_of(setting, dropout=0.3), batches((8,) * 5)
    train(training, data, 1)
    assert training.updates is not None
    with no_waiting():
        for number, (frames, targets) in enumerate(data.batches):
            training.updates.send([Piece(frames, targets, torch.Generator())], samples_in(targets), 5 + number, 1e-3)
            training.step += 1
            training.batch += 1
    settle(training)
    assert training.tally.samples == 40


def test_what_cannot_be_captured_goes_on_without_graphs() -> None:
    data, told = batches(), list[tuple[int, str]]()
    off = training_of("off", dropout=0.3, reads=True)
    expected = train(off, data, 2)
    auto = training_of("auto", lambda *said: told.append(said), dropout=0.3, reads=True)
    assert train(auto, data, 2) == pytest.approx(expected, rel=1e-4)
    assert_alike(off, auto)
    assert [step for step, _ in told] == [3]
    assert "not captured in CUDA graphs" in told[0][1]
    with pytest.raises(ValueError, match="a step cannot be captured: "):
        train(training_of("on", reads=True), data, 1)
    assert recorded_after_failure() == 2  # a later training captures again


def recorded_after_failure() -> int:
    training = training_of("on")
    train(training, batches(), 4)
    return recorded(training)


def test_memory_is_free_again() -> None:
    train(training_of("on"), batches(), 4)  # libraries and their workspaces
    gc.collect()
    torch.cuda.empty_cache()
    before, others = torch.cuda.memory_allocated(), pools()
    training = training_of("on", width=500_000)  # 14 million weights, four tensors of them and their average
    train(training, batches(), 4)
    assert recorded(training) == 2
    assert len(pools() - others) == 1
    assert training.updates is not None
    held, weights = torch.cuda.memory_allocated(), sum(p.nbytes for p in training.model.parameters())
    assert held - before > 5 * weights
    training.updates.release()
    gc.collect()
    torch.cuda.empty_cache()
    assert not pools() - others  # all of the graphs' memory
    assert held - torch.cuda.memory_allocated() > 0.9 * weights  # the gradients of the last replay
    del training
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 120e6  # workspaces of another stream


def pools() -> set[tuple[int, int]]:
    """The pools of memory that graphs have of their own."""
    return {segment["segment_pool_id"] for segment in torch.cuda.memory_snapshot()} - {(0, 0)}


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_spiking_model_with_dropout_is_captured(bf16: bool, tiny: Recipe, tmp_path: Path) -> None:
    recipe = replace(tiny, epochs=30, bf16=bf16, ema=0.9, cuda_graph="on")
    result = fit(recipe, tmp_path / "run", device="cuda", console=Console(quiet=True))
    assert result.test.accuracy >= 0.5
    assert not [line for line in RunLog(tmp_path / "run" / "log.jsonl").lines() if line["event"] == "notice"]


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "streamed"])
def test_batches_are_made_while_a_step_is_captured(
    stores: Path, tiny: Recipe, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, before, during and after the capture: what a step is given are still the CPU's frames."""
    if not kept:
        monkeypatch.setattr(event_batches, "MAX_CACHE_BYTES", 0)
    data = replace(tiny.data, name="event_store", root=str(stores), split="number", encoding="count")
    recipe = replace(tiny, data=data, augment=Augment(shift_px=2, flip=0.5), batch_size=2, cuda_graph="on")
    part = load_train(data)[0]
    fed, given = Batches(part, data, 2, GPU, recipe.augment), []
    shuffled = fed.shuffled

    def copied(seed: int, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for frames, targets in shuffled(seed, epoch, start):
            given.append((frames.clone(), targets.clone()))
            yield frames, targets

    monkeypatch.setattr(fed, "shuffled", copied)
    training = start(recipe, network.build(recipe, 10), GPU, _silent)
    for _ in range(2):
        deque(train_epoch(training, fed), maxlen=0)
    assert training.updates is not None
    assert training.updates.graphs is not None
    assert (training.updates.graphs.recorded, training.updates.graphs.gave_up) == (1, False)
    plain = Batches(part, data, 2, torch.device("cpu"), recipe.augment)
    wanted = [batch for epoch in range(2) for batch in plain.shuffled(recipe.seed, epoch)]
    for (frames, targets), (others, expected) in zip(given, wanted, strict=True):
        assert torch.equal(frames.cpu(), others)
        assert torch.equal(targets.cpu(), expected)
