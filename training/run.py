"""`fit`: a recipe from its first step (or its last checkpoint) to the test accuracy, in a run folder.

runs/saccade_small/
    recipe.json            all settings
    log.jsonl              what happened, a line per epoch
    checkpoint-000945/     the newest checkpoint: model.safetensors, config.json, state.pt
    pretrain/              the run folder of the recipe that was trained first, if one is asked for
"""

from __future__ import annotations

import json
import platform
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import nn

import spikeloom
from spikeloom.models import model_config
from spikeloom.models.files import load_weights, read_weights
from spikeloom.training import network, snapshot
from spikeloom.training.checkpoint import (
    Description,
    find_checkpoint,
    read_description,
    read_state,
    remove_leftovers,
    require_checkpoint,
    save_checkpoint,
    write_atomic,
)
from spikeloom.training.data import Batches, load_test, load_train
from spikeloom.training.firing import Firing, count_spikes
from spikeloom.training.interrupt import Interruption, TrainingInterrupted, watch
from spikeloom.training.log import RunLog, epoch_bar, epoch_line
from spikeloom.training.loop import Tally, Training, averaged, evaluate, start, train_epoch
from spikeloom.training.recipe import Recipe, differences, read_recipe
from spikeloom.training.recipes import get_recipe
from spikeloom.training.sources import Recordings, check_augment, source

RECIPE, LOG, PRETRAIN = "recipe.json", "log.jsonl", "pretrain"


@dataclass(frozen=True)
class Result:
    """The end of a run: loss and accuracy on the test part after the last epoch, and how often each layer fired there.

    seconds: spent in training steps (of this stage, earlier parts of a resumed run included).
    """

    checkpoint: Path
    test: Tally
    firing: dict[str, Firing]
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Session:
    """What stays the same during a run: where it writes, what it trains on."""

    recipe: Recipe
    folder: Path
    root: Path
    console: Console
    log: RunLog
    train: Batches
    validation: Batches | None


def fit(
    recipe: Recipe, out: str | Path, *, resume: bool = False, device: str = "auto", console: Console | None = None
) -> Result:
    """Train by a recipe in the folder `out`, and evaluate the result on the test part.

    resume: continue the run in `out`, with the numbers that it would have had without the interruption.
    device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".

    Raises:
        FileExistsError: `out` holds something and `resume` was not asked for.
        TrainingInterrupted: Ctrl-C or SIGTERM; the state is saved.
        ValueError: settings that do not fit together, a damaged checkpoint, or `resume` with another recipe.
    """
    console = Console(highlight=False) if console is None else console
    where = pick_device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        training, session = _train(recipe, Path(out), Path(out), resume, where, console)
        with averaged(training) as model:
            tally, firing = measure(model, recipe, where)
    session.log.write(
        "test",
        training.step,
        **tally.values(),
        samples=tally.samples,
        firing={name: layer.rate for name, layer in firing.items()},
    )
    seconds = sum(line["seconds"] for line in session.log.lines() if line["event"] == "epoch")
    return Result(require_checkpoint(Path(out)), tally, firing, training.epoch, seconds)


def measure(
    model: nn.Module, recipe: Recipe, device: torch.device, packed: Recordings | None = None
) -> tuple[Tally, dict[str, Firing]]:
    """Loss, accuracy and firing rates of a model on the device, on the test part (or on `packed`)."""
    batches = Batches(load_test(recipe.data) if packed is None else packed, recipe.data, recipe.batch_size, device)
    with count_spikes(model) as firing:
        tally = evaluate(model, batches, recipe, device)
    return tally, firing


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one.

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"There is no device {name!r}; expected auto, cpu, cuda or cuda:<number>.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch sees no GPU. `spikeloom doctor` says why; --device cpu works.")
    return device


def _train(
    recipe: Recipe, folder: Path, root: Path, resume: bool, device: torch.device, console: Console
) -> tuple[Training, Session]:
    """Train to the last epoch. root: the folder that the user named (`folder` lies in it when it pre-trains)."""
    _check_folder(recipe, folder, resume)
    check_augment(recipe.augment, recipe.data)
    first = _first_stage(recipe)
    torch.manual_seed(recipe.seed)
    model = network.build(recipe, source(recipe.data).num_classes)
    if recipe.init is not None:
        _initialise(model, Path(recipe.init), console)
    train, validation = load_train(recipe.data)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RECIPE).exists():
        write_atomic(folder / RECIPE, json.dumps(recipe.to_json(), indent=2) + "\n")
    checkpoint = find_checkpoint(folder)
    if first is not None and checkpoint is None:
        _pretrain(first, folder / PRETRAIN, root, device, console)
        _initialise(model, folder / PRETRAIN, console)
        torch.manual_seed(recipe.seed)
    training = start(recipe, model, device)
    session = Session(
        recipe,
        folder,
        root,
        console,
        RunLog(folder / LOG),
        Batches(train, recipe.data, recipe.batch_size, device, recipe.augment),
        None if validation is None else Batches(validation, recipe.data, recipe.batch_size, device),
    )
    _announce(training, session)
    if checkpoint is not None:
        weights, state = read_weights(checkpoint), read_state(checkpoint)
        snapshot.restore(training, weights, state, session.train.recordings, checkpoint)
        console.print(f"continuing after step {training.step} (epoch {training.epoch})")
    remove_leftovers(folder)
    session.log.rewind(training.step)
    versions = {"spikeloom": spikeloom.__version__, "torch": torch.__version__, "python": platform.python_version()}
    session.log.write(
        "start", training.step, recipe=recipe.to_json(), device=str(device), threads=torch.get_num_threads(), **versions
    )
    _epochs(training, session)
    return training, session


def _check_folder(recipe: Recipe, folder: Path, resume: bool) -> None:
    """Refuse to mix two runs in one folder."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        if resume:
            raise FileNotFoundError(f"There is no run at {folder} to resume. Leave out --resume to start one there.")
        return
    if not resume:
        raise FileExistsError(
            f"{folder} exists and is not empty. Continue the run in it with --resume, or choose "
            "another folder with --out."
        )
    if not (folder / RECIPE).is_file():
        raise FileNotFoundError(
            f"{folder} is no run folder (it has no {RECIPE}), so nothing can be resumed there. "
            "Choose another with --out."
        )
    changed = differences(read_recipe(folder / RECIPE).to_json(), recipe.to_json())
    if changed:
        raise ValueError(
            f"The run in {folder} has other settings: {'; '.join(changed)}. Resume it as it was with "
            f"`spikeloom train {shlex.quote(str(folder))} --resume`, or start another with --out."
        )


def _first_stage(recipe: Recipe) -> Recipe | None:
    """The recipe to train first, with the model, frames and seed of the one that it is for.

    A reconstruction keeps its one time step; the weights do not depend on their number.
    """
    if recipe.pretrain is None:
        return None
    first = get_recipe(recipe.pretrain)
    T = 1 if first.task == "reconstruct" else recipe.data.T
    root = recipe.data.root if first.data.name == recipe.data.name else first.data.root
    frames = {name: getattr(recipe.data, name) for name in ("encoding", "split", "crop")}
    data = replace(first.data, T=T, root=root, **frames)
    return replace(first, model=recipe.model, model_args=recipe.model_args, data=data, seed=recipe.seed)


def _pretrain(recipe: Recipe, folder: Path, root: Path, device: torch.device, console: Console) -> None:
    """Train the recipe that comes first, or what is left of it."""
    begun = (folder / RECIPE).exists()
    checkpoint = find_checkpoint(folder) if begun else None
    if checkpoint is not None and read_description(checkpoint).epoch >= recipe.epochs:
        return
    _train(recipe, folder, root, begun, device, console)


def _initialise(model: nn.Module, path: Path, console: Console) -> None:
    """Load the weights of a checkpoint; of an autoencoder's, a classifier takes the encoder."""
    checkpoint = require_checkpoint(path)
    weights = read_weights(checkpoint)
    found = network.from_encoder(weights, model.state_dict())
    if found is not None:
        weights, says = found
        console.print(f"starting from {escape(str(checkpoint))}: {escape(says)}", soft_wrap=True)
    load_weights(model, weights, checkpoint)


def _announce(training: Training, session: Session) -> None:
    recipe, held = session.recipe, session.validation
    parameters = sum(p.numel() for p in training.model.parameters())
    where = f"{training.device}" if training.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    unit = source(recipe.data).unit
    recordings = f"{session.train.recordings:,} {unit}" + (f" and {held.recordings:,} held out" if held else "")
    stage = "pre-training " if session.folder != session.root else "training "
    session.console.print(
        f"{stage}[bold]{escape(recipe.model)}[/] ({parameters:,} parameters) on {recordings} of "
        f"[bold]{escape(recipe.data.name)}[/] ({escape(source(recipe.data).says)}), "
        f"T = {recipe.data.T}, {recipe.epochs} epochs, seed {recipe.seed}, {where}"
    )


def _epochs(training: Training, session: Session) -> None:
    """Train all epochs that are left; log, evaluate and save after each."""
    epochs = training.recipe.epochs
    total = epochs * len(session.train)
    with watch() as interruption, epoch_bar(session.console, total, training.step) as bar:
        while training.epoch < epochs:
            finished = Tally()
            for tally in train_epoch(training, session.train):
                finished = tally
                bar.advance(
                    f"{training.epoch + 1}/{epochs}",
                    tally.values(),
                    tally.samples / max(tally.seconds, 1e-9),
                )
                if interruption.signal is not None and training.batch < len(session.train):
                    _stop(training, session, interruption)
            values = _epoch_values(training, session, finished)
            session.log.write("epoch", training.step, **values)
            session.console.print(epoch_line(training.epoch, epochs, values), soft_wrap=True)
            save(training, session)
            if interruption.signal is not None and training.epoch < epochs:
                _stop(training, session, interruption)


def _epoch_values(training: Training, session: Session, tally: Tally) -> dict[str, Any]:
    values = {
        "epoch": training.epoch,
        "lr": training.optimizer.param_groups[0]["lr"],
        **tally.values(),
        "seconds": tally.seconds,
        "samples_per_second": tally.samples / max(tally.seconds, 1e-9),
    }
    if session.validation is not None:
        with averaged(training) as model:
            held = evaluate(model, session.validation, session.recipe, training.device)
        values |= held.values("validation_")
    return values


def save(training: Training, session: Session) -> Path:
    """Write a checkpoint of the training as it stands."""
    config = model_config(network.network_of(training.model))
    description = Description(session.recipe.model, config, session.recipe, training.step, training.epoch)
    state = snapshot.take(training, session.train.recordings)
    return save_checkpoint(session.folder, description, snapshot.weights_of(training), state)


def _stop(training: Training, session: Session, interruption: Interruption) -> None:
    save(training, session)
    session.log.write("interrupted", training.step, epoch=training.epoch, batch=training.batch)
    total = training.recipe.epochs * len(session.train)
    raise TrainingInterrupted(
        f"Interrupted after step {training.step} of {total}; everything is saved. Continue with:\n"
        f"  spikeloom train {shlex.quote(str(session.root))} --resume",
        128 + (interruption.signal or 0),
    )
