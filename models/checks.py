"""Checks that the configurations of several models share."""

from __future__ import annotations

import math


def check_mlp_ratio(mlp_ratio: float, width: int, config: str) -> None:
    """Raise unless `int(width * mlp_ratio)`, the hidden width of the narrowest MLP, is 1 or more.

    Args:
        width: channels of the narrowest stage.
        config: name of the configuration, for the message.
    """
    if not math.isfinite(mlp_ratio) or int(width * mlp_ratio) < 1:
        raise ValueError(
            f"{config}.mlp_ratio is {mlp_ratio}; expected a finite number > 0 that leaves a hidden channel: at least "
            f"1 / {width} here, where {width} is the narrowest stage."
        )
