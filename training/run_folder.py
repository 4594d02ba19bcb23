"""The folder of a run, and whether a training may write there."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from spikeloom.models.files import PART
from spikeloom.training.folder_lock import LOCK
from spikeloom.training.recipe import Recipe, differences, read_recipe

RECIPE = "recipe.json"
"""Its settings."""


def check_folder(recipe: Recipe, folder: Path, resume: bool) -> None:
    """Refuse to mix two runs in one folder."""
    if not folder.exists() or (folder.is_dir() and not _contents(folder)):
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
    begun = read_recipe(folder / RECIPE)
    # recordings may have been moved, and the run go on on another machine
    data = replace(begun.data, root=recipe.data.root, workers=recipe.data.workers, unreadable=recipe.data.unreadable)
    begun = replace(begun, data=data, cuda_graph=recipe.cuda_graph, accumulate=recipe.accumulate)
    changed = differences(begun.to_json(), recipe.to_json())
    if changed:
        raise ValueError(
            f"The run in {folder} has other settings: {'; '.join(changed)}. Resume it as it was with "
            f"`spikeloom train {shlex.quote(str(folder))} --resume`, or start another with --out."
        )


def _contents(folder: Path) -> list[Path]:
    """What lies in a folder, but for what a training leaves that ended before its first file."""
    return [path for path in folder.iterdir() if path.name != LOCK and PART not in path.name]
