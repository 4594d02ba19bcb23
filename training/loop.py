"""The plain loops: one epoch of training, and an evaluation. Nothing here knows of files or terminals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.training.data import Batches
from spikeloom.training.ema import Ema
from spikeloom.training.losses import make_loss
from spikeloom.training.optim import learning_rate, make_optimizer
from spikeloom.training.recipe import Recipe


class DivergedError(FloatingPointError):
    """The loss is not finite."""


@dataclass
class Tally:
    """Sums over samples, in Python floats, so that they are saved and continued exactly."""

    loss: float = 0.0
    correct: int = 0
    samples: int = 0
    seconds: float = 0.0

    def add(self, loss: float, correct: int, samples: int, seconds: float = 0.0) -> None:
        """Take in a batch, given its mean loss."""
        self.loss += loss * samples
        self.correct += correct
        self.samples += samples
        self.seconds += seconds

    @property
    def mean_loss(self) -> float:
        """Mean loss per sample."""
        return self.loss / max(self.samples, 1)

    @property
    def accuracy(self) -> float:
        """Share of samples whose largest mean logit is their label's."""
        return self.correct / max(self.samples, 1)


@dataclass
class Training:
    """A training in progress: everything that changes from step to step, except torch's random state.

    epoch: epochs finished. batch: batches done of the next one. tally: of that unfinished epoch.
    """

    recipe: Recipe
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    device: torch.device
    epoch: int = 0
    batch: int = 0
    step: int = 0
    tally: Tally = field(default_factory=Tally)


def start(recipe: Recipe, model: nn.Module, device: torch.device) -> Training:
    """A training before its first step; kernels of convolutions lie channels-last, as the frames do."""
    model = model.to(device).to(memory_format=torch.channels_last)
    ema = None if recipe.ema is None else Ema(model, recipe.ema)
    return Training(recipe, model, make_optimizer(model, recipe.optim), ema, device)


def train_epoch(training: Training, batches: Batches) -> Iterator[Tally]:
    """Train to the end of the epoch, from the batch where the training stands; yields after every step.

    The caller may stop in between, save the training, and go on later with the same numbers.

    Raises:
        DivergedError: the loss is not finite; the step is not taken.
    """
    loss_of = make_loss(training.recipe.loss)
    training.model.train()
    began = time.perf_counter()
    for frames, labels in batches.shuffled(training.recipe.seed, training.epoch, training.batch):
        loss, correct = _step(training, loss_of, frames, labels, len(batches))
        training.step += 1
        training.batch += 1
        now = time.perf_counter()
        training.tally.add(loss, correct, len(labels), now - began)
        began = now
        yield training.tally
    training.epoch += 1
    training.batch = 0
    training.tally = Tally()


def _step(
    training: Training,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    frames: Tensor,
    labels: Tensor,
    steps_per_epoch: int,
) -> tuple[float, int]:
    """One update; returns the loss and how many samples were classified correctly."""
    recipe, optimizer = training.recipe, training.optimizer
    rate = learning_rate(training.step, recipe.epochs * steps_per_epoch, steps_per_epoch, recipe.optim)
    for group in optimizer.param_groups:
        group["lr"] = rate
    with autocast(training.device, recipe.bf16):
        logits = training.model(frames)
    loss = loss_of(logits, labels)
    value = loss.item()
    if not math.isfinite(value):
        raise DivergedError(
            f"The loss is {value} at step {training.step} (learning rate {rate:.2g}). Lower --lr, "
            "or set --optim.clip-norm."
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if recipe.optim.clip_norm is not None:
        nn.utils.clip_grad_norm_(training.model.parameters(), recipe.optim.clip_norm)
    optimizer.step()
    if training.ema is not None:
        training.ema.update(training.model)
    return value, int((decide(logits) == labels).sum())


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, recipe: Recipe, device: torch.device) -> Tally:
    """Loss and accuracy over all recordings as they are, in evaluation mode."""
    loss_of = make_loss(recipe.loss)
    tally = Tally()
    was_training = model.training
    model.eval()
    for frames, labels in batches.in_order():
        began = time.perf_counter()
        with autocast(device, recipe.bf16):
            logits = model(frames)
        loss, correct = loss_of(logits, labels).item(), int((decide(logits) == labels).sum())
        tally.add(loss, correct, len(labels), time.perf_counter() - began)
    model.train(was_training)
    return tally


def decide(logits: Tensor) -> Tensor:
    """The class `[B]` whose logit is largest in the mean over time, of `[T, B, K]`."""
    return logits.float().mean(0).argmax(1)


def autocast(device: torch.device, bf16: bool) -> Any:
    """bfloat16 where it pays: on a GPU, if the recipe says so."""
    return torch.autocast("cuda", torch.bfloat16) if bf16 and device.type == "cuda" else nullcontext()


@contextmanager
def averaged(training: Training) -> Iterator[nn.Module]:
    """The model with the averaged weights, where there are any, and its own again afterwards."""
    if training.ema is None:
        yield training.model
        return
    own = {name: value.clone() for name, value in training.model.state_dict().items()}
    training.model.load_state_dict(training.ema.weights)
    try:
        yield training.model
    finally:
        training.model.load_state_dict(own)
