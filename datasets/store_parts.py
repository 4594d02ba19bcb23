"""Train, validation and test part of packed recordings: stores of their own, or a split that one store has recorded.

    FOLDER/train.events, FOLDER/test.events and perhaps FOLDER/validation.events
    FILE.events                    packed with a split (`split_parts`)

The parts of one data set have one sensor and one list of classes; nothing is split anew when they are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor

from spikeloom.datasets.event_store import EventStore
from spikeloom.datasets.packed import PackedEvents
from spikeloom.datasets.store_format import PARTS, from_words
from spikeloom.datasets.word_frames import count_words

_MOST_CLASSES = 2**16  # where the store names none
_SEED = 0  # the same recordings are held out whenever a data set is packed


@dataclass(frozen=True, eq=False)
class StorePart:
    """Some recordings of a store, in the file: `numbers` `[N]` int64; labels are numbers of `classes`."""

    store: EventStore
    numbers: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """The number of recordings N."""
        return len(self.numbers)

    @property
    def labels(self) -> Tensor:
        """`[N]` int64."""
        return self.store.labels[self.numbers]

    @property
    def says(self) -> str:
        """One line that names the file."""
        return f"{self.store.path}: {len(self):,} recordings"

    @property
    def height(self) -> int:
        """Rows of the sensor."""
        return self.store.height

    @property
    def width(self) -> int:
        """Columns of the sensor."""
        return self.store.width

    def select(self, indices: Sequence[int] | Tensor) -> StorePart:
        """The recordings `indices` `[K]` in that order; nothing is read."""
        return replace(self, numbers=self.numbers[torch.as_tensor(indices, dtype=torch.int64)])

    def frames_by_time(self, indices: Tensor, T: int, end_us: int) -> Tensor:
        """Counts `[T, B, 2, H, W]` int32 by the recordings' own clocks, as `frames_by_time` gives them.

        Raises:
            ValueError: the file is damaged.
        """
        return self.store.clock_frames(self._sound(indices), T, end_us)

    def frames_by_number(self, indices: Tensor, T: int) -> Tensor:
        """Counts `[T, B, 2, H, W]` int32 of equally many events each, the last frame taking the remainder.

        Raises:
            ValueError: the file is damaged.
        """
        return self.store.number_frames(self._sound(indices), T)

    def events(self, indices: Tensor) -> PackedEvents:
        """The recordings `indices` `[K]` in memory, with labels.

        Raises:
            ValueError: the file is damaged.
        """
        return self.store.select(self._sound(indices))

    def words(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What to send to a GPU, see `EventStore.words`; `unpack` makes events of it there.

        Raises:
            ValueError: the file is damaged.
        """
        return self.store.words(self._sound(indices))

    def gathered(self, indices: Tensor, pin: bool) -> Tensor:
        """The same in one tensor, see `EventStore.gathered`; `split_words` divides it.

        Raises:
            ValueError: the file is damaged.
        """
        return self.store.gathered(self._sound(indices), pin=pin)

    def damaged(self, indices: Tensor) -> dict[int, str]:
        """What is wrong with which of the recordings `[K]`, by their places there, with file and number.

        Raises:
            ValueError: nothing can be read of the file, see `EventStore.damaged`.
        """
        found = self.store.damaged(self.numbers[indices])
        return {place: f"{self.store.path}: {line}" for place, line in found.items()}

    def number_frames(self, words: Tensor, offsets: Tensor, T: int) -> Tensor:
        """As `frames_by_number`, from what `words` gave, on its device."""
        return count_words(words, offsets, T, self.height, self.width)

    def unpack(self, words: Tensor, offsets: Tensor, starts: Tensor) -> PackedEvents:
        """Recordings of this sensor from what `words` gave, on its device, without labels."""
        return from_words(words, offsets, starts, self.height, self.width, None, checked=True)

    def _sound(self, indices: Tensor) -> Tensor:
        chosen = self.numbers[indices]
        self.store.check(chosen)
        return chosen


def split_parts(labels: Sequence[int] | Tensor, test: float, validation: float = 0.0) -> Tensor:
    """Parts `[N]` uint8 for `pack_store`: of each class these shares, drawn at random, always the same ones.

    At least one recording of each class goes to each part that is asked for. It is a split of recordings: where
    those of one person or one scene must not fall into two parts, pack the parts as stores of their own.

    Raises:
        ValueError: shares that leave nothing, or a class with too few recordings.
    """
    if not (0 <= validation < 1 and 0 < test < 1 and test + validation < 1):
        raise ValueError(
            f"The shares are test={test} and validation={validation}; expected 0 < test, 0 <= validation and less than "
            "1 together."
        )
    given = torch.as_tensor(labels, dtype=torch.int64)
    parts = torch.zeros(len(given), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(_SEED)
    for label in given.unique().tolist():
        places = (given == label).nonzero().squeeze(1)
        places = places[torch.randperm(len(places), generator=generator)]
        tested, held = (max(1, round(share * len(places))) if share else 0 for share in (test, validation))
        if tested + held >= len(places):
            raise ValueError(
                f"Class {label} has {len(places)} recordings: too few for test={test} and validation={validation}, "
                f"which take {tested} and {held} and must leave one to train on."
            )
        parts[places[:tested]] = PARTS.index("test")
        parts[places[tested : tested + held]] = PARTS.index("validation")
    return parts


def open_parts(root: str | Path, *, compare: bool = True) -> dict[str, StorePart]:
    """The parts at a place by name: train, test and, if there is one, validation. Where the store names no classes,
    they are called by their numbers.

    compare: look for recordings that are in two parts: of some a warning tells. False: it was done before.

    Raises:
        FileNotFoundError: no such place, or a folder without train.events or test.events.
        ValueError: a store without a recorded split, without recordings or without labels in a part; parts of
            different sensors or classes; a part whose recordings are all in another one; a damaged store.
    """
    root = Path(root)
    found = _of_folder(root) if root.is_dir() else _of_file(root)
    for name in ("train", "test"):
        if not len(found[name][1]):
            raise ValueError(f"{found[name][0].path} has no recordings in the part {name}; expected at least one.")
    for store, numbers in found.values():
        _check_labels(store, numbers)
    first = found["train"][0]
    for store, _ in found.values():
        if (store.height, store.width) != (first.height, first.width):
            raise ValueError(
                f"{store.path} is of a sensor of {store.height} x {store.width}, {first.path} of {first.height} x "
                f"{first.width} (H x W); expected one sensor. Pack both with the same --height and --width."
            )
        if store.classes != first.classes:
            raise ValueError(
                f"{store.path} has the classes {_named(store)}, {first.path} {_named(first)}; expected the same names "
                "in the same order, since labels are their numbers. Pack both from folders of the same classes."
            )
    if compare:
        _check_apart(found)
    most = max(int(store.labels[numbers].max()) for store, numbers in found.values() if len(numbers))
    classes = first.classes or tuple(map(str, range(most + 1)))
    return {name: StorePart(store, numbers, classes) for name, (store, numbers) in found.items()}


def _of_folder(root: Path) -> dict[str, tuple[EventStore, Tensor]]:
    names = [name for name in PARTS if (root / f"{name}.events").is_file()]
    missing = [f"{name}.events" for name in ("train", "test") if name not in names]
    if missing:
        raise FileNotFoundError(
            f"There is no {' and no '.join(missing)} in the folder {root}. Pack each part: `spikeloom data pack "
            f"DATASET FOLDER {root / missing[0]}`; or name one .events file that was packed with --test."
        )
    stores = {name: EventStore(root / f"{name}.events") for name in names}
    return {name: (store, torch.arange(len(store))) for name, store in stores.items()}


def _of_file(path: Path) -> dict[str, tuple[EventStore, Tensor]]:
    store = EventStore(path)
    if not len(store):
        raise ValueError(f"{path} holds no recordings; expected at least one to train on and one to test on.")
    if store.parts is None:
        raise ValueError(
            f"{path} says of no recording whether it is to train or to test on. Pack it with `spikeloom data pack ... "
            "--test 0.2`, which records a split; or put train.events and test.events into one folder and name that."
        )
    held = {name: (store.parts == number).nonzero().squeeze(1) for number, name in enumerate(PARTS)}
    return {name: (store, numbers) for name, numbers in held.items() if len(numbers) or name != "validation"}


def _check_labels(store: EventStore, numbers: Tensor) -> None:
    labels = store.labels[numbers]
    if not len(labels):
        return
    if int(labels.min()) < 0:
        first = int(numbers[int((labels < 0).nonzero()[0])])
        raise ValueError(
            f"{store.path}: recording {first} has the label {int(store.labels[first])}, which stands for none; "
            "expected 0 or more for each. Pack a data set with labels, such as folders ROOT/<class>/<file>."
        )
    if not store.classes and int(labels.max()) >= _MOST_CLASSES:
        raise ValueError(
            f"{store.path} has labels up to {int(labels.max()):,} and names no classes; expected labels from 0, below "
            f"{_MOST_CLASSES:,}, since a network has an output for each."
        )
    if store.classes and int(labels.max()) >= len(store.classes):
        raise ValueError(
            f"{store.path} has labels up to {int(labels.max())}, but names only {len(store.classes)} classes "
            f"({_named(store)}). Pack it again with a name for each label."
        )


def _check_apart(found: dict[str, tuple[EventStore, Tensor]]) -> None:
    """Refuse to choose or test by what is trained on, or to choose by what is tested on: copies under other names."""
    marks = {name: store.marks(numbers) for name, (store, numbers) in found.items()}
    for name, other in permutations(reversed(found), 2):
        (copy, whole), count = (found[name][0].path, found[other][0].path), len(marks[name])
        copies = int(torch.isin(marks[name], marks[other]).sum())
        if copies == count > 0:
            raise ValueError(
                f"Every recording of the part {name} of {copy} is in the part {other} of {whole}, too: accuracy on it "
                "would say nothing. Pack each recording into one part."
            )
        by_chance = count * len(marks[other]) / 2**32  # other recordings of one checksum, were all of one length
        if copies > 4 * by_chance and PARTS.index(name) > PARTS.index(other):
            warnings.warn(
                f"{copies:,} of {count:,} recordings of the part {name} of {copy} are in the part {other} of {whole}, "
                "too: accuracy on them says nothing. Pack each recording into one part.",
                RuntimeWarning,
                stacklevel=3,
            )


def _named(store: EventStore) -> str:
    return (", ".join(store.classes[:8]) + (" ..." if len(store.classes) > 8 else "")) or "(none)"
