"""A model as a folder: `model.safetensors` and `config.json`, with the registered name and the whole configuration.

    save_model(model, "my_spikformer");  model = load_model("my_spikformer", T=8)

The folder is written under another name and renamed when it is whole and on disk; one that it replaces is deleted after
that. The checkpoints of a training have the same two files, so they are read as well. Nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spikeloom.models.registry import create_model, model_config, name_of

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PART = ".part-"
_LISTED = 8


class CheckpointError(ValueError):
    """A saved model is missing, damaged, or another one."""


def save_model(model: nn.Module, folder: str | Path) -> Path:
    """Write a registered model's weights and configuration; returns the folder.

    Weights keep their type; a folder of a saved model is replaced.

    Raises:
        ValueError: the model's class is not registered, or the folder holds other things too.
    """
    name, target = name_of(model), Path(folder).resolve()
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=target.name + PART))
    try:
        write_weights(part, model.state_dict())
        write_config(part, {"model": name, "model_config": model_config(model)})
        _sync_all(part)
        _put_in_place(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return Path(folder)


def load_model(folder: str | Path, **overrides: Any) -> nn.Module:
    """Build the model of a folder that `save_model` or a training wrote, with its weights, on the CPU, to evaluate.

    Args:
        overrides: fields of the configuration to replace, such as `T`; the weights must fit what results. Weights of
            one floating-point type keep it, those of several become float32.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights do not fit (what is missing, too many or of
            another shape is listed).
        ValueError: no such model, or no such field.
    """
    path = Path(folder)
    path = path.parent if path.name == WEIGHTS else path
    if not (path / CONFIG).is_file() and not (path / WEIGHTS).is_file():
        raise CheckpointError(f"{path} is no saved model: {_what_lies_at(path)}; expected {WEIGHTS} and {CONFIG}.")
    name, config = read_config(path)
    model = create_model(name, **{**config, **overrides})
    weights = read_weights(path)
    types = {value.dtype for value in weights.values() if value.is_floating_point()}
    if len(types) == 1:
        model.to(types.pop())
    load_weights(model, weights, path)
    return model.eval()


def write_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors`."""
    # safetensors wants gapless row-major tensors; kernels may lie channels-last
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS)


def write_config(folder: Path, description: Mapping[str, Any]) -> None:
    """Write `config.json`."""
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n")


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """The registered name and the configuration in `config.json`, whatever else that holds.

    Raises:
        CheckpointError: it is missing, damaged, or of another kind.
    """
    path = folder / CONFIG
    require_file(path)
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    name, config = (found.get("model"), found.get("model_config")) if isinstance(found, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(config, dict):
        raise CheckpointError(
            f"{path} does not describe a model; expected the entries 'model' (a registered name) and 'model_config'."
        )
    return name, config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read `model.safetensors`, on the CPU.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = folder / WEIGHTS
    require_file(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or cut off ({error}). Copy it again, or train anew.") from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Load weights into a model that they fit exactly.

    Raises:
        CheckpointError: names or shapes differ; the first of them are listed.
    """
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in weights]
    problems += [f"{name} is not in the model" for name in weights if name not in own]
    problems += [
        f"{name} is {list(weights[name].shape)}, the model's is {list(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        more = f", and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise CheckpointError(
            f"{where} holds another model: {'; '.join(problems[:_LISTED])}{more}. Choose the model and the options "
            f"that it was trained with (they are in its {CONFIG}); reset_classifier changes the classes afterwards."
        )
    model.load_state_dict(dict(weights))


def require_file(path: Path) -> None:
    """Raise unless a file of a checkpoint is there."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; a checkpoint has {WEIGHTS} and {CONFIG} (and state.pt, to continue a training)."
        )


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_all(part: Path) -> None:
    for file in part.iterdir():
        sync(file)
    part.chmod(0o755)  # mkdtemp makes folders for their owner alone


def _check_replaceable(target: Path) -> None:
    """Raise unless there is nothing, an empty folder, or a saved model and nothing else."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; expected a folder to write {WEIGHTS} and {CONFIG} into.")
    others = sorted({file.name for file in target.iterdir()} - {WEIGHTS, CONFIG}) if target.exists() else []
    if others:
        raise ValueError(
            f"{target} holds other things too ({', '.join(others[:_LISTED])}), which would be lost. Choose a folder "
            "that is new, or that holds a saved model alone."
        )


def _put_in_place(part: Path, target: Path) -> None:
    """Give a whole folder its name; what had it is moved aside until then, and never lost."""
    if not target.exists():
        os.rename(part, target)
        sync(target.parent)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=target.name + ".old-"))
    try:
        os.rename(target, old)
        os.rename(part, target)
    except BaseException:
        old.rmdir() if target.exists() else os.rename(old, target)
        raise
    sync(target.parent)
    shutil.rmtree(old)


def _what_lies_at(path: Path) -> str:
    if not path.is_dir():
        return "it is a file" if path.exists() else "there is nothing"
    held = sorted(item.name for item in path.iterdir())
    return f"it holds {', '.join(held[:_LISTED]) or 'nothing'}"
