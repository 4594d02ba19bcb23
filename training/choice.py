"""Which epoch's weights a training ends with, where the recipe selects them by what is held out for validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Best:
    """The epoch with the best accuracy on the held-out part, of several that with the lowest loss, and its weights."""

    epoch: int
    accuracy: float
    loss: float
    weights: Mapping[str, Tensor]

    def beaten_by(self, accuracy: float, loss: float) -> bool:
        """Whether these are better."""
        return (accuracy, -loss) > (self.accuracy, -self.loss)

    def state(self) -> dict[str, Any]:
        """Numbers and tensors, but for the weights, which a checkpoint has anyway."""
        return {"epoch": self.epoch, "accuracy": self.accuracy, "loss": self.loss}


def better(best: Best | None, epoch: int, values: Mapping[str, float], weights: Mapping[str, Tensor]) -> Best:
    """The best epoch, given another one's `validation_accuracy` and `validation_loss`, and its weights (copied)."""
    accuracy, loss = values["validation_accuracy"], values["validation_loss"]
    if best is not None and not best.beaten_by(accuracy, loss):
        return best
    return Best(epoch, accuracy, loss, {name: value.detach().clone() for name, value in weights.items()})


@dataclass(frozen=True)
class Peak:
    """The best accuracy on the test part, and its epoch: a number that some papers report, chosen on that part."""

    epoch: int
    accuracy: float


def peak(lines: Sequence[Mapping[str, Any]]) -> Peak | None:
    """The first best epoch on the test part in a run's log; None: the test part was not watched."""
    watched = [line for line in lines if line["event"] == "epoch" and "test_accuracy" in line]
    if not watched:
        return None
    first = max(watched, key=lambda line: line["test_accuracy"])
    return Peak(first["epoch"], first["test_accuracy"])
