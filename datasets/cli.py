"""`spikeloom data info | verify | pack | show`: look at recordings and event stores, check them, pack data sets."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from spikeloom.datasets.asl_dvs import ASLDVS
from spikeloom.datasets.cifar10_dvs import CIFAR10DVS
from spikeloom.datasets.cifar10_dvs import CLASSES as CIFAR10_CLASSES
from spikeloom.datasets.dvs_gesture import CLASSES as GESTURES
from spikeloom.datasets.dvs_gesture import DVSGesture
from spikeloom.datasets.dvs_lip import DVSLip
from spikeloom.datasets.event_files import event_format, read_events
from spikeloom.datasets.event_store import EventStore
from spikeloom.datasets.events import Events
from spikeloom.datasets.hardvs import HARDVS
from spikeloom.datasets.n_caltech101 import NCaltech101
from spikeloom.datasets.n_cars import NCARS
from spikeloom.datasets.nmnist import NMNIST
from spikeloom.datasets.pictures import write_gif, write_raster
from spikeloom.datasets.recording_files import SUFFIXES, EventFolder
from spikeloom.datasets.store_format import PARTS
from spikeloom.datasets.store_parts import split_parts
from spikeloom.datasets.store_writer import pack_store

_DIGITS = tuple(map(str, range(10)))
KNOWN: dict[str, tuple[Callable[..., Any], int, int, tuple[str, ...]]] = {
    "nmnist": (NMNIST, 34, 34, _DIGITS),
    "ncaltech101": (NCaltech101, 180, 240, ()),
    "cifar10-dvs": (CIFAR10DVS, 128, 128, CIFAR10_CLASSES),
    "dvs-gesture": (DVSGesture, 128, 128, GESTURES),
    "n-cars": (NCARS, 100, 120, ()),
    "asl-dvs": (ASLDVS, 180, 240, ()),
    "dvs-lip": (DVSLip, 128, 128, ()),
    "hardvs": (HARDVS, 260, 346, ()),
}
"""Class, height and width of the sensor, and names of the classes where the class itself has none."""


@dataclass(frozen=True)
class Info:
    """What is in a recording, or in an event store."""

    path: tyro.conf.Positional[Path]
    """A recording of any format, or a .events store."""


@dataclass(frozen=True)
class Verify:
    """Read every recording of a store, a folder or a file, and say which are damaged. Exit code 1 if any is."""

    path: tyro.conf.Positional[Path]
    """A .events store (compared with its checksums), a folder of recordings at any depth, or one recording."""


@dataclass(frozen=True)
class Pack:
    """Pack a data set into one event store. Broken off, it goes on where it was when it is called again."""

    dataset: tyro.conf.Positional[str]
    """nmnist, ncaltech101, cifar10-dvs, dvs-gesture, n-cars, asl-dvs, dvs-lip, hardvs, or "folder" (ROOT/<class>/*)."""
    root: tyro.conf.Positional[Path]
    """The folder of the unpacked data set."""
    out: tyro.conf.Positional[Path]
    """The store to write, ending in .events."""
    split: str = "train"
    """Part of the data set; not of "folder"."""
    on_error: Literal["stop", "skip"] = "stop"
    """A recording that cannot be read: stop, or leave it out with a warning and a count."""
    height: int | None = None
    """Rows of the sensor: for "folder" only."""
    width: int | None = None
    """Columns of the sensor: for "folder" only."""
    test: float = 0.0
    """Record a split: this share of each class is to test on. For one store that is trained from; official parts are
    packed into stores of their own, train.events and test.events of one folder."""
    validation: float = 0.0
    """With --test: the share of each class to validate on."""


@dataclass(frozen=True)
class Show:
    """Write an animated GIF and a raster PNG of a recording."""

    path: tyro.conf.Positional[Path]
    """A recording of any format, or a .events store."""
    out: Path | None = None
    """Folder for the pictures (the current one)."""
    index: int = 0
    """Which recording of a store."""
    frames: int = 40
    """Pictures of the GIF."""
    seconds: float = 4.0
    """How long it plays."""


def data(argv: list[str]) -> int:
    """`spikeloom data COMMAND ...`: returns the exit code."""
    commands: dict[str, tuple[Any, Callable[[Any], int]]] = {
        "info": (Info, _info),
        "verify": (Verify, _verify),
        "pack": (Pack, _pack),
        "show": (Show, _show),
    }
    if not argv or argv[0] not in commands:
        asked = argv[:1] in (["-h"], ["--help"])
        lines = [f"  {name:8}{str(kind.__doc__).split('. ')[0].rstrip('.')}." for name, (kind, _) in commands.items()]
        text = "Usage spikeloom data COMMAND [ARGUMENTS]; each command has its own --help.\n\n" + "\n".join(lines)
        Console(highlight=False, stderr=not asked).print(text, markup=False)
        return 0 if asked else 2
    kind, run = commands[argv[0]]
    return run(tyro.cli(kind, args=argv[1:], prog=f"spikeloom data {argv[0]}"))


def _info(options: Info) -> int:
    """What is in a recording, or in an event store."""
    rows = _store_facts(options.path) if options.path.suffix == ".events" else _recording_facts(options.path)
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(f"[dim]{name}[/]", escape(value))
    Console(highlight=False).print(table)
    return 0


def _recording_facts(path: Path) -> list[tuple[str, str]]:
    kind = event_format(path)
    events = read_events(path, rebase=False)
    rows = [("format", kind), ("events", f"{len(events):,}"), ("sensor", f"{events.height} x {events.width} (H x W)")]
    if len(events):
        first, last = int(events.t[0]), int(events.t[-1])
        seconds = max(last - first, 1) / 1e6
        pixels = len((events.y.long() * events.width + events.x).unique())
        rows += [
            ("time", f"{first:,} to {last:,} us, {seconds:.6g} s"),
            ("rate", f"{len(events) / seconds:,.0f} events/s"),
            ("ON events", f"{float(events.p.double().mean()):.1%}"),
            ("pixels that fired", f"{pixels:,} of {events.height * events.width:,}"),
        ]
    return rows


def _store_facts(path: Path) -> list[tuple[str, str]]:
    store = EventStore(path)
    counts = store.event_counts
    labels = store.labels.unique().tolist()
    named = ", ".join(store.classes[:12]) + (" ..." if len(store.classes) > 12 else "")
    return [
        ("format", "event store"),
        ("recordings", f"{len(store):,}"),
        (
            "events",
            f"{int(counts.sum()):,} ({int(counts.min()):,} to {int(counts.max()):,} each)" if len(store) else "0",
        ),
        ("sensor", f"{store.height} x {store.width} (H x W)"),
        ("split", _split_of(store)),
        ("labels", f"{len(labels)}" + (f" ({named})" if named else "")),
        ("size", f"{path.stat().st_size / 1e6:,.1f} MB"),
    ]


def _split_of(store: EventStore) -> str:
    if store.parts is None:
        return "none recorded"
    counts = store.parts.bincount(minlength=len(PARTS)).tolist()
    return ", ".join(f"{count:,} {name}" for name, count in zip(PARTS, counts, strict=True))


def _verify(options: Verify) -> int:
    """Read every recording of a store, a folder or a file, and say which are damaged."""
    console, path = Console(highlight=False), options.path
    if path.suffix == ".events":
        store = EventStore(path)
        with _bar(console) as bar:
            task = bar.add_task("verify", total=len(store))
            wrong = store.verify(lambda done, _: bar.update(task, completed=done))
        total = len(store)
    else:
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"There is no recording under {path}; files end in {', '.join(SUFFIXES)}.")
        wrong, total = [], len(files)
        with _bar(console) as bar:
            for file in bar.track(files, description="verify"):
                try:
                    read_events(file)
                except ValueError as error:
                    wrong.append(str(error))
    for line in wrong:
        console.print(line, style="red", soft_wrap=True, markup=False)
    console.print(f"{total - len(wrong):,} of {total:,} recordings are sound.")
    return 1 if wrong else 0


def _pack(options: Pack) -> int:
    """Pack a data set into one event store; broken off, it goes on where it was when it is called again."""
    dataset, height, width, classes = _opened(options)
    if options.validation and not options.test:
        raise ValueError(f"--validation {options.validation} is a part of the split that --test asks for; pass both.")
    parts = split_parts(dataset.labels, options.test, options.validation) if options.test else None
    console, start = Console(highlight=False), time.perf_counter()
    with _bar(console) as bar:
        task = bar.add_task("pack", total=len(dataset))

        def progress(done: int, total: int, events: int) -> None:
            bar.update(task, completed=done, description=f"pack, {events / 1e6:,.1f} M events")

        result = pack_store(
            options.out,
            dataset,
            height,
            width,
            classes=classes,
            parts=parts,
            on_error=options.on_error,
            progress=progress,
        )
    size = options.out.stat().st_size
    again = f", {result.resumed:,} of them by an earlier try" if result.resumed else ""
    console.print(
        f"{options.out}: {result.packed:,} recordings{again}, {size / 1e6:,.1f} MB, "
        f"{time.perf_counter() - start:.1f} s.",
        markup=False,
    )
    if result.left_out:
        console.print(f"[yellow]{len(result.left_out):,} recordings could not be read and were left out.[/]")
    return 0


def _opened(options: Pack) -> tuple[Any, int, int, tuple[str, ...]]:
    if options.dataset == "folder":
        if options.height is None or options.width is None:
            raise ValueError("A folder of your own needs --height and --width of the sensor.")
        folder = EventFolder(options.root, options.height, options.width)
        return folder, options.height, options.width, folder.classes
    if options.dataset not in KNOWN:
        raise ValueError(f"There is no data set {options.dataset!r}; known: {', '.join(KNOWN)} and folder.")
    kind, height, width, classes = KNOWN[options.dataset]
    dataset = kind(options.root, options.split)
    return dataset, height, width, tuple(getattr(dataset, "classes", classes))


def _show(options: Show) -> int:
    """Write an animated GIF and a raster PNG of a recording."""
    name = options.path.stem
    events: Events
    if options.path.suffix == ".events":
        store = EventStore(options.path)
        if not 0 <= options.index < len(store):
            raise ValueError(f"--index is {options.index}; {options.path} has {len(store)} recordings, the first is 0.")
        events, label = store[options.index]
        called = f" ({store.classes[label]})" if 0 <= label < len(store.classes) else ""
        title = f"{options.path.name}, recording {options.index}, label {label}{called}"
        name = f"{name}_{options.index}"
    else:
        events, title = read_events(options.path), options.path.name
    folder = options.out or Path()
    folder.mkdir(parents=True, exist_ok=True)
    seconds = (int(events.t[-1]) - int(events.t[0])) / 1e6 if len(events) else 0.0
    title = f"{title}: {len(events):,} events on {events.height} x {events.width} pixels in {seconds:.3f} s"
    write_gif(events, folder / f"{name}.gif", frames=options.frames, seconds=options.seconds)
    write_raster(events, folder / f"{name}.png", title)
    Console(highlight=False).print(f"{folder / name}.gif and {folder / name}.png", soft_wrap=True, markup=False)
    return 0


def _bar(console: Console) -> Progress:
    """A bar with rate and time left; where nobody watches, none."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
