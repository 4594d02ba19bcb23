"""Which activations convert: ReLU, a ReLU that is clipped from above, and quantised ones with a threshold of their own.

A site's module is what the ANN computes there. `ceiling` is what no threshold may exceed (6 for ReLU6);
of an activation that was trained with a clip it is the threshold itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.conversion.qcfs import QCFS
from spikeloom.conversion.quantised import ClippedReLU, QuantisedReLU

TRAINED = (QCFS, ClippedReLU, QuantisedReLU)


class Rectify(nn.Module):
    """ReLU, clipped at `top` if that is not None; never in place."""

    def __init__(self, top: float | None = None) -> None:
        super().__init__()
        self.top = top

    def forward(self, x: Tensor) -> Tensor:
        """Clip."""
        return torch.relu(x) if self.top is None else x.clamp(0, self.top)


def ceiling(site: nn.Module) -> Tensor | None:
    """The largest output of a site, None if there is none."""
    if isinstance(site, TRAINED):
        return site.v_threshold
    top = getattr(site, "top", None)
    return None if top is None else torch.tensor(float(top))


def of_module(module: nn.Module) -> nn.Module | None:
    """The site that a module of the ANN becomes, None if it is no activation that converts."""
    if isinstance(module, TRAINED):
        return module
    if isinstance(module, nn.ReLU6):
        return Rectify(6.0)
    if isinstance(module, nn.Hardtanh):
        return _clipped(module.min_val, module.max_val)
    return Rectify() if isinstance(module, nn.ReLU) else None


def of_call(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> nn.Module | None:
    """The same for a function or the name of a method, with its arguments after the input."""
    if target in (F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"):
        return Rectify()
    if target is F.relu6:
        return Rectify(6.0)
    if target in (F.hardtanh, F.hardtanh_):
        low, high = args[0] if args else -1.0, args[1] if len(args) > 1 else 1.0
        return _clipped(kwargs.get("min_val", low), kwargs.get("max_val", high))
    if target in (torch.clamp, torch.clip, "clamp", "clip", "clamp_", "clip_"):
        low, high = [*args, None, None][:2]
        return _clipped(kwargs.get("min", low), kwargs.get("max", high))
    if target in ("clamp_min", "clamp_min_", torch.clamp_min):
        return _clipped(kwargs.get("min", args[0] if args else None), None)
    return None


def _clipped(low: Any, high: Any) -> nn.Module | None:
    """A site for a clamp from 0 to a number, or without an upper end."""
    if not isinstance(low, (int, float)) or low != 0:
        return None
    if high is None or high == math.inf:
        return Rectify()
    return Rectify(float(high)) if isinstance(high, (int, float)) and high > 0 else None
