"""The plain loops: one epoch of training, and an evaluation. Nothing here knows of files or terminals."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.datasets.text_windows import IGNORED
from spikeloom.models.classifier import Classifier
from spikeloom.models.masked import reconstruction_loss
from spikeloom.models.token_loss import language_loss
from spikeloom.training.choice import Best
from spikeloom.training.data import AnyBatches, generator_for
from spikeloom.training.delay_steps import begin_epoch, delay_schedule
from spikeloom.training.device_step import Buffers, DeviceStep, Judge, Say, Updates, samples_in
from spikeloom.training.ema import Ema
from spikeloom.training.finite import DivergedError, require_finite
from spikeloom.training.graph import CudaRecorder
from spikeloom.training.losses import decide, hard, make_loss
from spikeloom.training.model_hooks import evaluating, settle_model
from spikeloom.training.optim import learning_rate, make_optimizer, set_rate
from spikeloom.training.recipe import Recipe

_MASKS, _TEST_MASKS = 100, 101  # streams of random numbers, apart from those of data.py


@dataclass
class Tally:
    """Sums over samples, in Python floats, so that they are saved and continued exactly.

    correct: samples that were classified correctly; None: the task has no labels. tokens_per_character: of a text that
    was evaluated, whose samples are the predicted tokens; None elsewhere.
    """

    loss: float = 0.0
    correct: int | None = 0
    samples: int = 0
    seconds: float = 0.0
    tokens_per_character: float | None = None

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

    @property
    def perplexity(self) -> float:
        """Of a text: e to the mean loss."""
        return math.exp(min(self.mean_loss, 700.0))

    @property
    def bits_per_character(self) -> float:
        """Of a text: the loss of its tokens in bits, by the number of its Unicode characters; nan elsewhere."""
        share = self.tokens_per_character
        return math.nan if share is None else self.mean_loss / math.log(2) * share

    def values(self, prefix: str = "") -> dict[str, float]:
        """What is logged and shown: the mean loss, and what else the task has."""
        shown = {f"{prefix}loss": self.mean_loss}
        if self.tokens_per_character is not None:
            shown |= {
                f"{prefix}bits_per_character": self.bits_per_character,
                f"{prefix}perplexity": self.perplexity,
            }
        return shown if self.correct is None else {**shown, f"{prefix}accuracy": self.accuracy}


@dataclass
class Training:
    """A training in progress: everything that changes from step to step, except torch's random state.

    epoch: epochs finished. batch: batches done of the next one. tally: of that unfinished epoch.
    updates: on a GPU, where steps are sent ahead; `settle` reads what came of them. None: each step is waited for.
    best: the weights of the best epoch so far, where the recipe selects them.
    """

    recipe: Recipe
    model: nn.Module
    optimizer: torch.optim.Adam
    ema: Ema | None
    device: torch.device
    epoch: int = 0
    batch: int = 0
    step: int = 0
    tally: Tally = field(default_factory=Tally)
    updates: Updates | None = None
    best: Best | None = None


def start(recipe: Recipe, model: nn.Module, device: torch.device, say: Say | None = None) -> Training:
    """A training before its first step; kernels of convolutions lie channels-last, as the frames do.

    say: is told why there are no CUDA graphs where they were to be had; None: it is a warning.

    Raises:
        ValueError: graphs are asked for, and cannot be had.
    """
    check_graph(recipe, device)
    model = model.to(device).to(memory_format=torch.channels_last)
    ema = None if recipe.ema is None else Ema(model, recipe.ema)
    training = Training(recipe, model, make_optimizer(model, recipe.optim), ema, device)
    if device.type == "cuda":
        step = DeviceStep(model, judge_of(recipe, device), training.optimizer, ema, recipe.optim.clip_norm)
        wanted, obstacle = recipe.cuda_graph != "off", graph_obstacle(recipe, device)
        recorder = partial(CudaRecorder, device) if wanted and obstacle is None else None
        say = _warn if say is None else say
        training.updates = Updates(step, recorder, recipe.cuda_graph, obstacle if wanted else None, say)
    return training


def check_graph(recipe: Recipe, device: torch.device) -> None:
    """Refuse to capture what cannot be captured.

    Raises:
        ValueError: the recipe's cuda_graph is "on", and something speaks against it.
    """
    obstacle = graph_obstacle(recipe, device)
    if recipe.cuda_graph == "on" and obstacle is not None:
        raise ValueError(
            f'The recipe\'s cuda_graph is "on", but {obstacle}. Pass --cuda-graph auto, which captures steps '
            "where that is possible."
        )


def graph_obstacle(recipe: Recipe, device: torch.device) -> str | None:
    """Why a recipe's steps cannot be captured in CUDA graphs, as far as it is known before the first one."""
    if device.type != "cuda":
        return f"the device is {device.type!r}; CUDA graphs need a GPU (--device cuda)"
    if recipe.task == "reconstruct":
        return "the task 'reconstruct' draws what it hides on the host, anew for every batch"
    return None


def train_epoch(training: Training, batches: AnyBatches) -> Iterator[Tally]:
    """Train to the end of the epoch, from the batch where the training stands; yields after every step.

    The caller may stop in between, save the training, and go on later with the same numbers. On a GPU the tally is one
    step behind until the epoch ends.

    Raises:
        DivergedError: the loss or its gradient is not finite; the step is not taken.
    """
    judge = judge_of(training.recipe, training.device)
    buffers = Buffers(training.model) if training.updates is None else None
    training.model.train()
    _begin(training)
    if training.updates is not None and 0 < training.recipe.early_epochs == training.epoch:
        training.updates.renew()  # graphs of fewer time steps
    began = time.perf_counter()
    for frames, targets in batches.shuffled(training.recipe.seed, training.epoch, training.batch):
        with _early(training):
            _step(training, judge, buffers, frames, targets, len(batches))
        training.step += 1
        training.batch += 1
        settle(training, left=1)  # while the device is busy with this step, the one before is read
        now = time.perf_counter()
        training.tally.seconds += now - began
        began = now
        yield training.tally
    settle(training)
    training.tally.seconds += time.perf_counter() - began
    training.epoch += 1
    training.batch = 0
    training.tally = Tally()


def _begin(training: Training) -> None:
    """Put in place what changes with the epoch."""
    recipe, optimizer = training.recipe, training.optimizer
    if recipe.optim.schedule == "delays":
        schedule = delay_schedule(recipe.optim, recipe.epochs, training.model)
        whole = training.epoch >= recipe.epochs - recipe.optim.whole_epochs
        warmup = begin_epoch(schedule, training.epoch, training.model, optimizer, whole)
        if warmup and training.updates is not None:
            training.updates.renew(warmup)


@contextmanager
def _early(training: Training) -> Iterator[None]:
    """In the first epochs, if the recipe says so, the network runs for fewer time steps; saved it is as it will be."""
    recipe, model = training.recipe, training.model
    if training.epoch >= recipe.early_epochs:
        yield
        return
    assert isinstance(model, Classifier)  # network.build sees to it
    model.set_steps(recipe.early_steps)
    try:
        yield
    finally:
        model.set_steps(recipe.data.T)


def settle(training: Training, left: int = 0) -> None:
    """Read what came of the steps that were sent to the device into the tally, but for the last `left`.

    Raises:
        DivergedError: a step's loss or gradient is not finite; that step and those after it are not taken.
    """
    sent = training.updates.sent if training.updates is not None else ()
    while len(sent) > left:
        assert training.updates is not None
        first = training.updates.sent[0]
        loss, norm, correct = first.report.read()
        try:
            require_finite(loss, norm, first.step, first.rate)
        except DivergedError:
            undone = training.updates.forget(first.step)
            training.step, training.batch = training.step - undone, training.batch - undone
            raise
        training.updates.sent.popleft()
        training.tally.add(loss, correct, first.samples)


def rate_of(training: Training, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step."""
    recipe = training.recipe
    return learning_rate(step, recipe.epochs * steps_per_epoch, steps_per_epoch, recipe.optim)


def judge_of(recipe: Recipe, device: torch.device) -> Judge:
    """The loss of a batch in the recipe's task."""
    if recipe.task == "reconstruct":

        def reconstruct(model: nn.Module, frames: Tensor, targets: Tensor, masks: torch.Generator) -> Any:
            with autocast(device, recipe.bf16):
                return reconstruction_loss(model(frames, masks)), None

        return reconstruct
    if recipe.task == "language":

        def language(model: nn.Module, frames: Tensor, targets: Tensor, masks: torch.Generator) -> Any:
            with autocast(device, recipe.bf16):
                logits = model(frames)
            return language_loss(logits.float(), targets, recipe.loss.logit_penalty), None

        return language
    loss_of = make_loss(recipe.loss)

    def classify(model: nn.Module, frames: Tensor, targets: Tensor, masks: torch.Generator) -> Any:
        with autocast(device, recipe.bf16):
            logits = model(frames)
        return loss_of(logits, targets), (decide(logits, recipe.loss.name) == hard(targets)).sum()

    return classify


def _step(
    training: Training, judge: Judge, buffers: Buffers | None, frames: Tensor, targets: Tensor, steps_per_epoch: int
) -> None:
    """One update; its loss and how many samples were classified correctly go to the tally, on a GPU by `settle`.

    buffers: of the model; None: steps are sent ahead, and the device puts the buffers back itself.

    Raises:
        DivergedError: before the update, because the loss or its gradient is not finite; the buffers are put back.
    """
    rate = rate_of(training, training.step, steps_per_epoch)
    masks = generator_for(training.recipe.seed, _MASKS, training.epoch, training.batch)
    if training.updates is not None:
        training.updates.send(frames, targets, masks, training.step, rate)
        return
    assert buffers is not None
    optimizer = training.optimizer
    set_rate(optimizer, rate)
    buffers.keep()
    loss, correct = judge(training.model, frames, targets, masks)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    # without a limit a finite gradient is multiplied by 1
    norm = nn.utils.clip_grad_norm_(training.model.parameters(), training.recipe.optim.clip_norm or math.inf)
    value, size = torch.stack((loss.detach().double(), norm.double())).tolist()
    try:
        require_finite(value, size, training.step, rate)
    except DivergedError:
        buffers.restore(torch.ones((), device=training.device))
        raise
    optimizer.step()
    settle_model(training.model)
    if training.ema is not None:
        training.ema.update()
    training.tally.add(value, None if correct is None else int(correct), samples_in(targets))


def _warn(step: int, text: str) -> None:
    warnings.warn(f"After {step} steps: {text}", stacklevel=2)


@torch.no_grad()
def evaluate(model: nn.Module, batches: AnyBatches, recipe: Recipe, device: torch.device) -> Tally:
    """Loss and accuracy over all recordings as they are, in evaluation mode; masks are the same every time.

    A network that is used in another form than it is trained in, such as with whole-number delays, is put into that.
    """
    judge = judge_of(recipe, device)
    tally = Tally(tokens_per_character=batches.tokens_per_character)
    with evaluating(model):
        for batch, (frames, labels) in enumerate(batches.in_order()):
            began = time.perf_counter()
            loss, right = judge(model, frames, labels, generator_for(0, _TEST_MASKS, 0, batch))
            correct = None if right is None else int(right)
            samples = samples_in(labels) - int((labels == IGNORED).sum())
            tally.add(loss.item(), correct, samples, time.perf_counter() - began)
    return tally


def autocast(device: torch.device, bf16: bool) -> Any:
    """bfloat16 where it pays: on a GPU, if the recipe says so."""
    return torch.autocast("cuda", torch.bfloat16) if bf16 and device.type == "cuda" else nullcontext()


@contextmanager
def averaged(training: Training) -> Iterator[nn.Module]:
    """The model with the averaged weights, where there are any, and its own again afterwards."""
    with _with(training.model, None if training.ema is None else training.ema.weights):
        yield training.model


@contextmanager
def selected(training: Training) -> Iterator[nn.Module]:
    """The model with the weights that the recipe selects, and its own again afterwards."""
    if training.best is None:
        with averaged(training) as model:
            yield model
        return
    with _with(training.model, training.best.weights):
        yield training.model


@contextmanager
def _with(model: nn.Module, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    if weights is None:
        yield
        return
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
