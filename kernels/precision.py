"""Arithmetic in the types of its operands where a caller's autocast would take half precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def without_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Autocast is off inside, on the device of `like`; a meta tensor has none."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)
