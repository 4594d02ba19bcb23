"""What a training says at its end about energy: synaptic operations and joules per inference against the same ANN."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.markup import escape

from spikeloom.training.checkpoint import load_model
from spikeloom.training.energy_count import Work, count_over, make_report, recordings, says_of, steps_of
from spikeloom.training.loop import Tally
from spikeloom.training.recipe import Recipe
from spikeloom.training.sources import source

if TYPE_CHECKING:
    from spikeloom.energy.report import Report

MOST = 1000
"""Recordings that are counted at the end of a training; `spikeloom energy RUN` counts all."""
JSON, PAGE = "energy.json", "report.html"


def report_energy(
    checkpoint: Path, recipe: Recipe, device: torch.device, console: Console, tested: Tally | None = None
) -> Report:
    """Count on the test part (at most `MOST` recordings), print the headline, write `energy.json` and `report.html`.

    Both files go into the run folder; the page only where jinja2 is installed.

    Args:
        checkpoint: a folder of `save_checkpoint`.
        tested: the result on the whole test part, for the accuracy; None: that on the recordings that are counted.
    """
    from spikeloom.energy.words import cautions, headline, verdict

    model, description = load_model(checkpoint)
    folder = checkpoint.parent
    batches = recordings(recipe, "test", MOST, device)
    setting = {
        "network": f"{description.model}, {folder.name}",
        "model": description.model,
        "checkpoint": str(checkpoint),
        "data": says_of(recipe.data, "test"),
        "input": "recordings",
        "unit": source(recipe.data).unit,
    }
    model = model.to(device).to(memory_format=torch.channels_last)
    work = Work(
        model,
        batches.in_order(),
        batches.recordings,
        device,
        recipe.bf16,
        setting=setting,
        T=steps_of(recipe),
        readout=recipe.loss.name,
    )
    counted = count_over(work, console)
    accuracy: dict[str, Any] = {}
    if tested is not None:
        note = f"{tested.correct:,} of {tested.samples:,} {source(recipe.data).unit}; {setting['data']}"
        accuracy = {"accuracy": tested.accuracy, "accuracy_note": note}
    report = make_report(counted, setting["network"], **accuracy)
    said = verdict(report)
    console.print(
        f"energy on {counted.samples:,} test {source(recipe.data).unit}: {escape(headline(report))}", soft_wrap=True
    )
    console.print(f"[bold]{escape(said.text)}[/]", soft_wrap=True)
    for caution in cautions(report):
        console.print(f"[yellow]{escape(caution.text)}[/]", soft_wrap=True)
    _write(report, folder, console)
    return report


def _write(report: Report, folder: Path, console: Console) -> None:
    written = [report.to_json(folder / JSON)]
    if find_spec("jinja2") is not None:
        written.append(report.to_html(folder / PAGE))
    else:
        console.print(
            "no page was written: it needs jinja2, pip install 'spikeloom[report]'", soft_wrap=True, markup=False
        )
    console.print(f"energy report in {escape(' and '.join(map(str, written)))}", soft_wrap=True)
