"""To and from tonic: its data sets as ours, our transforms in its pipelines, and its transforms in ours.

tonic (GPL-3.0) is never imported here: its data sets give structured arrays of x, y, t, p and carry `sensor_size`
(width, height, polarities), and its transforms are functions of such arrays. That is all these wrappers rely on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray
from torch.utils.data import Dataset

from spikeloom.datasets.events import Events

Structured = NDArray[Any]


class TonicDataset(Dataset[tuple[Events, int]]):
    """A data set of tonic as one of (Events, label): `from_tonic` makes it."""

    def __init__(self, dataset: Any, height: int, width: int) -> None:
        self.dataset, self.height, self.width = dataset, height, width
        self.classes: tuple[str, ...] = tuple(map(str, getattr(dataset, "classes", ()) or ()))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Events, int]:
        array, label = self.dataset[index]
        try:
            return Events.from_structured(array, self.height, self.width), int(label)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Recording {index} of {type(self.dataset).__name__} is no (structured array of x, y, t, p, whole "
                f"number): {error} Leave out tonic's transforms to frames, and its target_transform."
            ) from error


def from_tonic(dataset: Any, sensor_size: Sequence[int] | None = None) -> TonicDataset:
    """Wrap a data set of tonic whose samples are (events, label); its transforms of events run first.

    sensor_size: (width, height, ...) in tonic's order; None: the data set's own.

    Raises:
        ValueError: no sensor size, or one of fewer than two numbers.
    """
    size = getattr(dataset, "sensor_size", None) if sensor_size is None else sensor_size
    if size is None or len(size) < 2:
        raise ValueError(
            f"{type(dataset).__name__} has the sensor_size {size!r}; pass sensor_size=(width, height), tonic's order."
        )
    return TonicDataset(dataset, int(size[1]), int(size[0]))


def for_tonic(change: Callable[[Events], Events], sensor_size: Sequence[int]) -> Callable[[Structured], Structured]:
    """Our change of `Events` as a transform of tonic: structured array in, structured array out.

    sensor_size: (width, height, ...), tonic's order. Example: `for_tonic(partial(refractory_filter, period_us=1000),
    NMNIST.sensor_size)` inside `tonic.transforms.Compose`.
    """

    def transform(array: Structured) -> Structured:
        events = Events.from_structured(array, int(sensor_size[1]), int(sensor_size[0]))
        return change(events).to_structured()

    return transform


def tonic_transform(transform: Callable[[Structured], Structured]) -> Callable[[Events], Events]:
    """A transform of tonic that gives events as a change of `Events`; the sensor's size stays.

    tonic draws from NumPy's global generator: seed that for the same result again.
    """

    def change(events: Events) -> Events:
        return Events.from_structured(transform(events.to_structured()), events.height, events.width)

    return change
