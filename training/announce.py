"""What a run says before its first step."""

from __future__ import annotations

import torch
from rich.markup import escape

from spikeloom.training.data import AnyBatches, Batches
from spikeloom.training.loop import Training
from spikeloom.training.sources import source


def announcement(training: Training, train: AnyBatches, held: AnyBatches | None, doing: str) -> str:
    """The model, its data, the length of the training and the device, in a line with markup. doing: "training"."""
    recipe = training.recipe
    parameters = sum(p.numel() for p in training.model.parameters())
    where = f"{training.device}" if training.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    where += _divided(training)
    found = source(recipe.data)
    recordings = f"{train.recordings:,} {found.unit}" + (
        f" and {held.recordings:,} held out" if held is not None else ""
    )
    length = f"T = {recipe.data.T}, {recipe.epochs} epochs"
    if found.of_sequences and isinstance(train, Batches):
        length = f"up to {train.steps} steps, {recipe.epochs} epochs"
    if found.of_text:
        length = f"context {recipe.data.context}, {recipe.epochs} epochs of {recipe.data.windows:,} windows"
    return (
        f"{doing} [bold]{escape(recipe.model)}[/] ({parameters:,} parameters) on {recordings} of "
        f"[bold]{escape(recipe.data.name)}[/] ({escape(found.says)}), {length}, seed {recipe.seed}, {where}"
    )


def _divided(training: Training) -> str:
    """Over how many processes and passes a batch goes."""
    recipe, size = training.recipe, training.team.size
    passes = f" in {recipe.accumulate} passes" if recipe.accumulate > 1 else ""
    if size == 1:
        return passes and f", batches of {recipe.batch_size}{passes}"
    how = "weights divided (FSDP2)" if training.sharded else "a copy in each (DDP)"
    return f"; {size} processes, {how}: batches of {recipe.batch_size}, {recipe.batch_size // size} each{passes}"
