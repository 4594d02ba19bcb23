"""One training per folder: a lock that the system takes back when the process ends, however it ends.

POSIX record locks: they belong to the process, so a process that reads data for it cannot keep one alive. On a network
file system they hold as far as that has locks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
"""The file; it is taken away in the end, and one that a killed process leaves means nothing."""


class FolderInUseError(ValueError):
    """Another process trains in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder while the block runs.

    Raises:
        FolderInUseError: another process holds it.
    """
    handle = _opened(folder)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink(missing_ok=True)
        os.close(handle)  # gives the lock back


def _opened(folder: Path) -> int:
    """The file, locked; a file that its last holder took away meanwhile holds nothing, and is opened anew."""
    while True:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(handle):
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(handle)
            raise FolderInUseError(
                f"{folder} is in use: {holder} trains there. Wait for it, end it, or choose another folder with --out."
            )
        with suppress(FileNotFoundError):
            if os.stat(folder / LOCK).st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)


def _lock(handle: int) -> bool:
    """Whether the lock was free; it is held now."""
    try:
        import fcntl
    except ImportError:  # no POSIX: two trainings in a folder are not noticed there
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
