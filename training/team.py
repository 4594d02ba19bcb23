"""The processes of a training: one per GPU, started by `torchrun`, or this one alone.

What they agree on (a signal, the name of a folder, sums of an evaluation) goes through a group on the CPU (gloo), also
where gradients go through NCCL: nothing there waits for a GPU, and a process that has ended is noticed at once.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one, such as for the first that writes a large checkpoint."""
_Value = TypeVar("_Value")


class FollowedError(RuntimeError):
    """Another process of the training has ended with an error, which it says itself."""


class LostProcessError(RuntimeError):
    """Another process of the training has ended, or does not answer."""


@dataclass(frozen=True)
class Team:
    """size processes, of which this one has the number rank; control: their group on the CPU, None: alone."""

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here.

        Raises:
            LostProcessError: one has ended.
        """
        if self.size > 1:
            self._guarded(lambda: dist.barrier(group=self.control))

    def summed(self, values: Tensor) -> Tensor:
        """The sum of a tensor on the CPU over all processes, in place; nothing is rounded where one alone is not 0.

        Raises:
            LostProcessError: a process has ended.
        """
        if self.size > 1:
            self._guarded(lambda: dist.all_reduce(values, group=self.control))
        return values

    def largest(self, value: int) -> int:
        """The largest of the processes' numbers.

        Raises:
            LostProcessError: a process has ended.
        """
        if self.size == 1:
            return value
        values = torch.tensor([value], dtype=torch.int64)
        self._guarded(lambda: dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control))
        return int(values)

    def agreed(self, text: str) -> str:
        """The first process's text, in all.

        Raises:
            LostProcessError: a process has ended.
        """
        if self.size == 1:
            return text
        own = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
        letters = torch.zeros(self.largest(len(own) if self.first else 0), dtype=torch.uint8)
        if self.first:
            letters.copy_(own)
        self.summed(letters)
        return bytes(letters.tolist()).decode().rstrip("\0")

    def together(self, call: Callable[[], _Value]) -> _Value:
        """Call in every process; an error in one ends all, and the first of those that have one raises it.

        Raises:
            FollowedError: another process has an error.
            LostProcessError: a process has ended.
        """
        if self.size == 1:
            return call()
        failed = torch.zeros(self.size, dtype=torch.int64)
        try:
            result = call()
        except Exception as error:
            failed[self.rank] = 1
            first = int(self.summed(failed).argmax())
            if first == self.rank:
                raise
            raise FollowedError(f"Process {first} of {self.size} has ended with an error.") from error
        self.summed(failed)
        if failed.any():
            raise FollowedError(f"Process {int(failed.argmax())} of {self.size} has ended with an error.")
        return result

    def led(self, call: Callable[[], object]) -> None:
        """Call in the first process, which the others wait for; errors as in `together`."""
        self.together(lambda: call() if self.first else None)

    def _guarded(self, call: Callable[[], _Value]) -> _Value:
        try:
            return call()
        except (RuntimeError, dist.DistError) as error:
            raise LostProcessError(lost_message(self.rank, self.size, error)) from error


ALONE = Team()


def lost_message(rank: int, size: int, error: BaseException) -> str:
    """What a process says that waits for one that is gone."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return (
        f"Process {rank} of {size} waited for another one of this training, which has ended or does not answer "
        f"({reason}). All of them end now. The first error above, or torchrun's table below, says why; the last "
        "checkpoint is whole: continue with --resume."
    )


def current_team() -> Team:
    """The processes that torch.distributed knows of; a group on the CPU is made, so all of them call this together."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return ALONE
    control: Any = dist.group.WORLD
    if dist.get_backend() != "gloo":
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    return Team(dist.get_rank(), dist.get_world_size(), control)


def launched() -> bool:
    """Whether `torchrun` (or what sets the same variables) started this process as one of several or with a number."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ and dist.is_available()


def first_process() -> bool:
    """Whether this is the process that prints, by what torchrun says."""
    return not launched() or os.environ["RANK"] == "0"


def local_device(name: str) -> str:
    """The device of this process: of "auto" and "cuda", under torchrun, the GPU with its number on this machine.

    Raises:
        ValueError: there are fewer GPUs than processes, or all processes are sent to one.
    """
    if not launched() or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    number, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if name not in ("auto", "cuda", f"cuda:{number}"):
        raise ValueError(
            f"device is {name!r}, and torchrun started {os.environ['WORLD_SIZE']} processes; expected auto, cuda or "
            "cpu: each process takes the GPU of its number. CUDA_VISIBLE_DEVICES chooses among them."
        )
    if number >= found:
        raise ValueError(
            f"torchrun started more processes on this machine than it has GPUs ({found}). Lower --nproc-per-node, or "
            "pass --device cpu."
        )
    return f"cuda:{number}"


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, and leave them; nothing where it did not."""
    if not launched() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=_PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    yield
    gc.collect()  # DDP is held by cycles, and must not outlive the group's threads
    dist.destroy_process_group()  # not after an error: it may wait for a process that is gone
