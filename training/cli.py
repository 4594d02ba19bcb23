"""`spikeloom train` and `spikeloom eval`."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spikeloom.training.checkpoint import check_classes, load_model, require_checkpoint
from spikeloom.training.energy_count import part_of
from spikeloom.training.energy_report import report_energy
from spikeloom.training.firing import count_spikes, rates_table
from spikeloom.training.interrupt import TrainingInterrupted
from spikeloom.training.loop import Tally
from spikeloom.training.losses import decide
from spikeloom.training.recipe import Recipe, read_recipe
from spikeloom.training.recipes import get_recipe, list_recipes
from spikeloom.training.run import Result, fit, measure, pick_device
from spikeloom.training.run_folder import RECIPE
from spikeloom.training.sources import source
from spikeloom.training.team import FollowedError, current_team, first_process, joined, local_device
from spikeloom.training.text_batches import stride_of

RUNS = Path("runs")
_USAGE = "spikeloom train RECIPE [--out FOLDER] [--resume] [--device DEVICE] [SETTINGS]"
_TYRO = (tyro.conf.FlagCreatePairsOff,)


@dataclass(frozen=True)
class TrainOptions:
    """What `spikeloom train RECIPE` takes besides the recipe's own settings."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: str | None = None
    """Run folder; None: runs/RECIPE, or the first of runs/RECIPE-2, -3, ... that does not exist."""
    resume: bool = False
    """Continue the run in the folder, or the newest run of the recipe."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""
    energy: bool = True
    """At the end of a classifier's training, count synaptic operations on the test part, into energy.json and
    report.html."""


@dataclass(frozen=True)
class EvalOptions:
    """Accuracy (or loss of reconstruction or language) and firing rates of a trained network."""

    checkpoint: tyro.conf.Positional[str]
    """A run folder, a checkpoint folder, its model.safetensors, or a folder of `spikeloom convert`."""
    images: Path | None = None
    """Of a converted network: its images, a file as for `spikeloom convert`, with a tensor 'labels' [N] in it."""
    part: Literal["test", "train", "validation"] = "test"
    """Which recordings: the test part, the training part, or what was held out of that."""
    root: str | None = None
    """Folder of the recordings; None: where they were in training."""
    batch_size: int | None = None
    """Recordings per step; None: as in training."""
    stride: int | None = None
    """Texts: tokens between windows, at most the context; None: as in training."""
    bf16: bool | None = None
    """On a GPU: autocast to bfloat16, or compute in float32; None: as in training."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch-size is {self.batch_size}; expected >= 1.")


def train(argv: list[str]) -> int:
    """`spikeloom train RECIPE ...`: train by a recipe; returns the exit code."""
    if not argv or argv[0].startswith("-"):
        asked = bool({"-h", "--help"} & set(argv))
        _print_recipes(Console(highlight=False, stderr=not asked))
        if asked:
            sys.exit(0)
        return 2
    target, flags = argv[0], argv[1:]
    default, folder, name = _resolve(target)
    options = tyro.cli(
        TrainOptions,
        args=flags,
        default=TrainOptions(default),
        prog=f"spikeloom train {target}",
        description=f"Train by the recipe {name}. Every setting below can be changed.",
        config=_TYRO,
    )
    out = Path(options.out) if options.out else _choose_folder(folder, name, options.resume)
    console = Console(highlight=False)
    try:
        device = pick_device(local_device(options.device))
        with joined(device):
            team = current_team()
            out = Path(team.agreed(str(out)))
            result = fit(options.recipe, out, resume=options.resume, device=str(device), console=console)
    except TrainingInterrupted as stop:
        if first_process():
            console.print(escape(str(stop)), soft_wrap=True)
        return stop.code
    except FollowedError:  # the process that has the error says it
        return 1
    if not team.first:
        return 0
    _print_result(console, result, options.recipe)
    if options.energy and options.recipe.task == "classify":
        report_energy(result.checkpoint, options.recipe, device, console, result.test)
    return 0


def evaluate(argv: list[str]) -> int:
    """`spikeloom eval CHECKPOINT ...`: accuracy and firing rates; returns the exit code."""
    from spikeloom.conversion.files import is_converted

    options = tyro.cli(EvalOptions, args=argv, prog="spikeloom eval", config=_TYRO)
    if is_converted(options.checkpoint):
        return _evaluate_converted(options, Console(highlight=False))
    if options.images is not None:
        raise ValueError(f"{options.checkpoint} is no folder of `spikeloom convert`; --images is for these alone.")
    path = require_checkpoint(Path(options.checkpoint))
    model, description = load_model(path)
    recipe = description.recipe
    if options.root is not None:
        recipe = replace(recipe, data=replace(recipe.data, root=options.root))
    if options.batch_size is not None:
        recipe = replace(recipe, batch_size=options.batch_size)
    if options.bf16 is not None:
        recipe = replace(recipe, bf16=options.bf16)
    if options.stride is not None:
        recipe = replace(recipe, data=replace(recipe.data, stride=options.stride))
    if recipe.task == "language":  # the ids that the network has learned, whatever characters the text has now
        recipe = replace(recipe, data=replace(recipe.data, tokenizer=str(path)))
    packed = part_of(recipe.data, options.part)
    check_classes(description, packed)
    device = pick_device(options.device)
    tally, firing = measure(model.to(device).to(memory_format=torch.channels_last), recipe, device, packed)
    console = Console(highlight=False)
    console.print(rates_table(firing))
    speed = f"{tally.samples / tally.seconds:,.0f} {'tokens' if recipe.task == 'language' else 'samples'}/s"
    if recipe.task == "classify":
        speed = f"loss {tally.mean_loss:.4f}, {speed}"
    console.print(f"{options.part} {_measure(recipe)} {_measured(tally, recipe)}, {speed}", soft_wrap=True)
    return 0


@torch.no_grad()
def _evaluate_converted(options: EvalOptions, console: Console) -> int:
    """A network that `spikeloom convert` wrote, on images of a file."""
    from spikeloom.conversion.shown import show

    given = [name for name in ("root", "stride", "bf16") if getattr(options, name) is not None]
    if given or options.part != "test":
        flags = ", ".join(f"--{name}" for name in (*given, *(["part"] if options.part != "test" else [])))
        raise ValueError(f"{options.checkpoint} is a converted network; it is shown what --images holds, not {flags}.")
    shown, device = show(Path(options.checkpoint), options.images), pick_device(options.device)
    net, right = shown.net.to(device), 0
    with count_spikes(net) as firing:
        for images, labels in shown.batches(options.batch_size or 64, device):
            logits = net(images)
            right += 0 if labels is None else int((decide(logits) == labels).sum())
    fired = {shown.known(name): layer for name, layer in firing.items() if not name.endswith(".watch")}  # looks ahead
    console.print(rates_table(fired))
    steps = f"T = {net.T}" + (f" and {net.latency - net.T} more to look ahead" if net.latency > net.T else "")
    if shown.labels is None:
        says = "no accuracy: the file has no tensor 'labels' [N] beside its 'images'"
    else:
        says = f"accuracy [bold]{right / len(shown.images):.2%}[/] ({right:,} of {len(shown.images):,})"
    console.print(f"{says}; {steps}; {escape(shown.says)}", soft_wrap=True)
    return 0


def _resolve(target: str) -> tuple[Recipe, Path | None, str]:
    """A recipe by name, JSON file or run folder; the run folder, if it is one; a name for its runs."""
    path = Path(target)
    if (path / RECIPE).is_file():
        return read_recipe(path / RECIPE), path, path.name
    if path.suffix == ".json":
        return read_recipe(path), None, path.stem
    return get_recipe(target), None, target


def _choose_folder(folder: Path | None, name: str, resume: bool) -> Path:
    """Where to write when no folder is given: a new one, or, to resume, the newest of the recipe's."""
    if resume and folder is not None:
        return folder
    numbers = {_number(path.name, name) for path in RUNS.glob(f"{name}*")} - {None}
    newest = max((number for number in numbers if number is not None), default=0)
    number = max(newest, 1) if resume else newest + 1
    return RUNS / (name if number == 1 else f"{name}-{number}")


def _number(folder: str, name: str) -> int | None:
    """Which run of a recipe a folder's name stands for: NAME is 1, NAME-2 is 2; None: no run of it."""
    match = re.fullmatch(re.escape(name) + r"(?:-(\d+))?", folder)
    return None if match is None else int(match[1] or 1)


def _print_recipes(console: Console) -> None:
    console.print(f"[bold]Usage[/] {escape(_USAGE)}\n")
    console.print("Train a network by a recipe: a name below, a .json file, or the folder of an earlier run.\n")
    grid = Table.grid(padding=(0, 3))
    for name, says in list_recipes().items():
        grid.add_row(f"  [cyan]{name}[/]", escape(says))
    console.print(grid)
    console.print("\n[cyan]spikeloom train RECIPE --help[/] shows a recipe's settings; a flag changes each of them.")


def _print_result(console: Console, result: Result, recipe: Recipe) -> None:
    console.print(rates_table(result.firing))
    spent = f"epoch {result.epochs} ({result.seconds:.0f} s of training)"
    console.print(f"test {_measure(recipe)} after {spent}: {_measured(result.test, recipe)}", soft_wrap=True)
    if result.peak is not None:
        console.print(
            f"best epoch on the test part: {result.peak.accuracy:.2%} after epoch {result.peak.epoch} (chosen on the "
            "test part itself, as some papers report; not a result on unseen data)",
            soft_wrap=True,
        )
    run = escape(shlex.quote(str(result.checkpoint.parent)))
    console.print(f"saved in {escape(str(result.checkpoint))}; look again with `spikeloom eval {run}`", soft_wrap=True)


def _measure(recipe: Recipe) -> str:
    return {"classify": "accuracy", "reconstruct": "reconstruction loss", "language": "loss"}[recipe.task]


def _measured(tally: Tally, recipe: Recipe) -> str:
    found = source(recipe.data)
    of = f"{tally.samples:,} {found.unit} of {recipe.data.name}: {found.says}"
    if recipe.task == "reconstruct":
        return f"[bold]{tally.mean_loss:.4f}[/] ({escape(of)})"
    if recipe.task == "language":
        windows = f"windows of {recipe.data.context}, stride {stride_of(recipe.data)}"
        return (
            f"[bold]{tally.mean_loss:.4f}[/] nats per token, [bold]{tally.bits_per_character:.3f}[/] bits per "
            f"character, perplexity {tally.perplexity:.2f} ({escape(f'{of}; {windows}')})"
        )
    return f"[bold]{tally.accuracy:.2%}[/] ({escape(f'{tally.correct:,} of {of}')})"
