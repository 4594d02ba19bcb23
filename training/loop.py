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

from spikeloom.models.masked import reconstruction_loss
from spikeloom.training.data import Batches, generator_for
from spikeloom.training.ema import Ema
from spikeloom.training.losses import hard, make_loss
from spikeloom.training.optim import learning_rate, make_optimizer
from spikeloom.training.recipe import Recipe

_MASKS, _TEST_MASKS = 100, 101  # streams of random numbers, apart from those of data.py

Judge = Callable[[nn.Module, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor | None]]
"""Takes a batch: (module, frames, targets, generator of its masks) -> mean loss, and how many were classified right."""


class DivergedError(FloatingPointError):
    """The loss, or its gradient, is not finite."""


@dataclass
class Tally:
    """Sums over samples, in Python floats, so that they are saved and continued exactly.

    correct: samples that were classified correctly; None: the task has no labels.
    """

    loss: float = 0.0
    correct: int | None = 0
    samples: int = 0
    seconds: float = 0.0

    def add(self, loss: float, correct: int | None, samples: int, seconds: float = 0.0) -> None:
        """Take in a batch, given its mean loss."""
        self.loss += loss * samples
        self.correct = None if correct is None else (self.correct or 0) + correct
        self.samples += samples
        self.seconds += seconds

    @property
    def mean_loss(self) -> float:
        """Mean loss per sample."""
        return self.loss / max(self.samples, 1)

    @property
    def accuracy(self) -> float:
        """Share of samples whose largest mean logit is their label's; nan without labels."""
        return math.nan if self.correct is None else self.correct / max(self.samples, 1)

    def values(self, prefix: str = "") -> dict[str, float]:
        """What is logged and shown: the mean loss, and the accuracy where there is one."""
        shown = {f"{prefix}loss": self.mean_loss}
        return shown if self.correct is None else {**shown, f"{prefix}accuracy": self.accuracy}


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
        DivergedError: the loss or its gradient is not finite; the step is not taken.
    """
    judge = judge_of(training.recipe, training.device)
    training.model.train()
    began = time.perf_counter()
    for frames, labels in batches.shuffled(training.recipe.seed, training.epoch, training.batch):
        loss, correct = _step(training, judge, frames, labels, len(batches))
        training.step += 1
        training.batch += 1
        now = time.perf_counter()
        training.tally.add(loss, correct, len(labels), now - began)
        began = now
        yield training.tally
    training.epoch += 1
    training.batch = 0
    training.tally = Tally()


def judge_of(recipe: Recipe, device: torch.device) -> Judge:
    """The loss of a batch in the recipe's task."""
    if recipe.task == "reconstruct":

        def reconstruct(model: nn.Module, frames: Tensor, targets: Tensor, masks: torch.Generator) -> Any:
            with autocast(device, recipe.bf16):
                return reconstruction_loss(model(frames, masks)), None

        return reconstruct
    loss_of = make_loss(recipe.loss)

    def classify(model: nn.Module, frames: Tensor, targets: Tensor, masks: torch.Generator) -> Any:
        with autocast(device, recipe.bf16):
            logits = model(frames)
        return loss_of(logits, targets), (decide(logits) == hard(targets)).sum()

    return classify


def _step(
    training: Training, judge: Judge, frames: Tensor, targets: Tensor, steps_per_epoch: int
) -> tuple[float, int | None]:
    """One update; returns the loss and how many samples were classified correctly.

    Raises:
        DivergedError: before the update, because the loss or its gradient is not finite.
    """
    recipe, optimizer = training.recipe, training.optimizer
    rate = learning_rate(training.step, recipe.epochs * steps_per_epoch, steps_per_epoch, recipe.optim)
    for group in optimizer.param_groups:
        group["lr"] = rate
    masks = generator_for(recipe.seed, _MASKS, training.epoch, training.batch)
    loss, correct = judge(training.model, frames, targets, masks)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    # without a limit a finite gradient is multiplied by 1
    norm = nn.utils.clip_grad_norm_(training.model.parameters(), recipe.optim.clip_norm or math.inf)
    value, size = torch.stack((loss.detach().double(), norm.double())).tolist()  # waits for the device once
    if not (math.isfinite(value) and math.isfinite(size)):
        what = f"The norm of the gradient is {size}" if math.isfinite(value) else f"The loss is {value}"
        raise DivergedError(
            f"{what} at step {training.step} (learning rate {rate:.2g}). Lower --lr, or set --optim.clip-norm."
        )
    optimizer.step()
    if training.ema is not None:
        training.ema.update(training.model)
    return value, None if correct is None else int(correct)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, recipe: Recipe, device: torch.device) -> Tally:
    """Loss and accuracy over all recordings as they are, in evaluation mode; masks are the same every time."""
    judge = judge_of(recipe, device)
    tally = Tally()
    was_training = model.training
    model.eval()
    for batch, (frames, labels) in enumerate(batches.in_order()):
        began = time.perf_counter()
        loss, right = judge(model, frames, labels, generator_for(0, _TEST_MASKS, 0, batch))
        correct = None if right is None else int(right)
        tally.add(loss.item(), correct, len(labels), time.perf_counter() - began)
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
