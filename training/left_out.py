"""Files of recordings that are all read before a training: what cannot be read stops it, or is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from spikeloom.datasets import Events, PackedEvents
from spikeloom.training.faults import DataFaultError, tell_left_out
from spikeloom.training.recipe import Data

_Read = TypeVar("_Read")
_THEN = "Get the file again; --data.unreadable skip leaves out what cannot be read, but nothing that is tested on."


class Labelled(Protocol):
    """Recordings that are read when asked for, and their labels `[N]` int64."""

    labels: Tensor

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Events, int]: ...


def pack_readable(recordings: Labelled, data: Data, part: str) -> PackedEvents:
    """All recordings with their labels, each a file of its own.

    Raises:
        DataFaultError: as `readable`.
    """
    groups = [[index] for index in range(len(recordings))]
    read = [(index, events) for (index,), events in readable(lambda one: recordings[one[0]][0], groups, data, part)]
    return PackedEvents.from_events([events for _, events in read], recordings.labels[[index for index, _ in read]])


def readable(
    read: Callable[[Sequence[int]], _Read], groups: Sequence[Sequence[int]], data: Data, part: str
) -> Iterator[tuple[Sequence[int], _Read]]:
    """Groups of recordings and what `read` makes of each; a group is what is read of one file.

    Of the part "train" those that cannot be read are left out if `data.unreadable` says so, with a warning behind the
    last group that says how many; what is tested on never is.

    Raises:
        DataFaultError: a group cannot be read, and is not to be left out; or none can.
    """
    lost: list[str] = []
    count, total = 0, sum(map(len, groups))
    for group in groups:
        try:
            made = read(group)
        except (ValueError, OSError) as error:
            if data.unreadable == "stop" or part != "train":
                raise DataFaultError(f"{error} {_THEN}") from error
            lost.append(str(error))
            count += len(group)
            if count == total:
                raise DataFaultError(f"None of {total} recordings to train on can be read: {error}") from error
            continue
        yield group, made
    if lost:
        tell_left_out(lost, count, total)
