"""What a classifier says about labelled samples, step by step: the data that early exit is chosen and judged on.

A loader is anything that gives pairs (x, labels): images `[B, ...]`, shown unchanged at every step, or frames
`[T, B, ...]`, one per step; labels are whole numbers `[B]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spikeloom.conversion.active import any_steps
from spikeloom.neurons import Stream


@dataclass(frozen=True)
class Outputs:
    """logits: `[T, N, K]` of every step, float64, on the CPU; labels: int64 `[N]`."""

    logits: Tensor
    labels: Tensor


def as_frames(x: Tensor, T: int | None, frames: bool | None) -> Tensor:
    """Images repeated for T steps, or the first T frames: `[T, B, ...]`.

    Args:
        T: None: all frames. frames: whether x has a time axis; None: if it has an odd number of axes, as
            `[T, B, C, H, W]` and `[T, B, D]` have, and `[B, C, H, W]` has not.

    Raises:
        ValueError: T is no number of steps that x has, is 1, or is missing for images; x has too few axes.
    """
    timed = x.ndim % 2 == 1 if frames is None else frames
    if T is not None and (not isinstance(T, int) or isinstance(T, bool)):
        raise ValueError(f"T={T!r}; expected a whole number of time steps >= 2")
    if x.ndim < (3 if timed else 2) or not x.numel():
        raise ValueError(f"got x of shape {list(x.shape)}; expected images [B, ...] or frames [T, B, ...], not empty")
    if not timed and T is None:
        raise ValueError(f"got images of shape {list(x.shape)} and no T; say for how many steps they are shown")
    steps = x.shape[0] if timed and T is None else T
    assert steps is not None
    if steps < 2:
        raise ValueError(
            f"got {steps} time step: nothing can stop before the first step has been run. Expected T >= 2; a "
            "network of one step has no early exit."
        )
    if not timed:
        return x.expand(steps, *x.shape)
    if x.shape[0] < steps:
        raise ValueError(f"got frames of {x.shape[0]} steps, shape {list(x.shape)}; expected at least T={steps}")
    return x[:steps]


def batches(
    loader: Iterable[Any], T: int | None, frames: bool | None, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Checked batches of a loader: frames `[T, B, ...]` and labels `[B]` on a device.

    Raises:
        ValueError: no labels, or labels that do not belong to the samples; nothing in the loader; as `as_frames`.
    """
    empty = True
    for batch in loader:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(b, Tensor) for b in batch):
            given = f"{len(batch)} things" if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise ValueError(
                f"a batch of the loader is {given}; expected a pair of tensors (x, labels): without labels nobody "
                "knows which threshold keeps the accuracy"
            )
        x, labels = as_frames(batch[0], T, frames), batch[1]
        whole = not labels.is_floating_point() and labels.dtype != torch.bool and labels.ndim == 1
        if not whole or labels.shape[0] != x.shape[1]:
            raise ValueError(
                f"labels are {labels.dtype} {list(labels.shape)} for {x.shape[1]} samples; expected class numbers "
                f"[{x.shape[1]}] of an integer type (frames are [T, B, ...]: time is the first axis; frames= says "
                "whether x has one)"
            )
        empty = False
        yield x.to(device), labels.to(device).long()
    if empty:
        raise ValueError("the loader gave no batch; expected labelled samples (a generator can be read only once)")


def check_logits(logits: Any, steps: int, samples: int) -> Tensor:
    """Raise unless a model's output is one set of logits per step and sample, `[T, B, K]`."""
    shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != (steps, samples):
        raise ValueError(
            f"the model gave {shape} for {steps} steps of {samples} samples; expected logits of every step, "
            f"[{steps}, {samples}, K]: a model that averages over time inside cannot exit early"
        )
    return logits


@torch.no_grad()
def outputs_of(model: nn.Module, given: Iterable[tuple[Tensor, Tensor]]) -> Outputs:
    """Run a model on batches, all steps at once.

    Raises:
        ValueError: its output is not `[T, B, K]`, a label is no class, the batches differ in T.
    """
    logits, labels = [], []
    with any_steps(model):
        for x, y in given:
            z = check_logits(Stream(model)(x), *x.shape[:2])
            if bool((y < 0).any()) or bool((y >= z.shape[2]).any()):
                raise ValueError(
                    f"labels lie between {int(y.min())} and {int(y.max())}; the model has {z.shape[2]} classes"
                )
            logits.append(z.double().cpu())
            labels.append(y.cpu())
    if len({z.shape[0] for z in logits}) > 1:
        raise ValueError(f"batches have {sorted({z.shape[0] for z in logits})} time steps; expected one T, give T=")
    return Outputs(torch.cat(logits, 1), torch.cat(labels))
