"""`read_events`: one recording from a file of any of the formats that event data comes in.

format                 known by                         sensor's size in the file
AEDAT 2.0              first line '#!AER-DAT2.0'        128 x 128 (DVS128)
AEDAT 3.1              first line '#!AER-DAT3'          from the line '#Source'
AEDAT 4                first line '#!AER-DAT4.0'        yes
Prophesee RAW          '%' lines that name EVT          mostly
Prophesee DAT          other '%' lines, or .dat         mostly
HDF5                   first 8 bytes                    no
.npz, .npy, .mat       first bytes                      only PackedEvents.save
.bin, .bs2             suffix alone (N-MNIST)           no
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from spikeloom.datasets.aedat3 import read_aedat3
from spikeloom.datasets.aedat4 import read_aedat4
from spikeloom.datasets.cifar10_dvs import read_aedat2
from spikeloom.datasets.event_arrays import read_hdf5, read_mat, read_npy, read_npz
from spikeloom.datasets.events import Events
from spikeloom.datasets.nmnist import read_bin
from spikeloom.datasets.prophesee_dat import read_dat, text_header
from spikeloom.datasets.prophesee_raw import read_raw
from spikeloom.datasets.raw_columns import MAX_EVENTS, check_count

FORMATS = ("aedat2", "aedat3", "aedat4", "raw", "dat", "hdf5", "npz", "npy", "mat", "bin")

_SENSORS = {"DVS128": (128, 128), "DAVIS128": (128, 128), "DAVIS240": (180, 240), "DAVIS346": (260, 346)}
_BY_SIZE: dict[str, Callable[..., Events]] = {
    "aedat4": read_aedat4,
    "raw": read_raw,
    "dat": read_dat,
    "hdf5": read_hdf5,
    "npz": read_npz,
    "npy": read_npy,
    "mat": read_mat,
}


def read_events(
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    rebase: bool = True,
    max_events: int = MAX_EVENTS,
) -> Events:
    """Read one recording; the format is found from its content and, where that says nothing, its suffix.

    Args:
        path: the file.
        height, width: of the sensor; None: what the file says, else the smallest that holds all events. For training
            give them: the smallest size differs from recording to recording.
        rebase: times count from the earliest event; False: the times of the file.
        max_events: more are refused, before memory is taken for them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown format, or a damaged file; says where.
        ImportError: a package that the format needs is not installed; says which.
    """
    path = Path(path)
    kind = event_format(path)
    if kind in _BY_SIZE:
        return _BY_SIZE[kind](path, height, width, rebase=rebase, max_events=max_events)
    check_count(path, path.stat().st_size // 5, max_events)
    if kind == "aedat2":
        _check_chip(path)
        events = read_aedat2(path, rebase=rebase)
    elif kind == "aedat3":
        size = _aedat3_size(path)
        events = read_aedat3(path, height or size[0], width or size[1])
    else:
        events = _read_bin(path, height, width)
    if rebase and len(events):
        events = replace(events, t=events.t - events.t.min())
    return _resized(path, events, height, width)


def event_format(path: str | Path) -> str:
    """The format of a recording, one of `FORMATS`.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: no format that is known, or an empty file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected one recording, a file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with path.open("rb") as file:
        first = file.read(4096)
    if not first:
        raise ValueError(f"{path} is empty, 0 bytes long; the copy or download probably failed: fetch it again.")
    starts = {
        b"#!AER-DAT2.0": "aedat2",
        b"#!AER-DAT3": "aedat3",
        b"#!AER-DAT4": "aedat4",
        b"\x89HDF\r\n\x1a\n": "hdf5",
        b"PK\x03\x04": "npz",
        b"\x93NUMPY": "npy",
        b"MATLAB": "mat",
    }
    for start, kind in starts.items():
        if first.startswith(start):
            return kind
    if first.startswith(b"%"):
        fields = text_header(first)[1]
        return "raw" if "evt" in fields or "EVT" in fields.get("format", "").upper() else "dat"
    suffixes = {".dat": "dat", ".bin": "bin", ".bs2": "bin", ".mat": "mat"}
    if path.suffix.lower() in suffixes:
        return suffixes[path.suffix.lower()]
    raise ValueError(
        f"{path} begins with {first[:12]!r} and ends in {path.suffix!r}: no format of events that is known. Read: "
        "AEDAT 2, 3.1 and 4, Prophesee .raw (EVT 2.0, 3.0) and .dat, HDF5, .npz, .npy, .mat, N-MNIST .bin. Of anything "
        "else (text, say) save the columns: numpy.savez('a.npz', t=t, x=x, y=y, p=p), t in whole microseconds."
    )


def _check_chip(path: Path) -> None:
    """AEDAT 2.0 lays addresses out by the camera: those of a DAVIS would be read as other pixels of a DVS128."""
    with path.open("rb") as file:
        header = file.read(2**16).decode("latin-1")
    found = re.search(r"^#\s*AEChip:\s*(\S*davis\S*)", header, re.IGNORECASE | re.MULTILINE)
    if found:
        raise ValueError(
            f"{path} is an AEDAT 2.0 file of the camera {found[1]}; of this format those of a DVS128 are read. For a "
            "DAVIS346 call spikeloom.datasets.human_actions.read_davis346; of others save t, x, y and p by numpy.savez."
        )


def _aedat3_size(path: Path) -> tuple[int, int]:
    """Height and width by the camera that the header names; DVS128's where it names none."""
    with path.open("rb") as file:
        header = file.read(4096).decode("latin-1")
    found = re.search(r"#Source \d+: (DVS128|DAVIS128|DAVIS240|DAVIS346)", header)
    return _SENSORS[found[1]] if found else _SENSORS["DVS128"]


def _read_bin(path: Path, height: int | None, width: int | None) -> Events:
    """The largest sensor that the format can hold, cut down to what there is."""
    events = read_bin(path, height or 240, width or 256)
    rows, columns = (int(c.max()) + 1 if len(events) else 1 for c in (events.y, events.x))
    return replace(events, height=height or rows, width=width or columns)


def _resized(path: Path, events: Events, height: int | None, width: int | None) -> Events:
    """The events on the sensor of the call."""
    try:
        return replace(events, height=height or events.height, width=width or events.width)
    except ValueError as error:
        raise ValueError(f"{path} is not a recording of this sensor. {error}") from error
