"""Compiled kernels on disk.

A file is named by the hash of everything that decides its content. It is written under a temporary name and renamed,
so two processes may build the same kernel at once; next to it lies its checksum, so a damaged file is noticed and
built again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_dir() -> Path:
    """Folder of the compiled kernels: `$SPIKELOOM_CACHE`, else `spikeloom/` under the user's cache folder."""
    if "SPIKELOOM_CACHE" in os.environ:
        return Path(os.environ["SPIKELOOM_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "spikeloom"


def cached(kind: str, suffix: str, identity: str, build: Callable[[Path], None]) -> Path:
    """The file of what `identity` describes, built by `build(scratch folder / "kernel" + suffix)` if it is not there.

    Args:
        kind: sub-folder of the cache.
        suffix: of the file's name.
        identity: all that decides the content.
        build: writes the file it is given the path of.
    """
    folder = cache_dir() / kind
    file = folder / (hashlib.sha256(identity.encode()).hexdigest()[:32] + suffix)
    if not _intact(file):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made, checksum = Path(scratch) / f"kernel{suffix}", Path(scratch) / "checksum"
            build(made)
            checksum.write_text(_digest(made))
            os.replace(made, file)
            os.replace(checksum, _checksum(file))
    return file


def _intact(file: Path) -> bool:
    checksum = _checksum(file)
    return file.exists() and checksum.exists() and checksum.read_text() == _digest(file)


def _checksum(file: Path) -> Path:
    return file.with_suffix(".sha256")


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
