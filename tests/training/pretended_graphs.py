"""Steps sent ahead, and graphs, on a CPU: a recorder that stands for CUDA's, and a training that uses it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spikeloom.training import Recipe, loop
from spikeloom.training.device_step import DeviceStep, Say, Updates
from spikeloom.training.graph import Call, CaptureError
from spikeloom.training.loop import Training, judge_of
from spikeloom.training.optim import make_optimizer

CPU = torch.device("cpu")


class PretendedRecorder:
    """Replays a call by calling it again; counts what it is asked for."""

    def __init__(self, fails: str | None = None) -> None:
        self.fails = fails
        self.aside_calls = self.records = self.replays = 0

    def aside(self, call: Call) -> None:
        self.aside_calls += 1
        call()

    def record(self, call: Call) -> Call:
        self.records += 1
        if self.fails is not None:
            raise CaptureError(self.fails)

        def replay() -> None:
            self.replays += 1
            call()

        return replay


def ahead(
    recipe: Recipe, model: nn.Module, recorder: PretendedRecorder | None, say: Say | None = None, setting: str = "auto"
) -> Training:
    """What `start` gives on a GPU, on the CPU."""
    training = loop.start(recipe, model, CPU)
    training.optimizer = make_optimizer(model, recipe.optim, capturable=True)
    step = DeviceStep(model, judge_of(recipe, CPU), training.optimizer, training.ema, recipe.optim.clip_norm)
    training.updates = Updates(step, None if recorder is None else lambda: recorder, setting, say=say)
    return training


class ListedBatches:
    """Batches `(inputs, targets)` in a fixed order, in the place of `Batches`."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
        return self.batches[start:]
