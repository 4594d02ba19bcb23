"""Activation checkpointing: a module keeps its inputs for backward, and backward runs it again for the rest.

Chen, Xu, Zhang, Guestrin 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, on torch's
implementation. What comes on top: the second run sees the module's buffers as the first one found them, and whatever it
changes in them is forgotten, so that the running statistics of a normalisation take every batch once.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.checkpoint import checkpoint

from spikeloom.kernels.op import dispatched

_DRAWING: WeakSet[nn.Module] = WeakSet()
"""Modules whose last run outside a capture drew random numbers of a GPU; while capturing, that cannot be seen."""

_Place = tuple[nn.Module, str, Tensor]
"""A buffer, and where it is: the module that has it, and its name there."""


def recompute(module: nn.Module, *inputs: Any) -> Any:
    """`module(*inputs)`, run once more in backward instead of keeping what lies between inputs and outputs.

    Outputs, gradients and buffers are those of the plain call, random numbers (dropout) included. Forward hooks are
    called in both runs. In evaluation, without gradients, under a compiler (which decides itself what it keeps) and
    while operators are watched, this is the plain call.

    For the random numbers, torch keeps the states of the generators. While a CUDA graph is captured they cannot be
    read, so a module that draws any cannot be recomputed there. Refused are dropout in use, and a module that drew from
    a GPU's generator when it last ran outside a capture; draws of one that did not run before would not be noticed,
    and its gradients would be wrong.

    Args:
        module: it may not depend on anything that changes before backward, other than its buffers.
        inputs: of the module; tensors among them are kept.

    Raises:
        ValueError: the module draws random numbers, and a CUDA graph is being captured.
    """
    if not (module.training and torch.is_grad_enabled()) or dispatched():
        return module(*inputs)
    capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
    if capturing:
        _check_random(module)
    places = [(owner, name, b) for owner in module.modules() for name, b in owner._buffers.items() if b is not None]
    before = _copies([buffer for _, _, buffer in places])

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _Again(places, before)

    drawn = [] if capturing else _drawn()
    outputs = checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=not capturing, context_fn=contexts)
    if not capturing:
        (_DRAWING.discard if _drawn() == drawn else _DRAWING.add)(module)
    return outputs


def _drawn() -> list[int]:
    """How far the generator of each GPU is in its sequence; read on the host."""
    if not torch.cuda.is_initialized():
        return []
    return [generator.get_offset() for generator in torch.cuda.default_generators]


class _Again(AbstractContextManager[None]):
    """The second run: copies of `values` are in the places of the buffers, a buffer of two places as one copy.

    torch enters the same context again for every backward over a retained graph.
    """

    def __init__(self, places: list[_Place], values: list[Tensor]) -> None:
        self._places, self._values = places, values

    def __enter__(self) -> None:
        copies: dict[int, Tensor] = {}
        for (_, _, buffer), copy in zip(self._places, _copies(self._values), strict=True):
            copies.setdefault(id(buffer), copy)
        self._held = [owner._buffers[name] for owner, name, _ in self._places]
        for owner, name, buffer in self._places:
            owner._buffers[name] = copies[id(buffer)]

    def __exit__(self, *error: object) -> None:
        for (owner, name, _), buffer in zip(self._places, self._held, strict=True):
            owner._buffers[name] = buffer


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    """Copies, made by one launch for all tensors of a dtype and device."""
    copies = [torch.empty_like(tensor) for tensor in tensors]
    groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault((tensor.dtype, tensor.device), []).append(i)
    with torch.no_grad():
        for group in groups.values():
            torch._foreach_copy_([copies[i] for i in group], [tensors[i] for i in group])
    return copies


def _check_random(module: nn.Module) -> None:
    instead = "the states of random generators, which give the second run the same numbers, cannot be read there."
    for name, layer in module.named_modules():
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0:
            raise ValueError(
                f"recompute got a {type(module).__name__} whose layer {name!r} is a {type(layer).__name__} with "
                f"p={layer.p}, while a CUDA graph is captured; {instead} Capture without recompute, or set p to 0."
            )
    if module in _DRAWING:
        raise ValueError(
            f"recompute got a {type(module).__name__} that drew random numbers when it last ran, while a CUDA graph is "
            f"captured; {instead} Capture without recompute."
        )
