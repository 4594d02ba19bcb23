"""Pack a data set into one event store: written beside its place, resumed after any interruption, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spikeloom.datasets.events import Events
from spikeloom.datasets.store_format import (
    EVENT_BYTES,
    HEADER_BYTES,
    MAX_SIDE,
    PARTS,
    RECORD,
    Header,
    Tables,
    pack_header,
    pack_tables,
    to_words,
)

Progress = Callable[[int, int, int], None]

_SYNC_BYTES = 2**26  # events written between two waits for the disk
_LEFT_OUT = -1


class Labelled(Protocol):
    """A data set of (Events, label)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Events, int]: ...


@dataclass
class Packing:
    """What a packing came to: recordings packed, those left out (number and why), and how many an earlier try had."""

    packed: int = 0
    resumed: int = 0
    left_out: list[tuple[int, str]] = field(default_factory=list)


def pack_store(
    path: str | Path,
    dataset: Labelled,
    height: int,
    width: int,
    *,
    classes: Sequence[str] = (),
    parts: Sequence[int] | Tensor | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    progress: Progress | None = None,
) -> Packing:
    """Write every recording of a data set into the event store `path`.

    An interruption of any kind (power, `kill -9`, a full disk) leaves PATH.part and PATH.journal, and the next call
    goes on behind the last recording that is safely on disk. PATH itself appears whole, or stays as it was.

    Args:
        path: of the store, ending in `.events`; its folder is made.
        dataset: of (Events, label) by number; an attribute `files` tells a changed source from the same one.
        height, width: of the sensor; recordings of smaller ones fit too.
        classes: names of the labels.
        parts: a split to record, `[B]` numbers in `store_format.PARTS`, as `split_parts` draws; None: there is none.
        on_error: a recording that cannot be read: "stop" raises its error, "skip" leaves it out with a warning.
        progress: called with recordings done, their number, and events written.

    Raises:
        ValueError: a recording that does not fit, or (with "stop") is damaged; the path; a journal of another source.
        BlockingIOError: another process is packing to the same path.
        OSError: there is no room on the disk.
    """
    path = Path(path)
    if path.suffix != ".events":
        raise ValueError(f"The path is {path}; an event store is a file that ends in .events.")
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error is {on_error!r}; expected 'stop' or 'skip'.")
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"The sensor is {height} x {width} (height x width); each must be 1 to {MAX_SIDE}.")
    split = None if parts is None else _split(parts, len(dataset))
    if path.is_dir():
        raise ValueError(f"The path {path} is a folder; an event store is one file. Choose another name.")
    make_folder(path.parent)
    part, journal = path.with_name(path.name + ".part"), path.with_name(path.name + ".journal")
    with _room(path), _opened(part) as events, _opened(journal) as log:
        _lock(events, part, path)
        records = _resume(path, events, log, _digest(dataset, height, width, classes, split))
        writer = _Writer(events, log, records)
        resumed = len(records)
        for index in range(resumed, len(dataset)):
            writer.add(index, dataset, height, width, on_error)
            if progress is not None:
                progress(index + 1, len(dataset), writer.events_written)
        writer.sync()
        _finish(events, records, (height, width), tuple(classes), split)
        os.replace(part, path)
        journal.unlink(missing_ok=True)
    _sync_folder(path.parent)
    packed = sum(record[0] != _LEFT_OUT for record in records)
    return Packing(packed, resumed, writer.left_out)


class _Writer:
    def __init__(self, events: BinaryIO, log: BinaryIO, records: list[tuple[int, ...]]) -> None:
        self._events, self._log, self._records = events, log, records
        self._waiting: list[bytes] = []
        self._unsynced = 0
        self.events_written = sum(max(0, record[0]) for record in records)
        self.left_out = [(i, "by an earlier try") for i, record in enumerate(records) if record[0] == _LEFT_OUT]

    def add(self, index: int, dataset: Labelled, height: int, width: int, on_error: str) -> None:
        """Append a recording; it is in the journal once `sync` has run."""
        try:
            recording, label = dataset[index]
            if recording.height > height or recording.width > width:
                raise ValueError(
                    f"Recording {index} is of a sensor of {recording.height} x {recording.width}; the store is for "
                    f"{height} x {width}."
                )
            words, start = to_words(recording)
        except (ValueError, OSError) as error:
            if on_error == "stop" and isinstance(error, ValueError):
                hint = f"(Recording {index}; on_error skip leaves out what cannot be read.)"
                raise ValueError(f"{error} {hint}") from error
            if on_error == "stop":
                raise
            warnings.warn(f"Recording {index} is left out of the store: {error}", RuntimeWarning, stacklevel=3)
            self.left_out.append((index, str(error)))
            self._record(_LEFT_OUT, 0, 0, 0)
            return
        data = words.astype("<i8").tobytes()
        self._events.write(data)
        self.events_written += len(words)
        self._unsynced += len(data)
        self._record(len(words), start, int(label), zlib.crc32(data))
        if self._unsynced >= _SYNC_BYTES:
            self.sync()

    def _record(self, *values: int) -> None:
        head = RECORD.pack(*values, 0)[:-4]
        self._records.append(values)
        self._waiting.append(head + zlib.crc32(head).to_bytes(4, "little"))

    def sync(self) -> None:
        """First the events, then the records that promise them."""
        _to_disk(self._events)
        self._log.write(b"".join(self._waiting))
        _to_disk(self._log)
        self._waiting, self._unsynced = [], 0


def _resume(path: Path, events: BinaryIO, log: BinaryIO, digest: bytes) -> list[tuple[int, ...]]:
    """The recordings that an earlier try left safely on disk; both files are cut to them."""
    log.seek(0)
    found = log.read()
    if not found.startswith(digest):
        if len(found) > len(digest):
            raise ValueError(
                f"{path}.journal is of a packing of another source, or of other settings. To begin anew delete it and "
                f"{path}.part."
            )
        log.truncate(0)
        log.seek(0)
        log.write(digest)
        _to_disk(log)
        found = digest
    records: list[tuple[int, ...]] = []
    size = events.seek(0, os.SEEK_END)
    end, place = HEADER_BYTES, len(digest)
    while place + RECORD.size <= len(found):
        *values, check = RECORD.unpack_from(found, place)
        whole = zlib.crc32(found[place : place + RECORD.size - 4]) == check
        if not whole or end + max(0, values[0]) * EVENT_BYTES > size:
            break
        end += max(0, values[0]) * EVENT_BYTES
        records.append(tuple(values))
        place += RECORD.size
    log.truncate(place)
    if size < HEADER_BYTES:
        events.seek(0)
        events.write(bytes(HEADER_BYTES))
        events.flush()
    events.truncate(max(end, HEADER_BYTES))
    events.seek(0, os.SEEK_END)
    log.seek(0, os.SEEK_END)
    return records


def _split(parts: Sequence[int] | Tensor, count: int) -> NDArray[np.uint8]:
    """The parts `[B]` as they are stored."""
    split = np.asarray(parts, dtype=np.int64).reshape(-1)
    if len(split) != count or bool((split < 0).any()) or bool((split >= len(PARTS)).any()):
        raise ValueError(
            f"parts has {len(split)} numbers, {sorted(set(split.tolist()))[:8]}, for {count} recordings; expected one "
            f"each, 0 to {len(PARTS) - 1} for {', '.join(PARTS)}."
        )
    return split.astype(np.uint8)


def _finish(
    events: BinaryIO,
    records: list[tuple[int, ...]],
    size: tuple[int, int],
    classes: tuple[str, ...],
    split: NDArray[np.uint8] | None,
) -> None:
    """Tables and header: only now is the file a store."""
    here = np.array([record[0] != _LEFT_OUT for record in records], dtype=bool)
    kept = np.array(records, dtype=np.int64).reshape(-1, 4)[here]
    parts = None if split is None else split[here]
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(kept[:, 0])))
    tables = Tables(offsets, kept[:, 1].copy(), kept[:, 2].copy(), kept[:, 3].astype(np.uint32), classes, parts)
    data, total = pack_tables(tables), int(offsets[-1])
    place = HEADER_BYTES + total * EVENT_BYTES
    events.truncate(place)
    events.seek(place)
    events.write(data)
    _to_disk(events)
    header = pack_header(Header(*size, len(kept), total, place, len(data)))
    events.seek(0)
    events.write(header)
    _to_disk(events)


def _digest(
    dataset: Labelled, height: int, width: int, classes: Sequence[str], split: NDArray[np.uint8] | None
) -> bytes:
    """What makes two packings the same: number, files and labels of the recordings, and the settings."""
    files = [str(file) for file in getattr(dataset, "files", ())]
    labels: Any = getattr(dataset, "labels", None)
    labels = labels.tolist() if isinstance(labels, Tensor) else None
    recorded = [] if split is None else [split.tolist()]
    text = json.dumps([len(dataset), height, width, list(classes), files, labels, *recorded])
    return b"SPKJRNL1" + hashlib.sha256(text.encode()).digest()[:24]


def _lock(file: BinaryIO, part: Path, path: Path) -> None:
    """Raise where another process is packing; or did so when the file was opened, and has made a store of it since."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        same = os.path.samestat(os.fstat(file.fileno()), part.stat())
    except OSError as error:
        raise BlockingIOError(f"Another process is packing to {path}; wait for it or choose another path.") from error
    if not same:
        raise BlockingIOError(f"Another process was packing to {path}. Call this again.")


@contextmanager
def _room(path: Path) -> Iterator[None]:
    """Say of a full disk what to do; it is met again when files are closed, so this is around that, too."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)}: {path}.part cannot grow. What is packed stays there; make room and call this "
            "again, and it goes on.",
        ) from error


def make_folder(folder: Path) -> None:
    """Make a folder to write into, if it is not there.

    Raises:
        OSError: there is a file of its name, or it cannot be written to; says what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        file = next((each for each in (folder, *folder.parents) if each.exists() and not each.is_dir()), None)
        why = f"{file} is a file" if file else os.strerror(error.errno or errno.EIO)
        raise OSError(error.errno, f"Nothing can be written to {folder}: {why}. Name another folder.") from error


def _opened(path: Path) -> BinaryIO:
    """Open for reading and writing, made if it is not there, never emptied: another process may be at work on it."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        said = os.strerror(error.errno or errno.EIO)
        raise OSError(error.errno, f"{path} cannot be opened for writing: {said}. Name another folder.") from error
    return os.fdopen(number, "r+b")


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """The new name, too, must survive a loss of power."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
