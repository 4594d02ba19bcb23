"""Sums over the samples of an epoch or an evaluation, and what is said of them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Tally:
    """Sums over samples, in Python floats, so that they are saved and continued exactly.

    correct: samples that were classified correctly; None: the task has no labels. tokens_per_character: of a text that
    was evaluated, whose samples are the predicted tokens; None elsewhere.
    """

    loss: float = 0.0
    correct: int | None = 0
    samples: int = 0
    seconds: float = 0.0
    tokens_per_character: float | None = None

    def add(self, loss: float, correct: int | None, samples: int, seconds: float = 0.0) -> None:
        """Take in a batch, given its mean loss."""
        self.loss += loss * samples
        self.correct = None if correct is None else (self.correct or 0) + correct
        self.samples += samples
        self.seconds += seconds

    @property
    def mean_loss(self) -> float:
        """Mean loss per sample."""
        return self.loss / max(self.samples, 1)

    @property
    def accuracy(self) -> float:
        """Share of samples whose largest mean logit is their label's; nan without labels."""
        return math.nan if self.correct is None else self.correct / max(self.samples, 1)

    @property
    def perplexity(self) -> float:
        """Of a text: e to the mean loss."""
        return math.exp(min(self.mean_loss, 700.0))

    @property
    def bits_per_character(self) -> float:
        """Of a text: the loss of its tokens in bits, by the number of its Unicode characters; nan elsewhere."""
        share = self.tokens_per_character
        return math.nan if share is None else self.mean_loss / math.log(2) * share

    def values(self, prefix: str = "") -> dict[str, float]:
        """What is logged and shown: the mean loss, and what else the task has."""
        shown = {f"{prefix}loss": self.mean_loss}
        if self.tokens_per_character is not None:
            shown |= {
                f"{prefix}bits_per_character": self.bits_per_character,
                f"{prefix}perplexity": self.perplexity,
            }
        return shown if self.correct is None else {**shown, f"{prefix}accuracy": self.accuracy}
