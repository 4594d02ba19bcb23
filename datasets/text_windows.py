"""Windows of a text for a language model: random ones for training, overlapping ones for evaluation.

A window of `context` + 1 tokens gives inputs and targets one token apart. Training draws as SpikeGPT's code does (R.-J.
Zhu et al., arXiv 2302.13939): the start is uniform over 0 ... N - (context + 1) - 1, so windows overlap, repeat, and
the very last window of the text is never drawn; an epoch is a number of windows that the recipe chooses. Only the
generator is ours: it depends on (seed, epoch, batch), so that a run which is continued draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from spikeloom.datasets.token_ids import Ids, Tokens, as_integers, require_tokens

IGNORED = -100  # the target that torch's cross_entropy leaves out

_STREAM = 2  # 0 and 1 are the orders and augmentations of training


class TextWindows:
    """Inputs and targets `[B, context]` int64 of a text `[N]`, which may be a memory map: only windows are copied.

    Raises:
        ValueError: tokens are not an integer array `[N]`; context is not positive, or N < context + 2.
    """

    def __init__(self, tokens: Tokens, context: int) -> None:
        require_tokens(tokens)
        if context < 1:
            raise ValueError(f"context is {context}; expected 1 token or more.")
        if len(tokens) < context + 2:
            raise ValueError(
                f"The text has {len(tokens)} tokens; windows of context {context} take {context + 2} or more. "
                "Choose a shorter context or a longer text."
            )
        self.tokens = tokens
        self.context = context

    def random(self, batch_size: int, seed: int, epoch: int, batch: int) -> tuple[Tensor, Tensor]:
        """The random windows of a batch of training; the same numbers give the same windows, in any order of calls.

        Several processes draw the whole batch and take their rows, or number their batches apart.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
        # NumPy rejects and draws again, so the starts of a text of any length are uniform; torch.randint takes a
        # remainder, which favours the first ones of a long text
        generator = np.random.default_rng(np.random.SeedSequence((seed, _STREAM, epoch, batch)))
        return self.at(generator.integers(0, len(self.tokens) - (self.context + 1), batch_size))

    def sliding(self, stride: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All windows `stride` apart, for evaluation: each token but the first is a target once.

        A target that an earlier window has had is `IGNORED` (-100), which torch's cross_entropy leaves out. Beyond the
        first window every target has `context - stride` + 1 tokens or more before it; the last window ends with the
        text. The last batch may be smaller. Sum the losses and divide by N - 1.

        Raises:
            ValueError: stride is not 1 to context, or batch_size is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
        count = self.sliding_count(stride)
        return (
            self._fresh(np.arange(first, min(first + batch_size, count)), stride)
            for first in range(0, count, batch_size)
        )

    def sliding_count(self, stride: int) -> int:
        """Number of windows that `sliding` gives."""
        if not 1 <= stride <= self.context:
            raise ValueError(
                f"stride is {stride}; expected 1 to the context, {self.context}: a longer one would skip tokens."
            )
        return 1 + -(-self._last // stride)

    def at(self, starts: Ids) -> tuple[Tensor, Tensor]:
        """Inputs and targets `[B, context]` of the windows that begin at `starts` `[B]`.

        Raises:
            ValueError: starts are not one-dimensional integers, or a window reaches beyond the text.
        """
        first = as_integers(starts, "starts")
        if len(first) and (first.min() < 0 or first.max() > self._last):
            raise ValueError(f"starts are from {first.min()} to {first.max()}; expected 0 to {self._last}.")
        places = first.astype(np.int64)[:, None] + np.arange(self.context + 1)  # [B, context + 1]
        windows = torch.from_numpy(np.asarray(self.tokens[places]).astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    @property
    def _last(self) -> int:
        """Start of the last window."""
        return len(self.tokens) - 1 - self.context

    def _fresh(self, numbers: np.ndarray[tuple[int], np.dtype[np.int64]], stride: int) -> tuple[Tensor, Tensor]:
        """Windows `numbers` `[B]` of the sliding ones, without the targets of those before them."""
        starts = np.minimum(numbers * stride, self._last)  # the last one is moved back so that it ends with the text
        inputs, targets = self.at(starts)
        # targets of a window from s are the tokens s + 1 to s + context; the window before began at (number - 1) stride
        seen = np.where(numbers == 0, 0, (numbers - 1) * stride + self.context - starts)
        old = torch.arange(self.context) < torch.from_numpy(seen)[:, None]
        return inputs, targets.masked_fill(old, IGNORED)
