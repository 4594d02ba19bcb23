"""Spiking Heidelberg Digits (SHD) and Spiking Speech Commands (SSC), read from the published HDF5 files.

B. Cramer, Y. Stradmann, J. Schemmel, F. Zenke 2022, "The Heidelberg Spiking Data Sets for the Systematic Evaluation of
Spiking Neural Networks", IEEE TNNLS, doi:10.1109/TNNLS.2020.3044364 (CC BY 4.0). Speech through a model of the inner
ear with 700 units: English and German digits of 12 speakers (8,156 to train on, 2,264 to test; 20 classes), and the
Speech Commands of Google (75,466, 9,981 and 20,382; 35 classes). A file holds

    spikes/times   [R] of float16 of any length, seconds, ascending
    spikes/units   [R] of uint16 of the same lengths, 0 ... 699
    labels         [R] whole numbers
    extra/speaker  [R]
    extra/keys     [classes] names of the classes

SHD has no validation part, and two of its speakers are in the test part alone; hold speakers out of the training part
by `groups`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spikeloom.datasets.hdf5_ragged import check_ragged
from spikeloom.datasets.sequences import Sequences
from spikeloom.datasets.spike_bins import bin_recordings

Progress = Callable[[int, int], None]

UNITS = 700

_PAGE = "https://compneuro.net/datasets/ (or its mirror https://zenkelab.org/datasets/)"
_MOST_RECORDINGS = 2**20  # SSC has 75,466 to train on
_MOST_STEPS = 2**16  # of one recording; those of the files have some hundred
_CHUNK = 512  # recordings binned at once: counts of 64 bits, about 50 MB
_AGAIN = f"The download was probably cut off, or this is another file: get it again from {_PAGE}."


def shd(
    root: str | Path,
    part: Literal["train", "test"] = "train",
    *,
    duration: float = 10.0,
    merge: int = 5,
    progress: Progress | None = None,
) -> Sequences:
    """Spiking Heidelberg Digits: counts uint8 per frame and channel, N = 700 / merge; groups are the 12 speakers.

    Args:
        root: the folder of `shd_train.h5` and `shd_test.h5`.
        duration: of a frame, ms. merge: neighbouring units summed.
        progress: called with the recordings done and their number.

    Raises:
        FileNotFoundError: the file is missing; says which and where it is to be had.
        ValueError: a damaged file, arrays that do not agree, times that do not ascend, units out of range.
        ImportError: h5py is not installed.
    """
    if part not in ("train", "test"):
        raise ValueError(f"part is {part!r}; expected 'train' or 'test': SHD has no validation part.")
    return _read(Path(root), f"shd_{part}.h5", duration, merge, progress)


def ssc(
    root: str | Path,
    part: Literal["train", "valid", "test"] = "train",
    *,
    duration: float = 10.0,
    merge: int = 5,
    progress: Progress | None = None,
) -> Sequences:
    """Spiking Speech Commands, from `ssc_train.h5`, `ssc_valid.h5` or `ssc_test.h5`; otherwise as `shd`."""
    if part not in ("train", "valid", "test"):
        raise ValueError(f"part is {part!r}; expected 'train', 'valid' or 'test'.")
    return _read(Path(root), f"ssc_{part}.h5", duration, merge, progress)


def _read(root: Path, name: str, duration: float, merge: int, progress: Progress | None) -> Sequences:
    path = root / name
    if not path.is_file():
        packed = path.with_name(f"{name}.gz")
        todo = f"Unpack {packed} (gunzip)" if packed.is_file() else f"Get {name}.gz from {_PAGE} and unpack it there"
        raise FileNotFoundError(f"There is no file {path}. {todo}.")
    return read_file(path, duration=duration, merge=merge, progress=progress)


def read_file(path: Path, *, duration: float = 10.0, merge: int = 5, progress: Progress | None = None) -> Sequences:
    """One file of either data set, whatever its name; otherwise as `shd`."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError("Reading HDF5 needs h5py. Install it with `pip install 'spikeloom[data]'`.") from error
    try:
        with h5py.File(path, "r") as file:
            labels, speakers, names = _columns(file, path)
            counts, offsets = _binned(file, path, duration, merge, progress)
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read: {error}. {_AGAIN}") from error
    except Exception as error:  # of a damaged file the library raises nearly anything
        raise ValueError(f"{path} is not a whole HDF5 file ({error}). {_AGAIN}") from error
    if int(labels.min()) < 0 or int(labels.max()) >= len(names):
        raise ValueError(
            f"{path}: labels are from {int(labels.min())} to {int(labels.max())}, but extra/keys names {len(names)} "
            f"classes. {_AGAIN}"
        )
    return Sequences(counts, offsets, labels, speakers, names)


def _columns(file: Any, path: Path) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Labels `[R]`, speakers `[R]` and names of the classes."""
    wanted = ("spikes/times", "spikes/units", "labels", "extra/speaker", "extra/keys")
    missing = [name for name in wanted if name not in file]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; expected {', '.join(wanted)}. {_AGAIN}")
    shapes = {name: tuple(getattr(file[name], "shape", None) or ()) for name in wanted}
    if any(len(shape) != 1 for shape in shapes.values()) or shapes["extra/keys"][0] > _MOST_RECORDINGS:
        raise ValueError(f"{path} has arrays of shapes {shapes}; expected columns. {_AGAIN}")
    lengths = {name: shapes[name][0] for name in wanted[:4]}
    if len(set(lengths.values())) != 1 or not 1 <= lengths["labels"] <= _MOST_RECORDINGS:
        raise ValueError(
            f"{path} has arrays of lengths {lengths}; expected one length of 1 to {_MOST_RECORDINGS:,}. {_AGAIN}"
        )
    whole = []
    for name in ("labels", "extra/speaker"):
        column = file[name][:]
        if column.dtype.kind not in "iu":
            raise ValueError(f"{path}: {name} is {column.dtype}; expected whole numbers. {_AGAIN}")
        whole.append(torch.from_numpy(column.astype(np.int64)))
    names = tuple(key.decode() if isinstance(key, bytes) else str(key) for key in file["extra/keys"][:])
    return whole[0], whole[1], names


def _binned(file: Any, path: Path, duration: float, merge: int, progress: Progress | None) -> tuple[Tensor, Tensor]:
    """Counts `[S, N]` uint8 of all recordings and the offsets `[R + 1]` of their frames."""
    times, units = file["spikes/times"], file["spikes/units"]
    for column in (times, units):
        check_ragged(path, column)
    R = len(times)
    counts, ends = [], [torch.zeros(1, dtype=torch.int64)]
    for start in range(0, R, _CHUNK):
        stop = min(start + _CHUNK, R)
        t, x = times[start:stop], units[start:stop]
        sizes = [len(recording) for recording in t]
        if sizes != [len(recording) for recording in x]:
            raise ValueError(f"{path}, recordings {start} to {stop - 1}: times and units of other lengths. {_AGAIN}")
        offsets = torch.tensor([0, *sizes]).cumsum(0)
        try:
            joined = _joined(t)
            _check_length(joined, duration)
            binned, frames = bin_recordings(joined, _joined(x).int(), offsets, duration, UNITS, merge)
        except ValueError as error:
            raise ValueError(f"{path}, recordings {start} to {stop - 1}: {error}") from error
        if int(binned.max()) > 255:
            raise ValueError(
                f"{path}, recordings {start} to {stop - 1}: {int(binned.max())} spikes in one frame and channel; a "
                f"count is stored in a byte. Pass a duration below {duration:g} ms or a merge below {merge}."
            )
        counts.append(binned.to(torch.uint8))
        ends.append(frames[1:] + ends[-1][-1])
        if progress is not None:
            progress(stop, R)
    return torch.cat(counts), torch.cat(ends)


def _check_length(times: Tensor, duration: float) -> None:
    """A damaged time would ask for memory for all the frames before it."""
    longest = float(times.double().abs().max()) * 1000 / duration if len(times) and duration > 0 else 0.0
    if _MOST_STEPS < longest < math.inf:
        raise ValueError(f"a time asks for {longest:,.0f} frames of {duration:g} ms; at most {_MOST_STEPS:,} are read")


def _joined(recordings: NDArray[Any]) -> Tensor:
    """All spikes of the recordings, in the type of the file."""
    return torch.from_numpy(np.concatenate(list(recordings)))
