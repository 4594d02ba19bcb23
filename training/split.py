"""How the batches of a training are divided: over processes, and within one over several backward passes.

A batch is the recipe's whatever the number of processes: the same recordings, changed by the same random numbers. It is
cut into as many parts as there are passes in all. Mixup and cutmix pair the first recording with the last, the second
with the last but one; a part holds whole pairs, so each recording is mixed with the one that it is mixed with anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spikeloom.training.recipe import Recipe
from spikeloom.training.team import Team


@dataclass(frozen=True)
class Split:
    """parts: of every batch. own: the numbers of this process's. pairs: parts hold first and last recordings alike."""

    parts: int = 1
    own: tuple[int, ...] = (0,)
    pairs: bool = False

    @property
    def whole(self) -> bool:
        """Whether batches stay as they are."""
        return self.parts == 1

    def rows(self, count: int, part: int) -> Tensor:
        """Which of `count` recordings are a part's, in order.

        A part of none stands in for one recording, which `weight` does not count: its process takes part in the step.
        """
        return torch.tensor(self._rows(count, part) or [0], dtype=torch.int64)

    def weight(self, count: int, part: int) -> float:
        """The part's share of the batch."""
        return len(self._rows(count, part)) / count

    def _rows(self, count: int, part: int) -> list[int]:
        units = count // 2 if self.pairs else count
        first = list(range(part * units // self.parts, (part + 1) * units // self.parts))
        if not self.pairs:
            return first
        middle = [units] if count % 2 and part == self.parts - 1 else []
        return [*first, *middle, *(count - 1 - row for row in reversed(first))]


WHOLE = Split()


def split_of(recipe: Recipe, team: Team) -> Split:
    """The parts of a process.

    Raises:
        ValueError: the batch size is no multiple of their number.
    """
    parts = team.size * recipe.accumulate
    pairs = bool(recipe.augment.mixup or recipe.augment.cutmix)
    unit = parts if parts == 1 or not pairs else 2 * parts
    if recipe.batch_size % unit:
        raise ValueError(
            f"Recipe.batch_size is {recipe.batch_size}, for all {team.size} processes and accumulate="
            f"{recipe.accumulate} passes together; expected a multiple of {unit}{', for pairs to mix' * pairs}. Pass "
            f"--batch-size {-(-recipe.batch_size // unit) * unit}; a run that is resumed keeps its batch size, so "
            "resume it with a number of processes that divides it."
        )
    own = range(team.rank * recipe.accumulate, (team.rank + 1) * recipe.accumulate)
    return Split(parts, tuple(own), pairs and parts > 1)


def evaluation_size(recipe: Recipe, split: Split) -> int:
    """Recordings at a time in an evaluation: as many as a part of a batch has."""
    return max(recipe.batch_size // split.parts, 1)
