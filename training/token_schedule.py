"""The learning rate of RWKV and SpikeGPT, by the number of tokens that were trained on.

With f = lowest / lr and n tokens up to now: lr (f + (1 - f) n / warmup) while n < warmup, then
lr ((1 + f) / 2 + (1 - f) / 2 cos(pi p)), p = (n - warmup) / (total - warmup), at most 1.

Source: the authors' code (ridgerchu/SpikeGPT, commit 029f86f). The rate changes behind every step, so the first step is
made with `lr` whatever the warm-up; what they leave open, the rate behind `total` tokens, stays at `lowest` here.
"""

from __future__ import annotations

import math


def rate_at_token(tokens: int, lr: float, lowest: float, warmup: int, total: int) -> float:
    """The rate for the step after so many tokens.

    Raises:
        ValueError: a number out of range.
    """
    if not 0 < lowest <= lr or not 0 <= warmup <= total or tokens < 0:
        raise ValueError(
            f"rate_at_token got tokens={tokens}, lr={lr}, lowest={lowest}, warmup={warmup}, total={total}; expected "
            "0 < lowest <= lr, 0 <= warmup <= total and tokens >= 0."
        )
    share = lowest / lr
    if tokens < warmup:
        return lr * (share + (1 - share) * tokens / warmup)
    progress = min((tokens - warmup) / max(1, total - warmup), 1.0)
    return lr * ((1 + share) / 2 + (1 - share) / 2 * math.cos(math.pi * progress))
