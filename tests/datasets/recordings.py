"""Recordings in every format that is read, written here by plain loops from the formats' descriptions, and damage."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH = 100, 120
DATA = Path(__file__).resolve().parent / "data"

Columns = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def columns(count: int = 60, seed: int = 0, step: int = 40) -> Columns:
    """t, x, y, p of a recording; several events at one time, runs in one row."""
    rng = np.random.default_rng(seed)
    t = 5000 + np.cumsum(rng.integers(0, step, count))
    y = np.repeat(rng.integers(0, HEIGHT, count), 3)[:count]
    return t.astype(np.int64), rng.integers(0, WIDTH, count), y, rng.integers(0, 2, count)


def aedat2(events: Columns) -> bytes:
    out = b"#!AER-DAT2.0\r\n# a comment\r\n"
    for t, x, y, p in zip(*events, strict=True):
        out += struct.pack(">II", int(y) << 8 | int(x) << 1 | (1 - int(p)), int(t))
    return out


def aedat3(events: Columns) -> bytes:
    out = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
    out += struct.pack("<hhiiiiii", 0, 1, 8, 4, 0, 1, 1, 1) + bytes(8)  # a packet of special events
    half = len(events[0]) // 2
    for part in (slice(None, half), slice(half, None)):
        rows = list(zip(*(column[part] for column in events), strict=True))
        out += struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(rows), len(rows), len(rows))
        for t, x, y, p in rows:
            out += struct.pack("<Ii", int(x) << 17 | int(y) << 2 | int(p) << 1 | 1, int(t))
    return out


def dat(events: Columns, header: bytes = b"% Data file\n% Version 2\n% Height 100\n% Width 120\n\x0c\x08") -> bytes:
    out = header
    for t, x, y, p in zip(*events, strict=True):
        address = int(x) | int(y) << 14 | int(p) << 28
        if b"Version 1" in header:
            address = int(x) | int(y) << 9 | int(p) << 17
        out += struct.pack("<II", int(t), address)
    return out


def evt2(events: Columns, header: bytes = b"% evt 2.0\n% format EVT2;height=100;width=120\n% end\n") -> bytes:
    out, high = header + struct.pack("<I", 0xA000_0000), -1
    for t, x, y, p in zip(*events, strict=True):
        if int(t) >> 6 != high:
            high = int(t) >> 6
            out += struct.pack("<I", 8 << 28 | high & 0x0FFF_FFFF)
        out += struct.pack("<I", int(p) << 28 | (int(t) & 63) << 22 | int(x) << 11 | int(y))
    return out


def evt3(events: Columns, header: bytes = b"% evt 3.0\n% geometry 120x100\n% end\n") -> bytes:
    """Single events; runs of one time, row and polarity with rising columns as vectors of 12 and 8."""
    words = [0xA000, 0x2005, 0x4FFF]  # a trigger, and events before any time or row
    rows = [tuple(int(v) for v in row) for row in zip(*events, strict=True)]
    high = low = row = None
    while rows:
        t, x, y, p = rows[0]
        if t >> 12 != high:
            high, low = t >> 12, 0
            words.append(0x8000 | high & 0xFFF)
        if t & 0xFFF != low:
            low = t & 0xFFF
            words.append(0x6000 | low)
        if y != row:
            row = y
            words.append(y)
        run = 1
        while run < len(rows) and rows[run][::2] == (t, y) and rows[run][3] == p and 0 < rows[run][1] - x < 20:
            if rows[run][1] <= rows[run - 1][1]:
                break
            run += 1
        if run == 1:
            words.append(0x2000 | p << 11 | x)
        else:
            mask = sum(1 << (r[1] - x) for r in rows[:run])
            words += [0x3000 | p << 11 | x, 0x4000 | mask & 0xFFF, 0x5000 | mask >> 12]
        rows = rows[run:]
    return header + np.array(words, dtype="<u2").tobytes()


def n_mnist(events: Columns) -> bytes:
    out = b""
    for t, x, y, p in zip(*events, strict=True):
        out += bytes((int(x), int(y), int(p) << 7 | int(t) >> 16, int(t) >> 8 & 255, int(t) & 255))
    return out


def npz(events: Columns) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **dict(zip("txyp", events, strict=True)))
    return file.getvalue()


def npy(events: Columns) -> bytes:
    file = io.BytesIO()
    table = np.zeros(len(events[0]), dtype=[("t", "<i4"), ("x", "i1"), ("y", "i1"), ("p", "i1")])
    for name, column in zip("txyp", events, strict=True):
        table[name] = column
    np.save(file, table)
    return file.getvalue()


def mat(events: Columns, compressed: bool = False) -> bytes:
    from scipy.io import savemat

    file = io.BytesIO()
    names = {"t": "ts", "x": "x", "y": "y", "p": "pol"}
    arrays = {names[name]: column.reshape(-1, 1) for name, column in zip("txyp", events, strict=True)}
    savemat(file, arrays, do_compression=compressed)
    return file.getvalue()


def hdf5(events: Columns, **options: Any) -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as root:
        for name, column in zip("txyp", events, strict=True):
            root.create_dataset(f"events/{name}", data=column, **options)
        root["t_offset"] = 1_000_000
    return file.getvalue()


ENCODERS: dict[str, tuple[str, Callable[[Columns], bytes]]] = {
    "aedat2": (".aedat", aedat2),
    "aedat3": (".aedat", aedat3),
    "dat": (".dat", dat),
    "evt2": (".raw", evt2),
    "evt3": (".raw", evt3),
    "bin": (".bin", n_mnist),
    "npz": (".npz", npz),
    "npy": (".npy", npy),
    "mat": (".mat", mat),
    "mat_packed": (".mat", lambda events: mat(events, compressed=True)),
    "hdf5": (".h5", hdf5),
    "hdf5_packed": (".h5", lambda events: hdf5(events, compression="gzip", chunks=(16,))),
}


def store(events: Columns) -> bytes:
    """An event store of two recordings, one to train and one to test on."""
    from spikeloom.datasets import Events, pack_store

    made = Events.from_arrays(*events, HEIGHT, WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.events"
        pack_store(path, [(made, 0), (made[:20], 1)], HEIGHT, WIDTH, classes=["a", "b"], parts=[0, 2])
        return path.read_bytes()


def packed(events: Columns) -> bytes:
    """A file of PackedEvents.save, of two recordings with labels."""
    from spikeloom.datasets import Events, PackedEvents

    made = Events.from_arrays(*events, HEIGHT, WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        PackedEvents.from_events([made, made[:20]], [0, 1]).save(path)
        return path.read_bytes()


def spikes(recordings: int = 4, **options: Any) -> bytes:
    """A file laid out as those of SHD and SSC: spikes of units, times in seconds as float16."""
    import h5py

    rng, file = np.random.default_rng(0), io.BytesIO()
    with h5py.File(file, "w") as root:
        for name, kind in (("times", np.float16), ("units", np.uint16)):
            rows = root.create_dataset(f"spikes/{name}", (recordings,), dtype=h5py.vlen_dtype(kind), **options)
            for i in range(recordings):
                drawn = np.sort(rng.random(30)) if name == "times" else rng.integers(0, 700, 30)
                rows[i] = drawn.astype(kind)
        root["labels"] = np.arange(recordings, dtype=np.uint16) % 2
        root["extra/speaker"] = np.zeros(recordings, np.uint16)
        root["extra/keys"] = np.array([b"zero", b"one"])
    return file.getvalue()


def samples() -> dict[str, tuple[str, bytes]]:
    """Suffix and bytes of one sound recording of each kind."""
    found = {name: (suffix, encode(columns())) for name, (suffix, encode) in ENCODERS.items()}
    found["store"] = (".events", store(columns()))
    found["packed_events"] = (".npz", packed(columns()))
    found["shd"], found["ssc_packed"] = (".h5", spikes()), (".h5", spikes(chunks=(2,), compression="gzip"))
    for kind in ("lz4", "plain", "zstd"):
        found[f"aedat4_{kind}"] = (".aedat4", (DATA / f"dv_processing_{kind}.aedat4").read_bytes())
    return found


@lru_cache(maxsize=1)
def samples_once() -> dict[str, tuple[str, bytes]]:
    """`samples`, made once."""
    return samples()


def read(path: Path, max_events: int) -> Any:
    """Read a recording, or everything in a file of many; what files of one suffix hold is told by their names."""
    import torch

    from spikeloom.datasets import EventStore, PackedEvents, heidelberg, open_parts, read_events

    if path.stem.startswith(("shd", "ssc")):
        return heidelberg.read_file(path)
    if path.stem.startswith("packed_events"):
        return PackedEvents.load(path)
    if path.suffix != ".events":
        return read_events(path, max_events=max_events)
    opened = EventStore(path)
    opened.verify()
    if opened.parts is not None:
        open_parts(path)["train"].frames_by_number(torch.zeros(1, dtype=torch.int64), 3)
    opened.frames(range(len(opened)), 3)
    return opened.select(range(len(opened)))


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """The same bytes with 1 to 6 changes: bits, bytes, extreme numbers, cuts, repeats, noise; mostly near the start."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 7))):
        if not changed:
            break
        near = max(1, int(len(changed) ** rng.uniform(0.3, 1.0)))
        at = int(rng.integers(near))
        kind = int(rng.integers(8))
        if kind == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[at] = int(rng.integers(256))
        elif kind == 2:
            width = int(rng.choice([1, 2, 4, 8]))
            value = int(rng.choice([0, 1, 255, 127, 128]))
            changed[at : at + width] = bytes([value]) * width
        elif kind == 3:
            width = int(rng.choice([2, 4, 8]))
            changed[at : at + width] = int(rng.integers(1 << 16)).to_bytes(width, "little")
        elif kind == 4 and rng.random() < 0.4:
            del changed[int(rng.integers(len(changed))) :]
        elif kind == 5:
            del changed[at : at + int(rng.integers(1, 9))]
        elif kind == 6:
            length = int(rng.integers(1, 33))
            changed[at:at] = changed[at : at + length]
        else:
            length = int(rng.integers(1, 17))
            changed[at : at + length] = rng.integers(0, 256, length).astype(np.uint8).tobytes()
    return bytes(changed)
