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
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

import spikeloom
from spikeloom.models.files import load_weights, read_weights
from spikeloom.training import network, snapshot
from spikeloom.training.announce import announcement
from spikeloom.training.checkpoint import (
    check_classes,
    find_checkpoint,
    read_description,
    read_state,
    remove_leftovers,
    require_checkpoint,
    write_atomic,
)
from spikeloom.training.choice import Peak, better, peak
from spikeloom.training.data import batches_of, evaluated, load_test, load_train, outputs_of, sample_of
from spikeloom.training.devices import pick_device as pick_device
from spikeloom.training.faults import DataFaultError
from spikeloom.training.firing import Firing, count_spikes, sum_firing
from spikeloom.training.folder_lock import locked
from spikeloom.training.interrupt import Interruption, watch
from spikeloom.training.log import RunLog, epoch_bar, epoch_line
from spikeloom.training.loop import (
    Tally,
    Training,
    averaged,
    check_graph,
    evaluate,
    rate_of,
    selected,
    start,
    train_epoch,
)
from spikeloom.training.recipe import Recipe
from spikeloom.training.recipes import get_recipe
from spikeloom.training.run_folder import RECIPE, check_folder
from spikeloom.training.session import Session, save, save_before, stop
from spikeloom.training.sources import Part, check_augment, classes_of, source
from spikeloom.training.split import evaluation_size, split_of
from spikeloom.training.team import ALONE, Team, current_team, local_device
from spikeloom.training.text_batches import check_tokenizer

LOG, PRETRAIN = "log.jsonl", "pretrain"


@dataclass(frozen=True)
class Result:
    """The end of a run: loss and accuracy on the test part, and how often each layer fired there.

    epochs: after which the weights are those of the result. peak: of what was measured on the test part after every
    epoch, if that was asked for; it is chosen on that part. seconds:
    spent in training steps (of this stage, earlier parts of a resumed run included).
    """

    checkpoint: Path
    test: Tally
    firing: dict[str, Firing]
    epochs: int
    seconds: float
    peak: Peak | None = None


@dataclass(frozen=True)
class Stage:
    """A training that can start: all is read and checked, nothing is written.

    random: state of torch's generator after the weights were drawn.
    """

    recipe: Recipe
    folder: Path
    model: nn.Module
    train: Part
    validation: Part | None
    random: Tensor


def fit(
    recipe: Recipe, out: str | Path, *, resume: bool = False, device: str = "auto", console: Console | None = None
) -> Result:
    """Train by a recipe in the folder `out`, and evaluate the result on the test part.

    Data and models of all stages are read and tried before anything is written. A folder whose run ended before its
    first checkpoint takes the same recipe again.

    resume: continue the run in `out`, with the numbers that it would have had without the interruption. The recipe is
        the run's own; only data.root and cuda_graph may differ.
    device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".

    Raises:
        FileExistsError: `out` holds something and `resume` was not asked for.
        TrainingInterrupted: Ctrl-C or SIGTERM; the state is saved.
        ValueError: settings that do not fit together, a damaged checkpoint, or `resume` with another recipe.
    """
    team = current_team()
    console = _console(console, team)
    where, folder = pick_device(local_device(device)), Path(out)
    with ExitStack() as held, torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        begun = (folder / RECIPE).is_file()
        if begun:
            team.led(lambda: held.enter_context(locked(folder)))
        stages = team.together(lambda: _prepare(recipe, folder, resume, console))
        for stage in stages:
            check_graph(stage.recipe, where, team.size)
            split_of(stage.recipe, team)
        test = load_test(recipe.data)
        team.led(lambda: _take(None if begun else held, recipe, folder, resume, stages))
        while len(stages) > 1:
            _train(stages.pop(), folder, where, console, team)  # popped, so that its recordings are freed behind it
        training, session = _train(stages.pop(), folder, where, console, team, test)
        with selected(training) as model:
            tally, firing = measure(model, recipe, where, test, _evaluators(training))
    chosen = training.epoch if training.best is None else training.best.epoch
    session.log.write(
        "test",
        training.step,
        **tally.values(),
        samples=tally.samples,
        chosen=chosen,
        firing={name: layer.rate for name, layer in firing.items()},
    )
    seconds = sum(line["seconds"] for line in session.log.lines() if line["event"] == "epoch")
    return Result(require_checkpoint(Path(out)), tally, firing, chosen, seconds, peak(session.log.lines()))


def measure(
    model: nn.Module, recipe: Recipe, device: torch.device, packed: Part | None = None, team: Team = ALONE
) -> tuple[Tally, dict[str, Firing]]:
    """Loss, accuracy and firing rates of a model on the device, on the test part (or on `packed`)."""
    part = load_test(recipe.data) if packed is None else packed
    batches = batches_of(part, evaluated(recipe.data), evaluation_size(recipe, split_of(recipe, team)), device)
    with count_spikes(model) as firing:
        tally = evaluate(model, batches, recipe, device, team)
    return tally, sum_firing(firing, team)


def _console(console: Console | None, team: Team) -> Console:
    """Where the first process prints, and the others do not."""
    if not team.first:
        return Console(quiet=True)
    return Console(highlight=False) if console is None else console


def _take(held: ExitStack | None, recipe: Recipe, folder: Path, resume: bool, stages: list[Stage]) -> None:
    """Make the folder and hold it, if that is still to be done (None: it is not), and write the settings."""
    if held is not None:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(folder))
        check_folder(recipe, folder, resume)  # another training may have come before
    _write_settings(stages)


def _prepare(recipe: Recipe, folder: Path, resume: bool, console: Console) -> list[Stage]:
    """The stages that are left of a run, the last one first. Writes nothing."""
    check_folder(recipe, folder, resume)
    check_augment(recipe.augment, recipe.data)
    begun = find_checkpoint(folder)
    first = _first_stage(recipe) if begun is None else None
    torch.manual_seed(recipe.seed)
    model = network.build(recipe, outputs_of(recipe.data))
    if recipe.init is not None:
        _initialise(model, Path(recipe.init), console)
    train, validation = load_train(recipe.data)
    if recipe.init is not None:
        check_tokenizer(require_checkpoint(Path(recipe.init)), train)
    if begun is not None:
        check_classes(read_description(begun), train)
        check_tokenizer(begun, train)
    stage = Stage(recipe, folder, model, train, validation, torch.get_rng_state())
    _try_out(stage)
    if first is None or _is_finished(first, folder / PRETRAIN):
        return [stage]
    resumed = (folder / PRETRAIN / RECIPE).exists()
    return [stage, *_prepare(first, folder / PRETRAIN, resumed, console)]


def _try_out(stage: Stage) -> None:
    """Put one recording through the model, so that sizes that do not fit are found before anything is written.

    Raises:
        ValueError: sizes that do not fit, or no whole batch where the last one is dropped.
        DataFaultError: the first recording cannot be read, or, where such are skipped, none can.
    """
    cpu, data = torch.device("cpu"), stage.recipe.data
    if data.drop_last and len(stage.train) < stage.recipe.batch_size:
        raise ValueError(
            f"Data.drop_last leaves no batch of {stage.recipe.batch_size} of the {len(stage.train)} recordings to "
            "train on. Lower --batch-size, or pass --data.no-drop-last."
        )
    last = len(stage.train) - 1 if data.unreadable == "skip" else 0
    for number in range(last + 1):
        try:
            one = batches_of(sample_of(stage.train, data, number), evaluated(data), 1, cpu, stage.recipe.augment)
            evaluate(stage.model, one, stage.recipe, cpu)
            return
        except DataFaultError as error:
            if number == last == 0:
                raise
            if number == last:
                raise DataFaultError(
                    f"None of the {last + 1:,} recordings to train on can be read, which leaves nothing to show in the "
                    f"place of what is skipped. The last of them: {error}"
                ) from error


def _write_settings(stages: list[Stage]) -> None:
    """Write each recipe.json, also where a resumed run reads its recordings from elsewhere now."""
    for stage in stages:
        stage.folder.mkdir(parents=True, exist_ok=True)
        path, text = stage.folder / RECIPE, json.dumps(stage.recipe.to_json(), indent=2) + "\n"
        if not path.exists() or path.read_text() != text:
            write_atomic(path, text)


def _evaluators(training: Training) -> Team:
    """The processes that divide an evaluation; each does all of it where the weights are divided already."""
    return ALONE if training.sharded else training.team


def _train(
    stage: Stage, root: Path, device: torch.device, console: Console, team: Team = ALONE, test: Part | None = None
) -> tuple[Training, Session]:
    """Train to the last epoch. root: the folder that the user named (the stage's lies in it when it pre-trains)."""
    recipe, folder = stage.recipe, stage.folder
    checkpoint = find_checkpoint(folder)
    torch.manual_seed(recipe.seed)
    if recipe.pretrain is not None and checkpoint is None:
        _initialise(stage.model, folder / PRETRAIN, console)
    else:
        torch.set_rng_state(stage.random)
    log = RunLog(folder / LOG, writes=team.first)
    split = split_of(recipe, team)
    held = evaluation_size(recipe, split)

    def say(step: int, text: str) -> None:
        console.print(escape(text), soft_wrap=True)
        log.write("notice", step, text=text)

    training = start(recipe, stage.model, device, say, team)
    session = Session(
        recipe,
        folder,
        root,
        console,
        log,
        batches_of(stage.train, recipe.data, recipe.batch_size, device, recipe.augment, split),
        None if stage.validation is None else batches_of(stage.validation, evaluated(recipe.data), held, device),
        classes_of(stage.train),
        batches_of(test, evaluated(recipe.data), held, device) if recipe.watch_test and test is not None else None,
        team,
    )
    doing = "pre-training" if folder != root else "training"
    console.print(announcement(training, session.train, session.validation, doing))
    if checkpoint is not None:
        weights, state = read_weights(checkpoint), read_state(checkpoint)
        snapshot.restore(training, weights, state, session.train.recordings, checkpoint)
        console.print(f"continuing after step {training.step} (epoch {training.epoch})")
    if team.first:
        remove_leftovers(folder)
    session.log.rewind(training.step)
    versions = {"spikeloom": spikeloom.__version__, "torch": torch.__version__, "python": platform.python_version()}
    session.log.write(
        "start",
        training.step,
        recipe=recipe.to_json(),
        device=str(device),
        threads=torch.get_num_threads(),
        processes=team.size,
        **versions,
    )
    _epochs(training, session)
    return training, session


def _first_stage(recipe: Recipe) -> Recipe | None:
    """The recipe to train first, with the model, frames, limit and seed of the one that it is for.

    It has no CUDA graphs if that one has them off.

    A reconstruction keeps its one time step; the weights do not depend on their number.
    """
    if recipe.pretrain is None:
        return None
    first = get_recipe(recipe.pretrain)
    T = 1 if first.task == "reconstruct" else recipe.data.T
    root = recipe.data.root if first.data.name == recipe.data.name else first.data.root
    of_events = not (source(first.data).of_images or source(recipe.data).of_images)
    frames = ("encoding", "split", "duration_us", "crop", "pool") if of_events else ()
    limit = first.data.limit if recipe.data.limit is None else recipe.data.limit
    same = {name: getattr(recipe.data, name) for name in ("unreadable", *frames)}
    data = replace(first.data, T=T, root=root, limit=limit, **same)
    graph = "off" if recipe.cuda_graph == "off" else first.cuda_graph
    return replace(
        first, model=recipe.model, model_args=recipe.model_args, data=data, seed=recipe.seed, cuda_graph=graph
    )


def _is_finished(recipe: Recipe, folder: Path) -> bool:
    """Whether the run in the folder has all its epochs behind it."""
    checkpoint = find_checkpoint(folder)
    return checkpoint is not None and read_description(checkpoint).epoch >= recipe.epochs


def _initialise(model: nn.Module, path: Path, console: Console) -> None:
    """Load the weights of a checkpoint; of an autoencoder's, a classifier takes the encoder."""
    checkpoint = require_checkpoint(path)
    weights = read_weights(checkpoint)
    found = network.from_encoder(weights, model.state_dict())
    if found is not None:
        weights, says = found
        console.print(f"starting from {escape(str(checkpoint))}: {escape(says)}", soft_wrap=True)
    load_weights(model, weights, checkpoint)


def _epochs(training: Training, session: Session) -> None:
    """Train all epochs that are left; log, evaluate and save after each."""
    epochs = training.recipe.epochs
    total = epochs * len(session.train)
    team = training.team
    watching = watch() if team.size == 1 else watch(several=True)
    with watching as interruption, epoch_bar(session.console, total, training.step) as bar:
        while training.epoch < epochs:
            finished = Tally()
            try:
                for tally in train_epoch(training, session.train):
                    finished = tally
                    speed = tally.samples / max(tally.seconds, 1e-9)
                    bar.advance(f"{training.epoch + 1}/{epochs}", tally.values(), speed)
                    if _asked(interruption, team) and training.batch < len(session.train):
                        stop(training, session, interruption)
            except DataFaultError as error:
                save_before(error, training, session)
                raise
            values = _epoch_values(training, session, finished)
            session.log.write("epoch", training.step, **values)
            session.console.print(epoch_line(training.epoch, epochs, values), soft_wrap=True)
            save(training, session)
            if _asked(interruption, team) and training.epoch < epochs:
                stop(training, session, interruption)
    if training.updates is not None:
        training.updates.release()
    team.wait()  # what comes next may read the last checkpoint


def _asked(interruption: Interruption, team: Team) -> bool:
    """Whether a signal has come, to any process."""
    found = interruption.signal
    if team.size > 1:
        found = team.largest(found or 0) or None
        interruption.signal = found
    return found is not None


def _epoch_values(training: Training, session: Session, trained: Tally) -> dict[str, Any]:
    values = {
        "epoch": training.epoch,
        "lr": rate_of(training, training.step - 1, len(session.train)),
        **trained.values(),
        "seconds": trained.seconds,
        "samples_per_second": trained.samples / max(trained.seconds, 1e-9),
    }
    parts = {"validation_": session.validation, "test_": session.watched}
    with averaged(training) as model:
        for prefix, batches in parts.items():
            if batches is not None:
                tally = evaluate(model, batches, session.recipe, training.device, _evaluators(training))
                values |= tally.values(prefix)
    if session.recipe.select == "validation":
        training.best = better(training.best, training.epoch, values, snapshot.last_weights(training))
    return values
