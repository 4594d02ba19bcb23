"""`spikeloom data info | verify | pack | show`: look at recordings and event stores, check them, pack data sets."""

from __future__ import annotations

import difflib
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
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
from spikeloom.datasets.recording_files import SUFFIXES, EventFolder, is_recording
from spikeloom.datasets.store_format import PARTS
from spikeloom.datasets.store_parts import split_parts
from spikeloom.datasets.store_writer import Packing, make_folder, pack_store

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
UNSIZED = ("bin", "hdf5", "mat", "npy", "npz")
"""Formats whose files seldom say the size of the sensor."""
_NO_SPLIT = "none recorded"
_LOOKED_AT = 64


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
    split: str | None = None
    """Part of the data set (train where it is left out); not of "folder"."""
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
        console = Console(highlight=False, stderr=not asked)
        if argv and not asked:
            console.print(f"[bold red]error:[/] there is no command {escape(repr(argv[0]))} of spikeloom data.\n")
        console.print("[bold]Usage[/] spikeloom data COMMAND \\[ARGUMENTS]; each command has its own --help.\n")
        grid = Table.grid(padding=(0, 2))
        for name, (kind, _) in commands.items():
            grid.add_row(f"  [cyan]{name}[/]", str(kind.__doc__).split(". ")[0].rstrip(".") + ".")
        console.print(grid)
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
    size = f"{events.height} x {events.width} (H x W)"
    if kind in UNSIZED and len(events) and int(events.y.max()) + 1 == events.height:
        size += ", the smallest that holds all events"
    rows = [("format", kind), ("events", f"{len(events):,}"), ("sensor", size)]
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
        ("time", _times_of(store)),
        ("split", _split_of(store)),
        ("labels", f"{len(labels)}" + (f" ({named})" if named else "")),
        ("size", f"{path.stat().st_size / 1e6:,.1f} MB"),
    ]


def _times_of(store: EventStore) -> str:
    """When recordings end, by their own clock, as training cuts them; those of a large store are looked at in part."""
    chosen = torch.linspace(0, len(store) - 1, min(len(store), _LOOKED_AT)).long().tolist()
    ends = []
    for index in chosen:
        with suppress(ValueError):  # damage is for `verify` to name
            events = store[index][0]
            ends += [int(events.t[-1]) / 1e6] if len(events) else []
    if not ends:
        return "no events"
    of = "" if len(chosen) == len(store) else f" (of {len(chosen)} recordings)"
    return f"ends at {min(ends):.6g} to {max(ends):.6g} s{of}"


def _split_of(store: EventStore) -> str:
    if store.parts is None:
        return _NO_SPLIT
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
        files = sorted(f for f in path.rglob("*") if is_recording(f)) if path.is_dir() else [path]
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
    console, start, replaced = Console(highlight=False), time.perf_counter(), options.out.exists()
    with _bar(console) as bar:
        task = bar.add_task("pack", total=len(dataset))

        def progress(done: int, total: int, events: int) -> None:
            bar.update(task, completed=done, description=f"pack, {events / 1e6:,.1f} M events")

        with warnings.catch_warnings():  # those of recordings that are left out; they are listed below
            warnings.filterwarnings("ignore", "Recording .* is left out", RuntimeWarning)
            try:
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
            except KeyboardInterrupt:
                bar.stop()
                console.print(f"{options.out} is not finished; the same command goes on where it was.", markup=False)
                raise
    _say_packed(console, options.out, result, time.perf_counter() - start, replaced)
    return 0


def _say_packed(console: Console, path: Path, result: Packing, seconds: float, replaced: bool) -> None:
    """What is in the store, and what is not."""
    again = f", {result.resumed:,} of them by an earlier try" if result.resumed else ""
    instead = ", in place of the file that was there" if replaced else ""
    console.print(
        f"{path}: {result.packed:,} recordings{again}, {path.stat().st_size / 1e6:,.1f} MB, {seconds:.1f} s{instead}.",
        markup=False,
        soft_wrap=True,
    )
    split = _split_of(EventStore(path))
    if split != _NO_SPLIT:
        console.print(f"split: {split}")
    if result.left_out:
        console.print(f"[yellow]{len(result.left_out):,} recordings could not be read and were left out:[/]")
        for index, why in result.left_out:
            console.print(f"  {index}: {why}", soft_wrap=True, markup=False)


def _opened(options: Pack) -> tuple[Any, int, int, tuple[str, ...]]:
    if options.dataset == "folder":
        if options.height is None or options.width is None:
            raise ValueError("A folder of your own needs --height and --width of the sensor.")
        if options.split is not None:
            raise ValueError(f"--split {options.split} is of data sets by name; --test SHARE splits a folder.")
        folder = EventFolder(options.root, options.height, options.width)
        return folder, options.height, options.width, folder.classes
    if options.dataset not in KNOWN:
        near = difflib.get_close_matches(options.dataset, (*KNOWN, "folder"), n=1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"There is no data set {options.dataset!r}.{meant} Known: {', '.join(KNOWN)} and folder.")
    if options.height is not None or options.width is not None:
        raise ValueError(f'--height and --width are for "folder" only; {options.dataset} has its own sensor.')
    kind, height, width, classes = KNOWN[options.dataset]
    dataset = kind(options.root, options.split or "train")
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
        named = 0 <= label < len(store.classes) and store.classes[label] != str(label)
        called = f" ({store.classes[label]})" if named else ""
        title = f"{options.path.name}, recording {options.index}, label {label}{called}"
        name = f"{name}_{options.index}"
    else:
        events, title = read_events(options.path), options.path.name
    folder = options.out or Path()
    make_folder(folder)
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
