"""Recordings kept as arrays: .npz, .npy, .mat and HDF5 files. Nothing is unpickled; sizes are checked before reading.

    .npz     t, x, y, p (SpikingJelly's keys); with `offsets` and `size` it is a file of PackedEvents.save
    .npy     a structured array of t, x, y, p (DVS-Lip)
    .mat     ts, x, y, pol (ASL-DVS), or `spiketrain` [101, N]: 100 taxels of 10 x 10, -1, 0 or 1, and the time in
             seconds (ST-MNIST); MATLAB files of version 5
    HDF5     t, x, y, p at the top or in a group `events` or `CD` (DSEC; `t_offset`, a number, is added to the times),
             or a structured array `events` or `CD/events`

Columns of N x 1 and 1 x N count as N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spikeloom.datasets.events import Events
from spikeloom.datasets.mat5 import read_mat5
from spikeloom.datasets.npy_headers import check_header, check_members
from spikeloom.datasets.raw_columns import MAX_EVENTS, check_count, to_events

_NAMES = {
    "t": ("t", "ts", "time", "timestamp", "timestamps"),
    "x": ("x", "xs"),
    "y": ("y", "ys"),
    "p": ("p", "ps", "pol", "polarity", "on"),
}
_TAXELS = 10  # ST-MNIST: rows and columns of the sensor
_MOST_TAXELS = 2**30  # bytes of a spiketrain


def read_npz(
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    rebase: bool = False,
    max_events: int = MAX_EVENTS,
) -> Events:
    """Read a .npz of one recording.

    Raises:
        ValueError: a damaged file, missing or unequal arrays, more than one recording, events outside the sensor.
    """
    try:
        for shape in check_members(path):
            _check_shape(path, shape, max_events)
        with Path(path).open("rb") as raw, np.lib.npyio.NpzFile(raw, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files if loaded[name].dtype.kind in "biufV"}
    except Exception as error:  # of a damaged file these libraries raise nearly anything
        raise ValueError(f"{path} is not a whole .npz file: {error}") from error
    if "offsets" in arrays and len(arrays["offsets"]) != 2:
        raise ValueError(
            f"{path} holds {len(arrays['offsets']) - 1} recordings; PackedEvents.load reads them, and [i] is one."
        )
    size = arrays.pop("size", np.zeros(0))
    if size.shape == (2,) and size.dtype.kind == "i" and size.min() >= 1 and size.max() <= 32767:
        height, width = height or int(size[0]), width or int(size[1])
    return _events(path, arrays, height, width, rebase, max_events)


def read_npy(
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    rebase: bool = False,
    max_events: int = MAX_EVENTS,
) -> Events:
    """Read a .npy of one structured array.

    Raises:
        ValueError: a damaged file, an array of other fields, events outside the sensor.
    """
    try:
        with Path(path).open("rb") as file:
            _check_shape(path, check_header(file, Path(path).stat().st_size), max_events)
            file.seek(0)
            array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # of a damaged file these libraries raise nearly anything
        raise ValueError(f"{path} is not a whole .npy file: {error}") from error
    if array.dtype.names is None:
        raise ValueError(
            f"{path} holds an array of {array.dtype} {array.shape}; expected a structured array of t, x, y, p. Which "
            "column is which cannot be told from an array a: numpy.savez('a.npz', t=a[:, 0], x=a[:, 1], ...) says it."
        )
    return _events(path, {name: array[name] for name in array.dtype.names}, height, width, rebase, max_events)


def read_mat(
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    rebase: bool = False,
    max_events: int = MAX_EVENTS,
) -> Events:
    """Read a MATLAB file of one recording.

    Raises:
        ValueError: a damaged file, missing or unequal arrays, events outside the sensor.
    """
    columns = frozenset(name for names in _NAMES.values() for name in names)
    try:
        arrays = read_mat5(path, columns | {"spiketrain"}, max(8 * max_events, _MOST_TAXELS))
        for name in columns & set(arrays):
            _check_shape(path, arrays[name].shape, max_events)
    except Exception as error:
        raise ValueError(f"{path} is not a whole MATLAB file: {error}") from error
    if "spiketrain" in arrays:
        arrays = _taxels(path, arrays["spiketrain"], max_events)
        height, width = height or _TAXELS, width or _TAXELS
    return _events(path, arrays, height, width, rebase, max_events)


def read_hdf5(
    path: str | Path,
    height: int | None = None,
    width: int | None = None,
    *,
    rebase: bool = True,
    max_events: int = MAX_EVENTS,
) -> Events:
    """Read an HDF5 file of one recording. rebase: times count from the earliest event, else from the file's clock.

    Raises:
        ValueError: a damaged file, missing or unequal arrays, events outside the sensor.
        ImportError: h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Reading HDF5 needs h5py. Install it with `pip install 'spikeloom[data]'`.") from error
    try:
        with h5py.File(path, "r") as file:
            if "spikes" in file:
                raise ValueError("it holds spikes of units, many recordings: spikeloom.datasets.shd and ssc read these")
            place = next((file[name] for name in ("events", "CD/events", "CD") if name in file), file)
            if isinstance(place, h5py.Dataset):
                _check_shape(path, place.shape, max_events)
                table = place[:]
                arrays = {name: table[name] for name in table.dtype.names or ()}
            else:
                arrays = {}
                for name in (name for names in _NAMES.values() for name in names):
                    if isinstance(place.get(name), h5py.Dataset):
                        _check_shape(path, place[name].shape, max_events)
                        arrays[name] = place[name][:]
            offset = file["t_offset"][()] if isinstance(file.get("t_offset"), h5py.Dataset) else 0
    except Exception as error:  # of a damaged file these libraries raise nearly anything
        raise ValueError(f"{path} is not a whole HDF5 file of events: {error}") from error
    if np.ndim(offset) or np.asarray(offset).dtype.kind not in "iu" or not 0 <= int(offset) < 2**62:
        raise ValueError(f"{path}: t_offset is {offset!r}; expected a whole number of microseconds, 0 or more.")
    columns = _columns(path, arrays)
    if int(offset) and columns["t"].dtype.kind in "iu" and columns["t"].max(initial=0) < 2**62:
        columns["t"] = columns["t"].astype(np.int64) + int(offset)
    return _events(path, columns, height, width, rebase, max_events)


def _events(
    path: str | Path, arrays: Mapping[str, NDArray[Any]], height: int | None, width: int | None, rebase: bool, most: int
) -> Events:
    found = _columns(path, arrays)
    check_count(path, len(found["t"]), most)
    return to_events(path, found["t"], found["x"], found["y"], found["p"], height, width, rebase=rebase)


def _columns(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """t, x, y, p under their names in the file, each `[N]`."""
    found = {}
    for column, names in _NAMES.items():
        name = next((name for name in names if name in arrays), None)
        if name is None:
            raise ValueError(
                f"{path} has the arrays {sorted(arrays)[:12]}; expected t, x, y and p, missing {column} "
                f"(known as {', '.join(names)})."
            )
        array = arrays[name]
        if array.dtype.kind not in "biuf" or max(array.shape, default=0) != array.size:
            raise ValueError(f"{path}: the array {name} is {array.dtype} {array.shape}; expected a column of numbers.")
        found[column] = array.reshape(-1)
    return found


def _taxels(path: str | Path, train: NDArray[Any], most: int) -> dict[str, NDArray[Any]]:
    """ST-MNIST: each non-zero of `[100, N]` is an event of taxel row * 10 + column at the time in row 100."""
    if train.ndim != 2 or train.shape[0] != _TAXELS * _TAXELS + 1 or train.dtype.kind not in "iuf":
        raise ValueError(f"{path}: spiketrain is {train.dtype} {train.shape}; expected numbers [101, N].")
    seconds = train[-1].astype(np.float64)
    if not bool((np.abs(seconds) < 2.0**40).all()):
        raise ValueError(f"{path}: the times of spiketrain are not finite numbers of seconds.")
    step, taxel = train[:-1].T.nonzero()
    check_count(path, len(step), most)
    t = np.round(seconds * 1e6).astype(np.int64)[step]
    value = train[taxel, step]
    p = np.where(value == 1, 1, np.where(value == -1, 0, 2))  # 2 is refused later, by name
    return {"t": t, "x": taxel % _TAXELS, "y": taxel // _TAXELS, "p": p}


def _check_shape(path: str | Path, shape: tuple[int, ...] | None, max_events: int) -> None:
    if shape is None or len(shape) > 2 or any(n < 0 for n in shape):
        raise ValueError(f"an array of shape {shape}; expected one column")
    check_count(path, math.prod(shape), max_events)
