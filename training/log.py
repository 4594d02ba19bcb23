"""What a run tells: `log.jsonl` for programs, a progress bar and a line per epoch for people."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from spikeloom.training.checkpoint import write_atomic


class RunLog:
    """One JSON object per line; a line has at least `event`, `step` (taken so far) and `time` (seconds since 1970)."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes  # of several processes one writes

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append a line."""
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps({"event": event, "step": step, "time": round(time.time(), 3), **values}) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """All lines; one that was cut off by a crash is left out."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def rewind(self, step: int) -> None:
        """Forget what was logged after a step, because the training goes on from there, and results, found anew."""
        if not self.writes:
            return
        kept = [line for line in self.lines() if line["step"] <= step and line["event"] != "test"]
        write_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))


class EpochBar:
    """The progress bar of a training: steps done of all, loss, accuracy (if any), samples per second, time left."""

    def __init__(self, progress: Progress, total: int, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total, completed=done, values="")

    def advance(self, epoch: str, so_far: dict[str, float], rate: float) -> None:
        """One more step is done; `so_far` are the values of the epoch's tally."""
        accuracy = f"accuracy {so_far['accuracy']:.1%}  " if "accuracy" in so_far else ""
        values = f"loss {so_far['loss']:.3f}  {accuracy}{rate:,.0f} samples/s"
        self._progress.update(self._task, advance=1, description=f"epoch {epoch}", values=values)


@contextmanager
def epoch_bar(console: Console, total: int, done: int) -> Iterator[EpochBar]:
    """Show a progress bar (on a terminal only) while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[values]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield EpochBar(progress, total, done)


def epoch_line(epoch: int, epochs: int, values: dict[str, Any]) -> str:
    """A finished epoch in one line; `values` are those of its log line."""
    parts = [f"epoch {epoch:{len(str(epochs))}d}/{epochs}"]
    parts.append(f"loss {values['loss']:.4f}")
    if "accuracy" in values:
        parts.append(f"accuracy {values['accuracy']:.2%}")
    if "validation_accuracy" in values:
        parts.append(f"validation {values['validation_accuracy']:.2%} (loss {values['validation_loss']:.4f})")
    elif "validation_bits_per_character" in values:
        bits = f"{values['validation_bits_per_character']:.3f} bits per character"
        parts.append(f"validation loss {values['validation_loss']:.4f} ({bits})")
    elif "validation_loss" in values:
        parts.append(f"validation loss {values['validation_loss']:.4f}")
    if "test_accuracy" in values:
        parts.append(f"test {values['test_accuracy']:.2%}")
    return "  ".join([*parts, f"{values['samples_per_second']:,.0f} samples/s", f"{values['seconds']:.1f} s"])
