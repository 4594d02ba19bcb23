"""Counting a network's operations over recordings or random frames, batch by batch, with the accuracy on the way."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

import spikeloom
from spikeloom.datasets.sequences import Sequences
from spikeloom.training.checkpoint import Description, check_classes
from spikeloom.training.data import Batches, load_test, load_train
from spikeloom.training.interrupt import watch
from spikeloom.training.loop import autocast
from spikeloom.training.losses import decide
from spikeloom.training.model_hooks import countable
from spikeloom.training.recipe import Data, Recipe
from spikeloom.training.sources import Part, source, take
from spikeloom.training.text_batches import Text

if TYPE_CHECKING:
    from spikeloom.energy.report import Report

Batch = tuple[Tensor, Tensor | None]
"""Frames [T, B, ...] or images [B, C, H, W], and labels [B], or None where there are none."""


@dataclass
class Counted:
    """What a run over a data set gave.

    Attributes:
        run: the finished `spikeloom.energy` run.
        samples: counted; `wanted`: how many there were. They differ after Ctrl-C.
        correct: right decisions [T] by the mean of the logits of steps 1..T', for T' = 1..T; None without labels.
    """

    run: Any
    wanted: int
    samples: int = 0
    correct: list[int] | None = None

    @property
    def accuracy_by_step(self) -> list[float] | None:
        """Share of right decisions after 1..T steps."""
        return None if self.correct is None else [n / max(self.samples, 1) for n in self.correct]


@dataclass(frozen=True)
class Work:
    """What to count: a network in evaluation mode on its device, and batches for it.

    wanted: samples in all batches. bf16: autocast on a GPU, as in training. setting: what the report says of the run.
    T: steps to show images for; None: the batches are frames [T, B, ...]. readout: the loss that decisions are by.
    """

    model: nn.Module
    batches: Iterable[Batch]
    wanted: int
    device: torch.device
    bf16: bool = False
    strict: bool = False
    setting: dict[str, Any] = field(default_factory=dict)
    T: int | None = None
    readout: str = "rate"


def count_over(work: Work, console: Console) -> Counted:
    """Count every batch; Ctrl-C (or SIGTERM) ends it after the batch that is running, and what was counted stays.

    The network is in its form of inference, such as with whole-number delays. Where its outputs have more steps than
    its input, because delayed spikes still arrive, so many steps of zeros follow the input, in all layers.

    Raises:
        KeyboardInterrupt: interrupted before the first batch was done, or a second time.
    """
    from spikeloom.energy import count

    work.model.eval()
    with (
        countable(work.model) as silent,
        watch() as interruption,
        count(work.model, strict=work.strict) as run,
        _bar(console, work.wanted) as bar,
    ):
        counted = Counted(run, work.wanted)
        for inputs, labels in work.batches:
            frames = inputs if work.T is None else inputs.expand(work.T, *inputs.shape)
            if silent:
                frames = torch.cat([frames, frames.new_zeros(silent, *frames.shape[1:])])
            with torch.no_grad(), autocast(work.device, work.bf16):
                logits = work.model(frames)
            _tally(counted, logits, labels, frames.shape[1], work.readout)
            bar.update(bar.task_ids[0], completed=counted.samples)
            if interruption.signal is not None:
                break
    where = torch.cuda.get_device_name(work.device) if work.device.type == "cuda" else "CPU"
    run.setting.update(work.setting)
    if silent:
        says = run.setting.get("data", "")
        run.setting["data"] = f"{says}; with {silent} steps of zeros behind the input, in which delayed spikes arrive"
    run.setting |= {"device": where, "spikeloom": spikeloom.__version__, "torch": torch.__version__}
    run.setting["python"] = platform.python_version()
    if counted.samples < work.wanted:
        says = f"interrupted: {counted.samples:,} of {work.wanted:,} samples were counted"
        run.setting["interrupted"] = says
        console.print(f"[yellow]{says}[/]")
    return counted


def recordings(
    recipe: Recipe, part: str, samples: int | None, device: torch.device, trained: Description | None = None
) -> Batches:
    """The recordings of a part ("test", "train" or "validation"), or `samples` of them, spread evenly.

    trained: the checkpoint that they are for, if any.

    Raises:
        ValueError: there is no validation part, or the images have other classes than those of the training.
    """
    found = part_of(recipe.data, part)
    if trained is not None:
        check_classes(trained, found)
    if isinstance(found, Text):
        raise ValueError(f"{recipe.data.name} is a text; operations are counted over recordings or images.")
    chosen, data = take(found, samples), recipe.data
    if isinstance(chosen, Sequences) and data.steps is None:  # a count has one number of steps
        data = replace(data, steps=int(chosen.lengths.max()))
    return Batches(chosen, data, recipe.batch_size, device)


def random_frames(
    shape: tuple[int, ...], T: int, samples: int, batch_size: int, density: float, seed: int, device: torch.device
) -> Iterator[Batch]:
    """Frames [T, B, *shape] of 0 and 1, each pixel 1 with probability `density`; the same for every batch size."""
    for start in range(0, samples, batch_size):
        frames = [
            torch.rand((T, 1, *shape), generator=torch.Generator().manual_seed(seed * 1_000_003 + sample)) < density
            for sample in range(start, min(start + batch_size, samples))
        ]
        yield torch.cat(frames, 1).to(device, torch.float32), None


def make_report(counted: Counted, title: str, **options: Any) -> Report:
    """The report of a finished count, with the accuracy on what was counted unless `options` give another.

    options: those of `Report`; one that is None is left to its default.
    """
    by_step = counted.accuracy_by_step
    if counted.correct is not None and by_step is not None:
        setting = counted.run.setting
        unit = setting.get("unit", "recordings")
        note = f"{counted.correct[-1]:,} of {counted.samples:,} {unit}; {setting.get('data', '')}"
        options = {"accuracy": by_step[-1], "accuracy_note": note, "accuracy_by_step": by_step, **options}
    given = {name: value for name, value in options.items() if value is not None}
    report: Report = counted.run.report(title=title, **given)
    return report


def steps_of(recipe: Recipe) -> int | None:
    """How often an image is shown; None: the data are frames of every step."""
    return recipe.data.T if source(recipe.data).of_images else None


def says_of(data: Data, part: str) -> str:
    """`saccade_mnist, test part: simulated events of MNIST images, not N-MNIST`."""
    return f"{data.name}, {part} part: {source(data).says}"


def part_of(data: Data, part: str) -> Part:
    """The recordings (or text) of a part: "test", "train" or "validation".

    Raises:
        ValueError: there is no validation part.
    """
    if part == "test":
        return load_test(data)
    train, held = load_train(data)
    found = train if part == "train" else held
    if found is None:
        raise ValueError("The network was trained without a validation part. Pass --part test or --part train.")
    return found


def _tally(counted: Counted, logits: Any, labels: Tensor | None, samples: int, readout: str) -> None:
    """Add a batch; decisions after T' steps are those of the logits so far."""
    counted.samples += samples
    if labels is None or not isinstance(logits, Tensor) or logits.dim() != 3:
        return
    right = [int((decide(logits[: t + 1], readout) == labels).sum()) for t in range(len(logits))]
    before = counted.correct or [0] * len(right)
    counted.correct = [a + b for a, b in zip(before, right, strict=True)]


def _bar(console: Console, total: int) -> Progress:
    columns = (
        TextColumn("counting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("samples"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    progress.add_task("", total=total)
    return progress
