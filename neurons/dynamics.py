"""Pieces that several neurons share, in SpikingJelly's order of operations, so that spikes are equal bit for bit."""

from __future__ import annotations

from typing import Any

from spikeloom.kernels import detach, where


def charge(x: Any, v: Any, tau: Any, v_reset: Any, decay_input: bool) -> Any:
    """Membrane before firing: a leak towards `v_reset` (0 where that is None) plus input.

    `decay_input`: h = v + (x - (v - v_reset)) / tau, so that a constant input is what the membrane tends to;
    otherwise h = v - (v - v_reset) / tau + x.
    """
    above_rest = v if v_reset is None else v - v_reset
    if decay_input:
        return v + (x - above_rest) / tau
    return v - above_rest / tau + x


def reset(h: Any, s: Any, v_threshold: Any, v_reset: Any, detach_reset: bool) -> Any:
    """Membrane after firing.

    Hard reset (`v_reset` is a number): v = (1 - s) h + s v_reset. Soft reset (None): v = h - s v_threshold.
    `detach_reset` keeps gradient from flowing through `s` here; the spike that is the output keeps its gradient.
    """
    if v_reset is None:
        return h - (detach(s) if detach_reset else s) * v_threshold
    if detach_reset:
        return where(detach(s), v_reset, h)
    return (1.0 - s) * h + s * v_reset
