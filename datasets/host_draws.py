"""Random numbers that were drawn on the host, on their way to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(drawn: Tensor, device: torch.device) -> Tensor:
    """A few numbers on a device; to a GPU they go through pinned memory, so that the host does not wait for it."""
    if device.type == "cuda" and drawn.device.type == "cpu":
        return drawn.pin_memory().to(device, non_blocking=True)
    return drawn.to(device)
