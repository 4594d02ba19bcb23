"""A few samples of every data set that recipes read, in the publishers' formats."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from spikeloom.datasets.cifar10_dvs import CLASSES


def write_fashion(root: Path, train: int = 20, test: int = 10) -> Path:
    """Grey images of noise with a bright row that tells the label, labels 0 to 9 in turn."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        images[np.arange(count), 2 * labels + 4] = 255
        head = bytes((0, 0, 8, 3)) + struct.pack(">3I", count, 28, 28)
        (root / f"{stem}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (root / f"{stem}-labels-idx1-ubyte").write_bytes(bytes((0, 0, 8, 1)) + struct.pack(">I", count) + bytes(labels))
    return root


def write_cifar(root: Path, classes: int, train: int = 20, test: int = 10) -> Path:
    """CIFAR-10 or CIFAR-100 records, fewer than are published (`allow_partial` reads them)."""
    rng = np.random.default_rng(0)
    names = ("data_batch_1.bin", "test_batch.bin") if classes == 10 else ("train.bin", "test.bin")
    for name, count in zip(names, (train, test), strict=True):
        labels = np.arange(count, dtype=np.uint8)[:, None] % 10
        coarse = labels[:, :0] if classes == 10 else labels
        pixels = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        (root / name).write_bytes(np.hstack((coarse, labels, pixels)).tobytes())
    return root


def write_cifar10_dvs(root: Path, count: int = 10, events: int = 40) -> Path:
    """`count` recordings of each class in AEDAT 2.0; of 10, the last is for testing."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for number in range(count):
            x, y = rng.integers(0, 128, (2, events))
            address = (y << 8 | x << 1 | rng.integers(0, 2, events)).astype(">u4")
            words = np.stack((address, np.arange(events, dtype=">u4") * 1000), 1)
            (root / name / f"cifar10_{name}_{number}.aedat").write_bytes(b"#!AER-DAT2.0\r\n" + words.tobytes())
    return root


def write_clips(root: Path, events: int = 400) -> Path:
    """A gesture of each of the eleven classes for training and for testing, as SpikingJelly's events_np."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(11):
            folder = root / "events_np" / part / str(label)
            folder.mkdir(parents=True)
            x, y = rng.integers(0, 128, (2, events))
            columns = {"t": np.arange(events) * 1000, "x": x, "y": y, "p": rng.integers(0, 2, events)}
            np.savez(folder / "user01.npz", **columns)
    return root


def write_gestures(root: Path) -> Path:
    """Two recordings of three gestures each in AEDAT 3.1, one recording for training; an event every 10 us."""
    folder = root / "DvsGesture"
    folder.mkdir(parents=True)
    events = [(t % 128 << 17 | 5 << 2 | 2 | 1, t) for t in range(0, 3000, 10)]
    head = struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(events), len(events), len(events))
    data = head + b"".join(struct.pack("<Ii", *event) for event in events)
    for name, part in (("user01_lab", "train"), ("user24_led", "test")):
        start = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
        (folder / f"{name}.aedat").write_bytes(start + data)
        rows = "".join(f"{label},{start},{start + 1000}\n" for label, start in ((1, 0), (5, 1000), (11, 2000)))
        (folder / f"{name}_labels.csv").write_text(f"class,startTime_usec,endTime_usec\n{rows}")
        (folder / f"trials_to_{part}.txt").write_text(f"{name}.aedat\n")
    return root
