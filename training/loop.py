"""The plain loops: one epoch of training, and an evaluation. Nothing here knows of files or terminals."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
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
from spikeloom.training.device_step import Buffers, DeviceStep, Say, Updates, samples_in
from spikeloom.training.ema import Ema
from spikeloom.training.engine import Engine, Judge, Piece
from spikeloom.training.finite import DivergedError, require_finite
from spikeloom.training.graph import CudaRecorder
from spikeloom.training.losses import decide, hard, make_loss
from spikeloom.training.model_hooks import evaluating, settle_model
from spikeloom.training.optim import learning_rate, make_optimizer, set_rate
from spikeloom.training.parallel import ShardedEngine, make_engine
from spikeloom.training.recipe import Recipe
from spikeloom.training.tally import Tally as Tally
from spikeloom.training.team import ALONE, Team

_MASKS, _TEST_MASKS, _OWN = 100, 101, 102  # streams of random numbers, apart from those of data.py


@dataclass
class Training:
    """A training in progress: everything that changes from step to step, except torch's random state.

    epoch: epochs finished. batch: batches done of the next one. tally: of that unfinished epoch.
    updates: on a GPU, where steps are sent ahead; `settle` reads what came of them. None: each step is waited for.
    best: the weights of the best epoch so far, where the recipe selects them.
    engine: how gradients come about on several processes; None: in this one alone.
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
    engine: Engine | None = None

    @property
    def team(self) -> Team:
        """The processes that train."""
        return ALONE if self.engine is None else self.engine.team

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of the weights alone."""
        return isinstance(self.engine, ShardedEngine)


def start(
    recipe: Recipe, model: nn.Module, device: torch.device, say: Say | None = None, team: Team = ALONE
) -> Training:
    """A training before its first step; kernels of convolutions lie channels-last, as the frames do.

    say: is told why there are no CUDA graphs where they were to be had; None: it is a warning. team: the processes,
    all of which call this.

    Raises:
        ValueError: graphs are asked for, and cannot be had; or statistics are to be shared that cannot be.
    """
    check_graph(recipe, device, team.size)
    wanted, obstacle = recipe.cuda_graph != "off", graph_obstacle(recipe, device, team.size)
    model = model.to(device).to(memory_format=torch.channels_last)
    engine = make_engine(recipe, model, judge_of(recipe, device), team, captured=wanted and obstacle is None)
    ema = None if recipe.ema is None else Ema(model, recipe.ema)
    optimizer = engine.optimizer(recipe.optim) if isinstance(engine, ShardedEngine) else None
    training = Training(recipe, model, optimizer or make_optimizer(model, recipe.optim), ema, device, engine=engine)
    if device.type == "cuda" and not training.sharded:
        step = DeviceStep(model, judge_of(recipe, device), training.optimizer, ema, recipe.optim.clip_norm, engine)
        recorder = partial(CudaRecorder, device) if wanted and obstacle is None else None
        say = _warn if say is None else say
        training.updates = Updates(step, recorder, recipe.cuda_graph, obstacle if wanted else None, say)
    return training


def check_graph(recipe: Recipe, device: torch.device, processes: int = 1) -> None:
    """Refuse to capture what cannot be captured.

    Raises:
        ValueError: the recipe's cuda_graph is "on", and something speaks against it.
    """
    obstacle = graph_obstacle(recipe, device, processes)
    if recipe.cuda_graph == "on" and obstacle is not None:
        raise ValueError(
            f'The recipe\'s cuda_graph is "on", but {obstacle}. Pass --cuda-graph auto, which captures steps '
            "where that is possible."
        )


def graph_obstacle(recipe: Recipe, device: torch.device, processes: int = 1) -> str | None:
    """Why a recipe's steps cannot be captured in CUDA graphs, as far as it is known before the first one."""
    if device.type != "cuda":
        return f"the device is {device.type!r}; CUDA graphs need a GPU (--device cuda)"
    if processes > 1 and (recipe.shard or recipe.shared_statistics):
        what = "weights" if recipe.shard else "statistics"
        return f"{processes} processes exchange {what} in the middle of a step, which is not captured"
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
    engine = training.engine or Engine(training.model, judge_of(training.recipe, training.device))
    buffers = Buffers(training.model) if training.updates is None else None
    training.model.train()
    _begin(training)
    if training.updates is not None and 0 < training.recipe.early_epochs == training.epoch:
        training.updates.renew()  # graphs of fewer time steps
    began = time.perf_counter()
    for pieces in _pieces(training, batches):
        with _early(training):
            _step(training, engine, buffers, pieces, batches)
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


def _pieces(training: Training, batches: AnyBatches) -> Iterator[list[Piece]]:
    """This process's pieces of each batch that is left of the epoch; without others, empty ones are left out."""
    seed, epoch, batch = training.recipe.seed, training.epoch, training.batch
    split, alone = batches.split, training.team.size == 1
    parts = iter(batches.shuffled(seed, epoch, batch))
    while drawn := list(islice(parts, len(split.own))):
        pieces, count = [], batches.count(batch)
        for (frames, targets), part in zip(drawn, split.own, strict=True):
            masks = generator_for(seed, _MASKS, epoch, batch, None if split.whole else part)
            pieces.append(Piece(frames, targets, masks, split.weight(count, part)))
        yield [piece for piece in pieces if piece.weight or not alone]
        batch += 1


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
            return language_loss(logits, targets, recipe.loss.logit_penalty / recipe.accumulate), None

        return language
    loss_of = make_loss(recipe.loss)

    def classify(model: nn.Module, frames: Tensor, targets: Tensor, masks: torch.Generator) -> Any:
        with autocast(device, recipe.bf16):
            logits = model(frames)
        return loss_of(logits, targets), (decide(logits, recipe.loss.name) == hard(targets)).sum()

    return classify


def _step(
    training: Training, engine: Engine, buffers: Buffers | None, pieces: list[Piece], batches: AnyBatches
) -> None:
    """One update; its loss and how many samples were classified correctly go to the tally, on a GPU by `settle`.

    buffers: of the model; None: steps are sent ahead, and the device puts the buffers back itself.

    Raises:
        DivergedError: before the update, because the loss or its gradient is not finite; the buffers are put back.
    """
    recipe, samples = training.recipe, batches.samples(training.batch)
    rate = rate_of(training, training.step, len(batches))
    if engine.team.size > 1:  # each process has numbers of its own (dropout), which a resumed run finds again
        drawn = generator_for(recipe.seed, _OWN, training.epoch, training.batch, engine.team.rank)
        torch.manual_seed(drawn.initial_seed())
    if training.updates is not None:
        training.updates.send(pieces, samples, training.step, rate)
        return
    assert buffers is not None
    optimizer = training.optimizer
    set_rate(optimizer, rate)
    buffers.keep()
    optimizer.zero_grad(set_to_none=True)
    loss, correct = engine.gradient(pieces)
    norm = engine.norm(recipe.optim.clip_norm or math.inf)  # without a limit a finite gradient is multiplied by 1
    value, size = torch.stack((loss.double(), norm.double())).tolist()
    try:
        require_finite(value, size, training.step, rate)
    except DivergedError:
        buffers.restore(torch.ones((), device=training.device))
        raise
    optimizer.step()
    settle_model(training.model)
    engine.share_buffers()
    if training.ema is not None:
        training.ema.update()
    training.tally.add(value, None if correct is None else int(correct), samples)


def _warn(step: int, text: str) -> None:
    warnings.warn(f"After {step} steps: {text}", stacklevel=2)


@torch.no_grad()
def evaluate(model: nn.Module, batches: AnyBatches, recipe: Recipe, device: torch.device, team: Team = ALONE) -> Tally:
    """Loss and accuracy over all recordings as they are, in evaluation mode; masks are the same every time.

    A network that is used in another form than it is trained in, such as with whole-number delays, is put into that.
    team: the processes, each of which takes one of so many batches; all of them get the sums of all, to the last bit.
    """
    judge = judge_of(recipe, device)
    tally = Tally(tokens_per_character=batches.tokens_per_character)
    rows: dict[int, tuple[float, ...]] = {}
    with evaluating(model):
        for number, (frames, labels) in enumerate(batches.in_order(team.rank, team.size)):
            began, batch = time.perf_counter(), team.rank + number * team.size
            loss, right = judge(model, frames, labels, generator_for(0, _TEST_MASKS, 0, batch))
            correct = -1 if right is None else int(right)
            samples = samples_in(labels) - int((labels == IGNORED).sum())
            rows[batch] = (loss.item(), correct, samples, time.perf_counter() - began)
    for loss_of, right_of, count, seconds in _gathered(rows, team):
        tally.add(loss_of, None if right_of < 0 else int(right_of), int(count), seconds)
    return tally


def _gathered(rows: Mapping[int, tuple[float, ...]], team: Team) -> list[list[float]]:
    """The rows of all processes, by their numbers."""
    table = torch.zeros(team.largest(max(rows, default=-1) + 1), 4, dtype=torch.float64)
    for number, values in rows.items():
        table[number] = torch.tensor(values, dtype=torch.float64)
    found: list[list[float]] = team.summed(table).tolist()  # each row is one process's, so the sum rounds nothing
    return found


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
