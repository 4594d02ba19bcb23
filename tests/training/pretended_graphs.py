"""Steps sent ahead, and graphs, on a CPU: a recorder that stands for CUDA's, a training that uses it, and its data."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn

from spikeloom.training import Optim, Recipe, loop
from spikeloom.training.device_step import DeviceStep, Say, Updates, samples_in
from spikeloom.training.graph import Call, CaptureError
from spikeloom.training.loop import Training, judge_of, train_epoch
from spikeloom.training.optim import make_optimizer
from spikeloom.training.split import WHOLE

CPU = torch.device("cpu")
OPTIM = Optim(lr=1e-2, warmup_epochs=0.5, clip_norm=0.5)


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

        self.split = WHOLE

    def __len__(self) -> int:
        return len(self.batches)

    def count(self, batch: int) -> int:
        return len(self.batches[batch][1])

    def samples(self, batch: int) -> int:
        return samples_in(self.batches[batch][1])

    def shuffled(self, seed: int, epoch: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
        return self.batches[start:]


class Net(nn.Module):
    """Frames `[T, B, 6]` -> logits `[T, B, 4]`, with a normalisation and a weight that lies channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(2, 8, 1, bias=False), nn.BatchNorm1d(24), nn.Linear(24, 4)

    def forward(self, frames: Tensor) -> Tensor:
        T, B = frames.shape[:2]
        x = self.first(frames.reshape(T * B, 2, 1, 3)).flatten(1)
        return self.last(torch.tanh(self.norm(x))).unflatten(0, (T, B))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batches(sizes: tuple[int, ...], spoiled: int | None = None) -> ListedBatches:
    generator = torch.Generator().manual_seed(1)
    made = []
    for number, B in enumerate(sizes):
        frames = torch.randn(3, B, 6, generator=generator)
        made.append((frames / 0.0 if number == spoiled else frames, torch.arange(B) % 4))
    return ListedBatches(made)


def train(training: Training, data: ListedBatches, epochs: int = 1) -> list[float]:
    """Mean losses of the epochs."""
    found = []
    for _ in range(epochs):
        tally = training.tally  # of the epoch that begins; complete once it has ended
        deque(train_epoch(training, data), maxlen=0)  # type: ignore[arg-type]
        found.append(tally.mean_loss)
    return found


def tensors(training: Training) -> dict[str, Tensor]:
    """All that a step changes."""
    found = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    if training.ema is not None:
        found |= {f"ema.{name}": value for name, value in training.ema.weights.items()}
    for number, values in training.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    return {name: value.clone() for name, value in found.items()}
