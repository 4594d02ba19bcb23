"""Checkpoints: a folder with `model.safetensors`, `config.json` and, to continue the training, `state.pt`.

That of a language model has its `tokenizer.json` as well.

A checkpoint is written under another name and renamed when it is whole and on disk, so that a folder called
`checkpoint-<step>` is never half of one; older ones are deleted after that. Nothing is unpickled but plain tensors and
numbers (`weights_only=True`).
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.datasets.image_files import ImageFiles
from spikeloom.datasets.store_parts import StorePart
from spikeloom.datasets.token_ids import Tokenizer
from spikeloom.models.files import (
    CONFIG,
    PART,
    WEIGHTS,
    CheckpointError,
    load_weights,
    read_weights,
    require_file,
    sync,
    write_config,
    write_weights,
)
from spikeloom.training.faults import writing
from spikeloom.training.network import rebuild
from spikeloom.training.recipe import Recipe
from spikeloom.training.sources import Part

STATE = "state.pt"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Description:
    """What `config.json` holds: how to build the model again, and how it was trained.

    model_config: the whole configuration of the model, so that a later change of a registered default changes nothing.
    classes: names of the classes by label, of images in files; None: the data set's own, or of an older version.
    """

    model: str
    model_config: Mapping[str, Any]
    recipe: Recipe
    step: int
    epoch: int
    classes: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        classes = {} if self.classes is None else {"classes": list(self.classes)}
        return {
            "model": self.model,
            "model_config": dict(self.model_config),
            "recipe": self.recipe.to_json(),
            "step": self.step,
            "epoch": self.epoch,
            **classes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Description:
        """What `to_json` gave."""
        recipe = Recipe.from_json(data["recipe"])
        step, epoch, classes = int(data["step"]), int(data["epoch"]), data.get("classes")
        names = None if classes is None else tuple(map(str, classes))
        return cls(str(data["model"]), dict(data["model_config"]), recipe, step, epoch, names)


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that it holds either the old text or the whole new one, whatever happens in between."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name + PART, delete=False) as part:
        try:
            part.write(text)
            part.flush()
            os.fsync(part.fileno())
            os.chmod(part.name, 0o644)  # files of tempfile are for their owner alone
            os.replace(part.name, path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise


def save_checkpoint(
    run: Path,
    description: Description,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write `run/checkpoint-<step>`, then delete the older ones; returns the folder. tokenizer: of a language model.

    Raises:
        CheckpointWriteError: there is no room; what was there before is whole.
    """
    part = begin_checkpoint(run, description.step)
    return finish_checkpoint(run, part, description, weights, state, tokenizer)


def begin_checkpoint(run: Path, step: int) -> Path | None:
    """A new folder to write the checkpoint of a step into; None: there is one."""
    remove_leftovers(run)
    target = _target(run, step)
    with writing(None, run):
        return None if target.exists() else Path(tempfile.mkdtemp(dir=run, prefix=target.name + PART))


def finish_checkpoint(
    run: Path,
    part: Path | None,
    description: Description,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write what `save_checkpoint` writes into a begun folder, give it its name, and delete the older ones."""
    target = _target(run, description.step)
    if part is not None:
        with writing(part, run):
            write_weights(part, weights)
            torch.save(dict(state), part / STATE)
            write_config(part, description.to_json())
            if tokenizer is not None:
                tokenizer.save(part)
            for file in part.rglob("*"):
                sync(file)
            part.chmod(0o755)  # mkdtemp makes folders for their owner alone
            os.rename(part, target)
        sync(run)
    for other in _checkpoints(run):
        if other != target:
            shutil.rmtree(other)
    return target


def _target(run: Path, step: int) -> Path:
    return run / f"checkpoint-{step:06d}"


def remove_leftovers(run: Path) -> None:
    """Delete what an interrupted write left behind."""
    for path in run.glob(f"*{PART}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def find_checkpoint(path: Path) -> Path | None:
    """The checkpoint folder that a path means: itself, the newest in a run folder, or the folder of a weights file."""
    if path.name == WEIGHTS:
        return path.parent
    if (path / CONFIG).is_file():
        return path
    return max(_checkpoints(path), key=_step_of, default=None) if path.is_dir() else None


def require_checkpoint(path: Path) -> Path:
    """As `find_checkpoint`.

    Raises:
        CheckpointError: there is none, with what lies there instead.
    """
    found = find_checkpoint(path)
    if found is not None:
        return found
    if not path.exists():
        raise CheckpointError(f"There is nothing at {path}; expected a run folder or a checkpoint folder.")
    held = ", ".join(sorted(item.name for item in path.iterdir())[:8]) if path.is_dir() else "a file"
    raise CheckpointError(
        f"{path} is no checkpoint (it holds {held or 'nothing'}); expected a folder with {CONFIG} and {WEIGHTS}, or a "
        "run folder with checkpoint-<step> in it."
    )


def read_description(checkpoint: Path) -> Description:
    """Read `config.json`.

    Raises:
        CheckpointError: it is missing, damaged, or of another version.
    """
    path = checkpoint / CONFIG
    require_file(path)
    try:
        return Description.from_json(json.loads(path.read_text()))
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the entry {error}; expected one written by `spikeloom train`.") from error
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read `state.pt`, on the CPU.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = checkpoint / STATE
    require_file(path)
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is damaged or cut off, so the training cannot go on from it. The weights beside "
            f"it can start another: --init {checkpoint}. ({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from error
    return state


def check_classes(description: Description, recordings: Part) -> None:
    """Refuse images or stored events of classes other than the trained ones: their labels are other outputs' numbers.

    Of a checkpoint without names of classes only their number is known.

    Raises:
        ValueError: the classes differ.
    """
    trained, recipe = description.classes, description.recipe
    if not isinstance(recordings, ImageFiles | StorePart) or recipe.task != "classify":
        return
    names = recordings.classes
    where = recordings.says.partition(":")[0]
    if trained is not None:
        if names != trained:
            own, other = next((a, b) for a, b in zip_longest(trained, names) if a != b)
            raise ValueError(
                f"The network was trained on other classes ({len(trained)}) than those of {where} ({len(names)}): the "
                f"first that differs is {own or 'none'} in training and {other or 'none'} here. Labels are numbers in "
                "the sorted order of the class folders' names; pass a --root with the same names."
            )
        return
    outputs = description.model_config.get("num_classes")
    if outputs != len(names) and "num_classes" not in recipe.model_args:
        raise ValueError(
            f"The network was trained on {outputs} classes, and {where} has {len(names)}. Pass a --root with the "
            "classes of the training."
        )


def load_model(path: Path, T: int | None = None) -> tuple[nn.Module, Description]:
    """Build the model of a checkpoint and load its weights (on the CPU, in evaluation mode).

    T: other time steps than in training, for a model that is built for a number of them (weights do not depend on it).
    That of a pre-training by reconstruction is a `MaskedAutoencoder`, whose `encoder` is the model.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or weights that do not fit the configuration.
    """
    checkpoint = require_checkpoint(path)
    description = read_description(checkpoint)
    config = dict(description.model_config)
    if T is not None and "T" in config:
        config["T"] = T
    model = rebuild(replace(description.recipe, model=description.model), config)
    load_weights(model, read_weights(checkpoint), checkpoint)
    return model.eval(), description


def _checkpoints(run: Path) -> list[Path]:
    return [path for path in run.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
