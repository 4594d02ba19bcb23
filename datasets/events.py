"""The one event layout of spikeloom: four columns (t, x, y, p) and the size of the sensor.

Every reader, simulator and foreign library is converted to `Events` at the border (`from_arrays`, `from_structured`),
so that nothing inside has to ask what a polarity of 0 means or in which order a file keeps its fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MAX_SIDE = 32767  # x and y are int16


@dataclass(frozen=True, eq=False)
class Events:
    """One recording of N events, ordered by time; an event is four numbers.

    t: `[N]` int64, microseconds, >= 0, non-decreasing.
    x: `[N]` int16, column, 0 <= x < width.
    y: `[N]` int16, row, 0 <= y < height.
    p: `[N]` uint8, 0 = darker (OFF), 1 = brighter (ON).

    The constructor only checks. Data of any other dtype, order or polarity convention enters by `from_arrays`.
    """

    t: Tensor
    x: Tensor
    y: Tensor
    p: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        check_columns(self.t, self.x, self.y, self.p, self.height, self.width)
        check_order(self.t)

    @classmethod
    def from_arrays(
        cls,
        t: npt.ArrayLike | Tensor,
        x: npt.ArrayLike | Tensor,
        y: npt.ArrayLike | Tensor,
        p: npt.ArrayLike | Tensor,
        height: int,
        width: int,
    ) -> Events:
        """Normalise four columns of any numeric dtype; events out of order are sorted stably by time.

        t: `[N]` microseconds (whole numbers). p: `[N]` bool, {0, 1} or {-1, +1}.
        """
        columns = {name: _whole(name, values) for name, values in (("t", t), ("x", x), ("y", y), ("p", p))}
        check_lengths(columns)
        check_inside(columns["x"], columns["y"], height, width)  # before int16 could wrap a large coordinate round
        t64 = columns["t"].to(torch.int64)
        order = torch.argsort(t64, stable=True) if bool((t64[1:] < t64[:-1]).any()) else slice(None)
        return cls(
            t64[order],
            columns["x"][order].to(torch.int16),
            columns["y"][order].to(torch.int16),
            _polarity(columns["p"])[order],
            height,
            width,
        )

    @classmethod
    def from_structured(cls, array: npt.NDArray[Any], height: int, width: int) -> Events:
        """Convert a NumPy structured array `[N]` with fields x, y, t, p (tonic's layout) of any order and dtype."""
        names = array.dtype.names or ()
        missing = [name for name in ("t", "x", "y", "p") if name not in names]
        if missing:
            raise ValueError(
                f"The structured array has fields {list(names)}; expected t, x, y and p, missing {missing}. "
                "Rename its fields, or pass the columns one by one to Events.from_arrays."
            )
        return cls.from_arrays(array["t"], array["x"], array["y"], array["p"], height, width)

    def to_structured(self) -> npt.NDArray[Any]:
        """Return tonic's layout: a structured array `[N]` of x, y int16, t int64 (us), p bool."""
        array = np.empty(len(self), dtype=[("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "?")])
        for name in ("x", "y", "t", "p"):
            array[name] = getattr(self, name).cpu().numpy()
        return array

    def __len__(self) -> int:
        return self.t.shape[0]

    def __getitem__(self, key: slice | Tensor) -> Events:
        """Events of a slice, a boolean mask `[N]` or an index tensor in increasing time."""
        return Events(self.t[key], self.x[key], self.y[key], self.p[key], self.height, self.width)

    def time_slice(self, start_us: int, end_us: int) -> Events:
        """Events with start_us <= t < end_us; times are kept, so neighbouring slices put end to end are the whole."""
        if start_us > end_us:
            raise ValueError(f"The slice starts at {start_us} us and ends at {end_us} us; expected start_us <= end_us.")
        edges = torch.searchsorted(self.t, torch.tensor([start_us, end_us], device=self.t.device))
        return self[int(edges[0]) : int(edges[1])]

    def to(self, device: torch.device | str) -> Events:
        """The same events on another device."""
        t, x, y, p = (column.to(device) for column in (self.t, self.x, self.y, self.p))
        return Events(t, x, y, p, self.height, self.width)


def check_columns(t: Tensor, x: Tensor, y: Tensor, p: Tensor, height: int, width: int) -> None:
    """Raise unless the columns `[N]` have the dtypes, lengths and ranges that `Events` promises."""
    wanted = {"t": torch.int64, "x": torch.int16, "y": torch.int16, "p": torch.uint8}
    columns = {"t": t, "x": x, "y": y, "p": p}
    for name, column in columns.items():
        if column.dtype != wanted[name]:
            raise TypeError(
                f"Column {name} is {column.dtype}; the event layout needs {wanted[name]}. "
                "Events.from_arrays converts any dtype and polarity convention."
            )
    check_lengths(columns)
    check_inside(x, y, height, width)
    if len(t) and int(t.min()) < 0:
        first = int((t < 0).nonzero()[0])
        raise ValueError(
            f"Event {first} has time {int(t[first])} us; times must be >= 0. Subtract the start of the recording."
        )
    if len(p) and int(p.max()) > 1:
        first = int((p > 1).nonzero()[0])
        raise ValueError(f"Event {first} has polarity {int(p[first])}; expected 0 (OFF) or 1 (ON).")


def check_lengths(columns: dict[str, Tensor]) -> None:
    """Raise unless every column is one-dimensional and all have one length."""
    shapes = {name: tuple(column.shape) for name, column in columns.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"Event columns have shapes {shapes}; expected four one-dimensional columns of one length.")


def check_inside(x: Tensor, y: Tensor, height: int, width: int) -> None:
    """Raise unless every event lies on the sensor; the first that does not is named."""
    if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise ValueError(f"Sensor size is height {height} x width {width}; each must be 1 to {_MAX_SIDE}.")
    if not len(x):
        return
    left, right, top, bottom = torch.stack([*x.aminmax(), *y.aminmax()]).tolist()
    if left < 0 or right >= width or top < 0 or bottom >= height:
        x, y = x.to(torch.int64), y.to(torch.int64)  # a byte cannot be compared with a larger size
        outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
        first = int(outside.nonzero()[0])
        raise ValueError(
            f"Event {first} of {len(x)} is at x={int(x[first])}, y={int(y[first])}, outside the sensor of "
            f"height {height} x width {width} ({int(outside.sum())} events are). Give the sensor's true size "
            "(are height and width swapped?) or drop those events first."
        )


def check_order(t: Tensor, fresh: Tensor | None = None) -> None:
    """Raise where time runs backwards; `fresh` `[N-1]` marks the pairs that cross into a new recording."""
    backwards = t[1:] < t[:-1]
    if fresh is not None:
        backwards &= ~fresh
    if bool(backwards.any()):
        first = int(backwards.nonzero()[0]) + 1
        raise ValueError(
            f"Event {first} is at {int(t[first])} us, before event {first - 1} at {int(t[first - 1])} us; "
            "events must be ordered by time. Events.from_arrays sorts them."
        )


def _whole(name: str, values: npt.ArrayLike | Tensor) -> Tensor:
    """A column of numbers as int64, or as the int16 or uint8 that it is; fractions are refused, as seconds given for
    microseconds would be. The result shares no memory with an array.
    """
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"Column {name} has dtype {array.dtype}; expected numbers.")
        # by way of NumPy: torch has few operations for uint16/uint32 and none for big-endian data
        if array.dtype == np.int16:
            kind: npt.DTypeLike = np.int16
        elif array.dtype in (np.uint8, np.bool_):
            kind = np.uint8
        else:
            kind = np.float64 if array.dtype.kind == "f" else np.int64
        values = torch.from_numpy(array.astype(kind))
    if values.dtype in (torch.int16, torch.int64, torch.uint8):
        return values
    whole = values.to(torch.int64)
    if not values.is_floating_point():
        return whole
    fractions = values[whole.to(values.dtype) != values]
    if len(fractions):
        raise ValueError(
            f"Column {name} holds {fractions[0].item()}; expected whole numbers (times in microseconds: multiply "
            "seconds by 1e6 and round)."
        )
    return whole


def _polarity(p: Tensor) -> Tensor:
    """Map a column `[N]` of {0, 1} or {-1, +1} to uint8 {0, 1}."""
    if p.dtype == torch.uint8 and (not len(p) or int(p.max()) <= 1):
        return p
    p = p.to(torch.int64)
    stray = (p < -1) | (p > 1)
    if bool((p == -1).any()):
        stray |= p == 0  # {-1, 0, 1}: is 0 OFF or nothing?
    if bool(stray.any()):
        first = int(stray.nonzero()[0])
        raise ValueError(
            f"Event {first} has polarity {int(p[first])} in a column with values {torch.unique(p)[:8].tolist()}; "
            "expected bool, {0, 1} or {-1, +1}."
        )
    return (p > 0).to(torch.uint8)
