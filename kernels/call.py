"""What both backends share of an operator call: its encoded program, its masks, the results it allocates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from spikeloom.kernels import layout
from spikeloom.kernels.program import Program, lookup
from spikeloom.kernels.reference import arithmetic


@lru_cache(maxsize=4096)
def parse(program: str) -> tuple[Program, str]:
    """The recorded program and parameter kinds behind an operator's `program` argument."""
    key, kinds = program.rsplit("|", 1)
    return lookup(key), kinds


@lru_cache(maxsize=4096)
def parse_mask(mask: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """`"1201:010"` -> (which gradients arrive: outputs, final states; which are wanted: inputs, state, params).

    An arriving gradient is 0 (none), 1 (a tensor of the argument `grads`) or 2 (the constant 1, outputs only).
    """
    arriving, wanted = mask.split(":")
    return tuple(int(c) for c in arriving), tuple(c == "1" for c in wanted)


CHUNK = 16
"""Longest run of steps that backward recomputes: beyond it the state is kept every `CHUNK` steps."""


def checkpoint_distance(program: Program, steps: int) -> int:
    """How many steps apart states are kept for a later backward; 0 if none need keeping."""
    return CHUNK if program.states and steps > CHUNK else 0


def check_every(steps: int, every: int, states: int) -> None:
    """Refuse checkpoints at another distance than kernels are built for.

    Raises:
        ValueError: backward would have to recompute more than `CHUNK` steps, or `every` is not 0 or `CHUNK`.
    """
    if every not in (0, CHUNK) or (states and not every and steps > CHUNK):
        raise ValueError(
            f"backward over T = {steps} steps needs the state kept every {CHUNK} steps (every={CHUNK}); the "
            f"forward call was made with every={every}"
        )


def checkpoint_count(steps: int, every: int) -> int:
    """How many states are kept: at t = every, 2 every, ... < T."""
    return (steps - 1) // every if every else 0


def allocate_forward(program: Program, x: Tensor, every: int, final: bool) -> list[Tensor]:
    """Uninitialised results of the forward operator: outputs, final states if asked for, checkpoints if `every`."""
    results = [layout.empty_dense(x, x.dtype) for _ in program.outputs]
    if final:
        results += [layout.empty_slab(x, arithmetic(x.dtype)) for _ in program.states]
    if every:
        shape = (len(program.states), checkpoint_count(x.shape[0], every), x[0].numel())
        results.append(x.new_empty(shape, dtype=arithmetic(x.dtype)))
    return results


def allocate_backward(inputs: Sequence[Tensor], params: Sequence[Tensor], program: str, mask: str) -> list[Tensor]:
    """Uninitialised gradients that are wanted, in the order inputs, initial states, tensor parameters."""
    recorded, _ = parse(program)
    _, wanted = parse_mask(mask)
    x, n_in, n_state = inputs[0], len(recorded.inputs), len(recorded.states)
    results = [layout.empty_dense(x, x.dtype) for want in wanted[:n_in] if want]
    results += [layout.empty_slab(x, arithmetic(x.dtype)) for want in wanted[n_in : n_in + n_state] if want]
    results += [
        torch.empty_like(p, memory_format=torch.contiguous_format)
        for p, want in zip(params, wanted[n_in + n_state :], strict=True)
        if want
    ]
    return results
