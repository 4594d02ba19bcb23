"""Whole models from the state dict and constructor arguments of the official code."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from spikeloom_tests.golden.attention.rebuilt import File, Rebuilt, fires, owner
from torch import Tensor, nn

from spikeloom.models import from_official


def whole(file: File, family: str, others: Mapping[str, str] | None = None, **options: Any) -> Rebuilt:
    """A whole model: images as they are, event frames [B, T, C, H, W] with time first, logits averaged over time."""
    if file.inputs["x"].ndim == 5:
        options.setdefault("T", None)  # as many steps as the frames have
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*never reads", UserWarning)
        model = from_official(family, file.config, file.state, **options)
    return Rebuilt(model, owner(model, family), fires(model, family, others), call)


def call(model: nn.Module, x: Tensor) -> Tensor:
    """Mean logits `[B, K]`."""
    logits: Tensor = model(x.transpose(0, 1) if x.ndim == 5 else x)
    return logits.mean(0)
