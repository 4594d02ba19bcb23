"""The gradient of a batch: forward, loss and backward of its pieces, summed over the processes by torch's DDP while
backward runs, or behind it in one message, which a CUDA graph can hold.

    gradient = sum over pieces p of  n_p / n  d loss_p / d weights,    n_p of the batch's n recordings in piece p

Without several pieces and processes this is one call and its backward, and nothing else. Buffers (running statistics of
normalisations) become the mean of the processes' after every step, so that all processes hold the same state; the
gradient itself does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from spikeloom.training.team import ALONE, LostProcessError, Team, lost_message

Judge = Callable[[nn.Module, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor | None]]
"""Takes a batch: (module, frames, targets, generator of its masks) -> mean loss, and how many were classified right."""


@dataclass(frozen=True)
class Piece:
    """What goes through the network at a time; weight: its share of the batch, 0: it stands in for nothing; a tensor
    `[]` where the step is captured, so that every replay reads it anew."""

    frames: Tensor
    targets: Tensor
    masks: torch.Generator
    weight: float | Tensor = 1.0


class Engine:
    """Gradients of a model.

    Args:
        model: on its device. judge: the loss. team: the processes. module: what is called in the model's place, DDP's
            wrapper; None: the model itself.
    """

    def __init__(self, model: nn.Module, judge: Judge, team: Team = ALONE, module: nn.Module | None = None) -> None:
        self.model, self.judge, self.team = model, judge, team
        self._module = model if module is None else module

    def gradient(self, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor | None]:
        """Add the gradient of a batch to the parameters'; its mean loss, and how many were classified correctly.

        Raises:
            LostProcessError: another process has ended.
        """
        if self.team.size == 1 and len(pieces) == 1:
            loss, correct = self.judge(self._module, pieces[0].frames, pieces[0].targets, pieces[0].masks)
            loss.backward()
            return loss.detach(), correct
        try:
            return self._summed(pieces)
        except (RuntimeError, dist.DistError) as error:
            if self.team.size > 1 and is_lost(error):
                raise LostProcessError(lost_message(self.team.rank, self.team.size, error)) from error
            raise

    def _summed(self, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor | None]:
        total: Tensor | None = None
        right: Tensor | None = None
        for number, piece in enumerate(pieces):
            with self._synchronised(number == len(pieces) - 1):
                loss, correct = self.judge(self._module, piece.frames, piece.targets, piece.masks)
                (loss * (piece.weight * self.team.size)).backward()  # the mean over processes is taken
            own = loss.detach().double() * piece.weight
            total = own if total is None else total + own
            if correct is not None:
                counted = correct.detach() * (piece.weight > 0)
                right = counted if right is None else right + counted
        assert total is not None
        if self.team.size == 1:
            return total, right
        sums = torch.stack((total, torch.zeros_like(total) if right is None else right.double()))
        dist.all_reduce(sums)
        return sums[0], None if right is None else sums[1]

    def _synchronised(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged once, behind the last piece."""
        if last or self.team.size == 1:
            return nullcontext()
        no_sync = getattr(self._module, "no_sync", None)
        return nullcontext() if no_sync is None else no_sync()

    def norm(self, limit: float) -> Tensor:
        """The norm of the whole gradient, which is then scaled to `limit` at most."""
        return nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.grad is not None], limit)

    def share_buffers(self) -> None:
        """Make buffers of real numbers the mean of the processes'."""
        if self.team.size == 1:
            return
        state, parameters = self.model.state_dict(), dict(self.model.named_parameters(remove_duplicate=False))
        self._mean(value for name, value in state.items() if name not in parameters and value.is_floating_point())

    def _mean(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors the mean of the processes'."""

        def exchange(flat: Tensor) -> None:
            dist.all_reduce(flat)
            flat /= self.team.size

        in_one(tensors, exchange)


class FlatEngine(Engine):
    """Copies of a model in several processes, whose gradients are exchanged in one message behind backward."""

    def _summed(self, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor | None]:
        found = super()._summed(pieces)
        self._mean(p.grad for p in self.model.parameters() if p.grad is not None)
        return found


@torch.no_grad()
def in_one(tensors: Iterable[Tensor], exchange: Callable[[Tensor], None]) -> None:
    """Change tensors in place, as one flat tensor per type."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for value in tensors:
        if value.numel():
            groups.setdefault(value.dtype, []).append(value)
    for group in groups.values():
        flat = torch.cat([value.reshape(-1) for value in group])
        exchange(flat)
        parts = flat.split([value.numel() for value in group])
        torch._foreach_copy_(group, [part.view(value.shape) for part, value in zip(parts, group, strict=True)])


def is_lost(error: BaseException) -> bool:
    """Whether an error of torch says that another process is gone."""
    words = ("onnection closed", "onnection reset", "imed out", "imeout", "NCCL", "gloo", "roken pipe", "peer")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
