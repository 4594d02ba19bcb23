"""Samples leave a batch while a network runs step by step: what is left of a `Stream` for the others.

The state of a layer has the batch along some axis, the first of nearly all neurons, the second of delay lines. It is
found, not assumed: one step with one sample and one with two give states that differ in that axis alone. A state that
does not depend on the batch (a count of steps) is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.neurons import Stream

Axes = Any
"""For each tensor of a state, in the same nesting of dicts and tuples, the batch axis; None: it has none."""


@contextmanager
def any_steps(model: nn.Module) -> Iterator[None]:
    """Let a model that was built for T steps take chunks of any number of steps, and put its T back afterwards."""
    config, set_steps = getattr(model, "config", None), getattr(model, "set_steps", None)
    T = getattr(config, "T", None)
    if T is None or set_steps is None:
        yield
        return
    set_steps(None)
    try:
        yield
    finally:
        set_steps(T)


@torch.no_grad()
def batch_axes(model: nn.Module, frame: Tensor) -> Axes:
    """Where the batch is in every state of a model.

    Args:
        frame: one step of at least one sample, `[1, B, ...]`.

    Raises:
        ValueError: a state has the batch in more than one axis, or folded into another one.
    """
    states = []
    for samples in (1, 2):
        stream = Stream(model)
        stream(frame[:, :1].expand(1, samples, *frame.shape[2:]).contiguous())
        states.append(stream.state)
    return {name: _axes(name, states[0][name], states[1][name]) for name in states[0]}


def _axes(name: str, one: Any, two: Any) -> Axes:
    if isinstance(one, tuple):
        return tuple(_axes(name, a, b) for a, b in zip(one, two, strict=True))
    grown = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
    if len(grown) > 1 or (grown and (one.shape[grown[0]], two.shape[grown[0]]) != (1, 2)):
        raise ValueError(
            f"the state of {name.split('#')[0]!r} is {list(one.shape)} for one sample and {list(two.shape)} for two; "
            "expected a single axis with one entry per sample. Give that layer such a state, or keep all samples to "
            "the last step."
        )
    return grown[0] if grown else None


def select(stream: Stream, axes: Axes, index: Tensor) -> Stream:
    """The stream of some of the samples: `index` `[b]` says which, in the order that they shall have."""
    left = Stream(stream.net, stream.detached)
    left.state = {name: _select(state, axes[name], index) for name, state in stream.state.items()}
    return left


def _select(state: Any, axes: Axes, index: Tensor) -> Any:
    if isinstance(state, tuple):
        return tuple(_select(part, axis, index) for part, axis in zip(state, axes, strict=True))
    return state if axes is None else state.index_select(axes, index)
