"""Masks and CutMix for sequences `[B, T, N]` as the code of the delay networks has them (off in its configurations).

For each sample, with probability 0.65 a span of up to `time_mask` steps and with 0.65 one of up to `channel_mask`
channels become 0. Then, with probability 0.5 each, a span of sample i is replaced by that of sample i + 1, and its
shares of the classes are mixed. Source: the code of arXiv:2306.17670; CutMix: Yun et al. 2019, arXiv:1905.04899.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

MASKED, MIXED = 0.65, 0.5


def mask_and_mix(
    x: Tensor, shares: Tensor, time_mask: int, channel_mask: int, generator: np.random.RandomState
) -> tuple[Tensor, Tensor]:
    """Changed copies of sequences `[B, T, N]` and of their shares of the classes `[B, K]`.

    Args:
        time_mask, channel_mask: longest spans, exclusive: a span has 0 ... mask - 1 steps or channels.
        generator: draws in a fixed order, so that the same one gives the same samples.

    Raises:
        ValueError: masks of 0 or as long as the axis, or shares of another batch.
    """
    B, T, N = x.shape
    if not (0 < time_mask < T and 0 < channel_mask < N) or len(shares) != B:
        raise ValueError(
            f"mask_and_mix: {list(x.shape)} with time_mask={time_mask}, channel_mask={channel_mask} and shares of "
            f"{len(shares)} samples; expected masks of at least 1 and below {T} and {N}, and {B} samples."
        )
    x, shares = x.clone(), shares.clone()
    for sample in x:
        if generator.uniform() < MASKED:
            start, stop = _span(generator, T, time_mask)
            sample[start:stop] = 0
        if generator.uniform() < MASKED:
            start, stop = _span(generator, N, channel_mask)
            sample[:, start:stop] = 0
    for i in range(B - 1):
        if generator.uniform() < MIXED:
            share = generator.uniform()
            cut = int(share * T)
            start = generator.randint(0, T - cut)
            x[i, start : start + cut] = x[i + 1, start : start + cut]
            shares[i] = (1 - share) * shares[i] + share * shares[i + 1]
    return x, shares


def _span(generator: np.random.RandomState, length: int, longest: int) -> tuple[int, int]:
    size = generator.randint(0, longest)
    start = generator.randint(0, length - longest)
    return start, start + size
