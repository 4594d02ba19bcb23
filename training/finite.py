"""What a step with a loss or gradient that is not finite ends in."""

from __future__ import annotations

import math


class DivergedError(FloatingPointError):
    """The loss, or its gradient, is not finite."""


def require_finite(loss: float, norm: float, step: int, rate: float) -> None:
    """Refuse a step.

    Args:
        loss, norm: of the step: its loss, and the norm of its gradient. step: its number. rate: its learning rate.

    Raises:
        DivergedError: one of the two is not finite.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = f"The norm of the gradient is {norm}" if math.isfinite(loss) else f"The loss is {loss}"
    raise DivergedError(f"{what} at step {step} (learning rate {rate:.2g}). Lower --lr, or set --optim.clip-norm.")
