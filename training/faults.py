"""What goes wrong around a training: files that cannot be read, processes that end, a disk that is full."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

_Item = TypeVar("_Item")
_SHOWN = 3  # files in a message


class DataFaultError(ValueError):
    """Recordings cannot be had; the training is as it was before the batch that wanted them."""


class WorkerDiedError(DataFaultError):
    """A process that reads data has ended."""


class UnreadableWarning(UserWarning):
    """Files or recordings could not be read: others are shown in their place, or they are left out."""


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; those before it are whole."""


def guarded(items: Iterator[_Item], workers: int) -> Iterator[_Item]:
    """The same items; the end of a worker process is explained.

    Raises:
        WorkerDiedError: a worker has ended.
    """
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise WorkerDiedError(
                f"One of the {workers} processes that read data has ended ({str(error).splitlines()[0]}). Mostly the "
                "memory is short: pass fewer --data.workers. A run goes on with --resume; none of its numbers depends "
                "on the workers."
            ) from error
        yield item


_IMAGES = "images of a batch"
_GET_AGAIN = (
    "Get these files again; a run goes on with --resume. For a new run they may also be taken away, or left out with "
    "--data.unreadable skip."
)


def refuse(unreadable: list[str], count: int, what: str = _IMAGES, then: str = _GET_AGAIN) -> None:
    """Say what cannot be read of `count`, of what, and what to do then.

    Raises:
        DataFaultError: always.
    """
    raise DataFaultError(f"{len(unreadable)} of the {count} {what} cannot be read: {_listed(unreadable)}. {then}")


def tell_skipped(unreadable: list[str], count: int, total: int, what: str = _IMAGES) -> None:
    """Warn of what is not shown in a batch of `count`, with its number in all."""
    warnings.warn(
        f"{len(unreadable)} of {count} {what} cannot be read and are left out, the next readable one in the "
        f"place of each ({total} in all so far): {_listed(unreadable)}",
        UnreadableWarning,
        stacklevel=2,
    )


def tell_left_out(unreadable: list[str], count: int, total: int) -> None:
    """Warn of files with `count` of `total` recordings that a training goes without."""
    warnings.warn(
        f"{count} of {total} recordings to train on cannot be read and are left out of the data set: "
        f"{_listed(unreadable)}",
        UnreadableWarning,
        stacklevel=2,
    )


def stand_ins(lost: Collection[int], count: int) -> Tensor:
    """For each place of a batch, `[count]`, the place of what is shown there: itself, or in place of what is lost the
    next that is not; behind the last such, that one. Something must be left."""
    readable = [place for place in range(count) if place not in lost]
    after = [min(bisect_left(readable, place), len(readable) - 1) for place in range(count)]
    return torch.tensor([readable[number] for number in after])


def _listed(unreadable: list[str]) -> str:
    more = f"; and {len(unreadable) - _SHOWN} more" if len(unreadable) > _SHOWN else ""
    return "; ".join(unreadable[:_SHOWN]) + more


@contextmanager
def writing(part: Path | None, run: Path) -> Iterator[None]:
    """Take away what was written of a checkpoint where it cannot be finished, and explain why.

    Raises:
        CheckpointWriteError: the disk is full, a limit is reached, or the folder cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        _remove(part)
        if isinstance(error, RuntimeError) and not _of_writing(error):
            raise
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointWriteError(
            number,
            f"A checkpoint cannot be written in {run}: {reason}. There are {_free(run)} free. The checkpoint before "
            "it, if any, is whole: make room, and go on with --resume",
        ) from error
    except BaseException:
        _remove(part)
        raise


def _remove(part: Path | None) -> None:
    if part is not None:
        shutil.rmtree(part, ignore_errors=True)


def _of_writing(error: RuntimeError) -> bool:
    """Whether torch says in this way that its writer failed."""
    return any(word in str(error) for word in ("PytorchStreamWriter", "inline_container", "iostream", "write"))


def _free(run: Path) -> str:
    space = os.statvfs(run) if hasattr(os, "statvfs") else None
    return "an unknown number of bytes" if space is None else f"{space.f_bavail * space.f_frsize / 2**20:,.0f} MiB"
