"""A run while it goes on: what stays the same, and what it saves."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from spikeloom.models import model_config
from spikeloom.training import network, snapshot
from spikeloom.training.checkpoint import Description, begin_checkpoint, finish_checkpoint, save_checkpoint
from spikeloom.training.data import AnyBatches
from spikeloom.training.faults import DataFaultError
from spikeloom.training.interrupt import Interruption, TrainingInterrupted
from spikeloom.training.log import RunLog
from spikeloom.training.loop import Training, settle
from spikeloom.training.parallel import SHARDS, parts_of, whole_weights, write_parts
from spikeloom.training.recipe import Recipe
from spikeloom.training.team import ALONE, Team


@dataclass(frozen=True)
class Session:
    """What stays the same during a run: where it writes, what it trains on, and what its labels are called.

    watched: the test part, where it is measured after every epoch.
    """

    recipe: Recipe
    folder: Path
    root: Path
    console: Console
    log: RunLog
    train: AnyBatches
    validation: AnyBatches | None
    classes: tuple[str, ...] | None
    watched: AnyBatches | None
    team: Team = ALONE


def save(training: Training, session: Session) -> Path:
    """Write a checkpoint of the training as it stands; of several processes the first writes, and the others wait.

    Raises:
        CheckpointWriteError: there is no room.
    """
    team = training.team
    settle(training)
    config = model_config(network.network_of(training.model))
    step, epoch = training.step, training.epoch
    description = Description(session.recipe.model, config, session.recipe, step, epoch, session.classes)
    if training.sharded:
        _save_sharded(training, session, description)
    else:

        def write() -> None:
            state = snapshot.take(training, session.train.recordings)
            weights = snapshot.weights_of(training)
            save_checkpoint(session.folder, description, weights, state, session.train.tokenizer)

        team.led(write)
    return session.folder / f"checkpoint-{step:06d}"


def _save_sharded(training: Training, session: Session, description: Description) -> None:
    """Each process writes its part; the first gathers the weights, one after the other, so that they load anywhere."""
    team, run = training.team, session.folder
    begun: list[Path | None] = []
    team.led(lambda: begun.append(begin_checkpoint(run, description.step)))
    part = team.agreed("" if not begun or begun[0] is None else begun[0].name)
    if part:
        parts = parts_of(training.model, training.optimizer)
        team.together(lambda: write_parts(str(run / part / SHARDS), parts))
        weights = whole_weights(training.model, team.first)
        state = snapshot.take(training, session.train.recordings)
        tokenizer = session.train.tokenizer
        team.led(lambda: finish_checkpoint(run, run / part, description, weights, state, tokenizer))


def stop(training: Training, session: Session, interruption: Interruption) -> None:
    """Save, and end.

    Raises:
        TrainingInterrupted: always.
    """
    save(training, session)
    session.log.write("interrupted", training.step, epoch=training.epoch, batch=training.batch)
    total = training.recipe.epochs * len(session.train)
    several = training.team.size > 1
    command = f"torchrun --nproc-per-node {training.team.size} -m spikeloom" if several else "spikeloom"
    raise TrainingInterrupted(
        f"Interrupted after step {training.step} of {total}; everything is saved. Continue with:\n"
        f"  {command} train {shlex.quote(str(session.root))} --resume",
        128 + (interruption.signal or 0),
    )


def save_before(error: DataFaultError, training: Training, session: Session) -> None:
    """Keep what was trained before recordings could not be had; not of several processes, whose steps are common."""
    if training.team.size == 1 and training.batch:
        save(training, session)
        session.log.write("data_fault", training.step, batch=training.batch, says=str(error))
