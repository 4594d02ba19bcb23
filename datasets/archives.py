"""Unpack .zip and .tar archives of data sets: nothing is written outside the folder, and no more than a stated size."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def unpack_archive(archive: str | Path, folder: str | Path, *, max_bytes: int = 2**40) -> list[Path]:
    """Unpack an archive into a folder and return the files written.

    Names that are absolute or hold `..` are refused, and so are links and devices; nothing is unpacked then. Modes and
    owners of the archive are not taken over.

    Raises:
        ValueError: such a name, an archive that is damaged, or one that unpacks to more than `max_bytes`.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"There is no file {archive}.")
    try:
        if archive.name.lower().endswith(_TAR_SUFFIXES):
            return _untar(archive, folder, max_bytes)
        return _unzip(archive, folder, max_bytes)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the archive
        raise ValueError(f"{archive} is not a whole archive: {error}. Download it again.") from error


def _unzip(archive: Path, folder: Path, max_bytes: int) -> list[Path]:
    with zipfile.ZipFile(archive) as opened:
        members = [member for member in opened.infolist() if not member.is_dir()]
        for member in members:
            if member.external_attr >> 28 == 0xA:
                raise ValueError(f"{archive} holds a link, {member.filename!r}; nothing was unpacked.")
        places = _places(archive, folder, [(m.filename, m.file_size) for m in members], max_bytes)
        left = max_bytes
        for member, place in zip(members, places, strict=True):
            with opened.open(member) as source, place.open("wb") as target:
                left -= _copy(archive, source, target, left)
        return places


def _untar(archive: Path, folder: Path, max_bytes: int) -> list[Path]:
    with tarfile.open(archive) as opened:
        members = [member for member in opened.getmembers() if not member.isdir()]
        for member in members:
            if not member.isfile():
                raise ValueError(f"{archive} holds {member.name!r}, a link or device; nothing was unpacked.")
        places = _places(archive, folder, [(m.name, m.size) for m in members], max_bytes)
        left = max_bytes
        for member, place in zip(members, places, strict=True):
            source = opened.extractfile(member)
            assert source is not None  # it is a file
            with source, place.open("wb") as target:
                left -= _copy(archive, source, target, left)
        return places


def _places(archive: Path, folder: Path, members: list[tuple[str, int]], max_bytes: int) -> list[Path]:
    """Where each member goes; the folders are made."""
    if sum(size for _, size in members) > max_bytes:
        raise ValueError(f"{archive} says that it unpacks to more than {max_bytes:,} bytes; pass a larger max_bytes.")
    places = []
    for name, _ in members:
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or "\0" in name:
            raise ValueError(f"{archive} holds {name!r}, which lies outside the folder; nothing was unpacked.")
        place = folder.joinpath(*parts)
        if not place.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{archive} holds {name!r}; {place} leads out of {folder} by a link. Nothing was unpacked."
            )
        places.append(place)
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
    return places


def _copy(archive: Path, source: IO[bytes], target: IO[bytes], most: int) -> int:
    """Copy at most `most` bytes: what an archive says of its sizes need not be true."""
    start = target.tell()
    while chunk := source.read(2**20):
        target.write(chunk)
        if target.tell() - start > most:
            raise ValueError(f"{archive} unpacks to more than max_bytes.")
    return int(target.tell() - start)
