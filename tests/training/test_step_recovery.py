"""What is left of a step that was not taken, of a capture that failed, and of a training before it is restored."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from spikeloom_tests.training.pretended_graphs import (
    CPU,
    OPTIM,
    PretendedRecorder,
    ahead,
    batches,
    net,
    tensors,
    train,
)
from torch import Tensor

from spikeloom.training import Recipe, snapshot
from spikeloom.training.finite import DivergedError
from spikeloom.training.graph import CaptureError, CudaRecorder
from spikeloom.training.loop import start, train_epoch


@pytest.mark.parametrize("bad", [1, 4], ids=["warm-up", "replayed"])
@pytest.mark.parametrize("waits", [False, True], ids=["ahead", "waits"])
def test_a_training_goes_on_after_a_bad_step(bad: int, waits: bool) -> None:
    recipe, sizes = Recipe(optim=OPTIM, ema=0.8), (8,) * 7
    undisturbed, training = (
        start(recipe, net(), CPU) if waits else ahead(recipe, net(), PretendedRecorder()) for _ in range(2)
    )
    with pytest.raises(DivergedError, match=f"at step {bad} "):
        train(training, batches(sizes, spoiled=bad))
    assert (training.step, training.batch) == (bad, bad)
    assert train(training, batches(sizes)) == train(undisturbed, batches(sizes))
    found = tensors(training)
    for name, value in tensors(undisturbed).items():
        assert torch.equal(found[name], value), name


def test_a_training_that_has_taken_steps_is_not_restored() -> None:
    one, data = ahead(Recipe(), net(), None), batches((8, 8))
    train(one, data)
    state, weights = snapshot.take(one, 16), snapshot.weights_of(one)
    used, midway = start(Recipe(), net(), CPU), ahead(Recipe(), net(), PretendedRecorder())
    train(used, data)
    next(train_epoch(midway, data))  # type: ignore[arg-type]
    for training, step in ((used, 2), (midway, 1)):
        with pytest.raises(ValueError, match=rf"a training after step {step}; expected one before its first step"):
            snapshot.restore(training, weights, state, 16, Path())
    fresh = start(Recipe(), net(), CPU)
    snapshot.restore(fresh, weights, state, 16, Path())
    assert (fresh.step, fresh.epoch) == (2, 1)


def test_a_failed_capture_frees_what_the_call_held(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = {
        "default_generators": [SimpleNamespace(clone_state=lambda: None, graphsafe_set_state=lambda state: None)],
        "current_stream": lambda device: None,
        "set_stream": lambda stream: None,
        "device": lambda device: nullcontext(),
        "graph": lambda graph, **options: nullcontext(),
        "CUDAGraph": SimpleNamespace,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    recorder = CudaRecorder.__new__(CudaRecorder)
    recorder._device, recorder._stream, recorder._pool = torch.device("cuda", 0), None, None  # type: ignore[assignment]
    held: list[weakref.ref[Tensor]] = []

    def call() -> None:
        activation = torch.zeros(3)
        held.append(weakref.ref(activation))
        raise RuntimeError("operation not permitted.\nmore")

    gc.disable()  # nothing may wait for the collector
    try:
        with pytest.raises(CaptureError, match=r"^operation not permitted$") as caught:
            recorder.record(call)
        del caught
        assert held[0]() is None
    finally:
        gc.enable()
