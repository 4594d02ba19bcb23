"""A training as tensors and numbers, and back: all that the next step depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeloom.models.files import CheckpointError, load_weights
from spikeloom.training.choice import Best
from spikeloom.training.loop import Tally, Training, settle
from spikeloom.training.optim import load_optimizer_state, optimizer_state
from spikeloom.training.parallel import SHARDS, load_parts, load_whole


def weights_of(training: Training) -> dict[str, Tensor]:
    """The weights to use: those of the best epoch where the recipe selects them, else the averaged ones, if any."""
    if training.best is not None:
        return dict(training.best.weights)
    return last_weights(training)


def last_weights(training: Training) -> dict[str, Tensor]:
    """The weights after the last step: the averaged ones where there are any."""
    return dict(training.model.state_dict() if training.ema is None else training.ema.weights)


def take(training: Training, recordings: int) -> dict[str, Any]:
    """Everything but `weights_of(training)`; `recordings` is the size of the training part, checked by `restore`.

    Steps that were sent to the device are waited for.

    Raises:
        DivergedError: one of them was not taken.
    """
    settle(training)
    state: dict[str, Any] = {
        "progress": {"epoch": training.epoch, "batch": training.batch, "step": training.step, "recordings": recordings},
        "tally": asdict(training.tally),
        "rng": torch.get_rng_state(),
    }
    if not training.sharded:  # else each process writes its part, with the weights' own
        state["optimizer"] = optimizer_state(training.optimizer)
    if training.device.type == "cuda":
        state["cuda_rng"] = torch.cuda.get_rng_state(training.device)
    if training.ema is not None or training.best is not None:
        state["own_weights"] = _on_cpu(training.model.state_dict())
    if training.ema is not None:
        state["ema_updates"] = training.ema.updates
    if training.best is not None:
        state["best"] = training.best.state()
        if training.ema is not None:
            state["averaged"] = _on_cpu(training.ema.weights)
    return state


def restore(
    training: Training, weights: Mapping[str, Tensor], state: Mapping[str, Any], recordings: int, where: Path
) -> None:
    """Put a training that has just started into the saved state, torch's random state included.

    Raises:
        CheckpointError: the saved state is of another model, or the training part has another size now.
        ValueError: the training has taken steps; its graphs, if any, would go on with the optimizer's state of before.
    """
    if training.step or training.epoch or (training.updates is not None and training.updates.sent):
        raise ValueError(
            f"restore got a training after step {training.step}; expected one before its first step. Make one with "
            "start(...)."
        )
    try:
        progress = state["progress"]
        if progress["recordings"] != recordings:
            raise CheckpointError(
                f"{where} was trained on {progress['recordings']} recordings, but the data set has "
                f"{recordings} now. Restore the data (--root), or start a new run in another folder."
            )
        if not _restored_parts(training, weights, state, where):
            load_weights(training.model, state.get("own_weights", weights), where)
            load_optimizer_state(training.optimizer, state["optimizer"])
        if training.ema is not None:
            training.ema.load(state.get("averaged", weights), int(state["ema_updates"]))
        if "best" in state:
            moved = {name: value.to(training.device) for name, value in weights.items()}
            training.best = Best(**state["best"], weights=moved)
        training.epoch, training.batch, training.step = progress["epoch"], progress["batch"], progress["step"]
        training.tally = Tally(**state["tally"])
        torch.set_rng_state(state["rng"])
        if training.device.type == "cuda" and "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"], training.device)
    except KeyError as error:
        raise CheckpointError(
            f"{where} lacks the entry {error}; expected a state of this version of spikeloom. Its "
            f"weights can start another run: --init {where}."
        ) from error


def _restored_parts(training: Training, weights: Mapping[str, Tensor], state: Mapping[str, Any], where: Path) -> bool:
    """Load weights and averages where they are divided, in the files or in the processes; False: in neither."""
    step = int(state["progress"]["step"])
    if (where / SHARDS).is_dir():
        load_parts(str(where / SHARDS), training.model, training.optimizer, step)
    elif training.sharded:
        load_whole(training.model, training.optimizer, weights, state["optimizer"]["state"], step)
    else:
        return False
    return True


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in weights.items()}
