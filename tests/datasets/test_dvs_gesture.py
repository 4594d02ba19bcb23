"""DVS128 Gesture: AEDAT 3.1 recordings and tables written here, clips as .npz, broken files, real clips if present."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from spikeloom.datasets import DVSGesture, EventClips, read_aedat3

HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
Event = tuple[int, int, int, int]


def packet(*events: Event, overflow: int = 0, invalid: int = 0, spare: int = 0, kind: int = 1) -> bytes:
    """Events (x, y, p, t); the first `invalid` are marked so; room for `spare` more follows."""
    number = len(events)
    head = struct.pack("<hhiiiiii", kind, 1, 8, 4, overflow, number + spare, number, number - invalid)
    body = b"".join(
        struct.pack("<Ii", x << 17 | y << 2 | p << 1 | (i >= invalid), t) for i, (x, y, p, t) in enumerate(events)
    )
    return head + body + bytes(8 * spare)


def write(path: Path, *packets: bytes) -> Path:
    path.write_bytes(HEADER + b"".join(packets))
    return path


def table(path: Path, *rows: str, header: str = "class,startTime_usec,endTime_usec") -> None:
    path.write_text("\n".join((header, *rows)) + "\n")


def write_set(root: Path) -> Path:
    """Two recordings, one trained on; events every 10 us from 0 to 990, x = t / 10."""
    folder = root / "DvsGesture"
    folder.mkdir()
    events: list[Event] = [(t // 10, 1, 1, t) for t in range(0, 1000, 10)]
    for name in ("user01_lab", "user24_led"):
        write(folder / f"{name}.aedat", packet(*events[:60]), packet(*events[60:]))
    table(folder / "user01_lab_labels.csv", "3,100,200", "11,200,205", "3,150,300", "", "1,995,1200")
    table(folder / "user24_led_labels.csv", "8,0,1000")
    (folder / "trials_to_train.txt").write_text("user01_lab.aedat\n\n")
    (folder / "trials_to_test.txt").write_text("user24_led.aedat")
    return folder


def test_bits_of_an_event(tmp_path: Path) -> None:
    events = read_aedat3(write(tmp_path / "a.aedat", packet((0, 127, 1, 5), (127, 0, 0, 6))))
    assert (events.x.tolist(), events.y.tolist()) == ([0, 127], [127, 0])
    assert (events.p.tolist(), events.t.tolist()) == ([1, 0], [5, 6])


def test_packets_overflow_other_types_and_invalid_events(tmp_path: Path) -> None:
    other = packet((1, 1, 1, 1), kind=0)
    late = packet((2, 2, 0, 4), overflow=1, spare=3)
    path = write(tmp_path / "a.aedat", packet((9, 9, 1, 1), (3, 3, 1, 2), invalid=1), other, late, packet())
    events = read_aedat3(path)
    assert events.t.tolist() == [2, 2**31 + 4]
    assert events.x.tolist() == [3, 2]


def test_the_same_as_spikingjelly(tmp_path: Path) -> None:
    utils = pytest.importorskip("spikingjelly.datasets.utils")
    draw = np.random.default_rng(0).integers
    columns = (draw(0, 128, 300), draw(0, 128, 300), draw(0, 2, 300), np.sort(draw(0, 2**30, 300)))
    events = list(zip(*(column.tolist() for column in columns), strict=True))
    path = write(tmp_path / "a.aedat", packet(*events[:120]), packet(*events[120:]))
    theirs, ours = utils.load_aedat_v3(path), read_aedat3(path)
    for name in ("t", "x", "y", "p"):
        assert getattr(ours, name).tolist() == theirs[name].tolist(), name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEADER + packet((1, 1, 1, 1))[:-1], r"ends at byte \d+: after byte \d+ a packet takes 8 bytes, found 7"),
        (HEADER + packet()[:20], "a packet takes 28 bytes, found 20"),
        (HEADER[:-10], r"without the line '#!END-HEADER'"),
        (b"#!AER-DAT2.0\r\n", r"an AEDAT 3\.1 file begins with"),
        (HEADER + struct.pack("<hhiiiiii", 1, 1, 12, 4, 0, 0, 0, 0), "events of 12 bytes"),
        (HEADER + struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, 1, 2, 2), "2 of 1 events"),
        (HEADER + packet((128, 1, 1, 1)), "not a recording of this sensor. Event 0 of 1 is at x=128"),
    ],
    ids=["event", "packet", "header", "version", "size", "number", "sensor"],
)
def test_broken_recordings_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.aedat"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.aedat .*{message}"):
        read_aedat3(path)


def test_an_empty_recording(tmp_path: Path) -> None:
    assert len(read_aedat3(write(tmp_path / "a.aedat"))) == 0


def test_gestures_are_cut_by_the_table(tmp_path: Path) -> None:
    write_set(tmp_path)
    train = DVSGesture(tmp_path)
    assert train.labels.tolist() == [2, 10, 2, 0]
    clip, label = train[0]
    assert label == 2
    assert clip.x.tolist() == list(range(10, 20))  # 100 <= t < 200
    assert clip.t.tolist() == list(range(0, 100, 10))
    packed = train.pack()
    assert packed.lengths.tolist() == [10, 1, 15, 0]  # overlaps are kept; the last has no events
    assert packed.labels is not None
    assert packed.labels.tolist() == [2, 10, 2, 0]
    assert train.pack([2, 0]).x[:3].tolist() == [15, 16, 17]
    test = DVSGesture(tmp_path / "DvsGesture", "test")
    assert (len(test), test[0][1], len(test[0][0])) == (1, 7, 100)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["12,0,5"], "line 2 has class 12"),
        (["0,0,5"], "line 2 has class 0"),
        (["1,0,5", "1,5,5"], "line 3 has class 1 from 5 to 5 us"),
        (["1,0"], "line 2 is '1,0'; expected three whole numbers"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, rows: list[str], message: str) -> None:
    folder = write_set(tmp_path)
    table(folder / "user01_lab_labels.csv", *rows)
    with pytest.raises(ValueError, match=rf"user01_lab_labels.csv, {message}"):
        DVSGesture(tmp_path)
    table(folder / "user01_lab_labels.csv", "1,0,5", header="a,b,c")
    with pytest.raises(ValueError, match=r"begins with 'a,b,c'"):
        DVSGesture(tmp_path)


def test_missing_files_are_listed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*trials_to_train.txt.*DvsGesture.tar.gz from https"):
        DVSGesture(tmp_path)
    folder = write_set(tmp_path)
    (folder / "user01_lab.aedat").unlink()
    (folder / "trials_to_train.txt").write_text("user01_lab.aedat\nuser02_lab.aedat\n")
    wanted = r"user01_lab.aedat, user02_lab.aedat, user02_lab_labels.csv \(3 files\)"
    with pytest.raises(FileNotFoundError, match=rf"lists 2 recordings; missing in .*: {wanted}"):
        DVSGesture(tmp_path)
    with pytest.raises(ValueError, match="split is 'valid'"):
        DVSGesture(tmp_path, "valid")  # type: ignore[arg-type]


def test_clips_are_ordered_by_label_and_name(tmp_path: Path) -> None:
    for label, name, x in ((10, "b", 1), (2, "b", 2), (2, "a", 3)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        np.savez(tmp_path / str(label) / f"{name}.npz", t=np.array([5, 9]), x=[x, x], y=[0, 1], p=[True, False])
    (tmp_path / "notes").mkdir()
    clips = EventClips(tmp_path)
    assert clips.labels.tolist() == [2, 2, 10]
    packed = clips.pack()
    assert packed.x.tolist() == [3, 3, 2, 2, 1, 1]
    assert clips[2][0].t.tolist() == [5, 9]
    assert clips[2][0].p.tolist() == [1, 0]


@pytest.mark.parametrize("label", [11, 12])
def test_clips_in_folders_named_by_class_are_refused(tmp_path: Path, label: int) -> None:
    for name in (1, label):
        (tmp_path / str(name)).mkdir()
        np.savez(tmp_path / str(name) / "a.npz", t=[1], x=[1], y=[1], p=[1])
    with pytest.raises(ValueError, match=rf"folder of label {label}; expected labels 0 to 10.* labels are class - 1"):
        EventClips(tmp_path)
    assert EventClips(tmp_path, classes=13).labels.tolist() == [1, label]


def test_broken_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no <label>/<name>.npz under .*events_np/train"):
        EventClips(tmp_path)
    (tmp_path / "0").mkdir()
    path = tmp_path / "0" / "a.npz"
    np.savez(path, t=[1], x=[1], y=[1])
    with pytest.raises(ValueError, match=r"a.npz .*expected t, x, y and p, missing \['p'\]"):
        EventClips(tmp_path)[0]
    np.savez(path, t=[1], x=[128], y=[1], p=[1])
    with pytest.raises(ValueError, match=r"a.npz .*x=128"):
        EventClips(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"a.npz is not a whole .npz"):
        EventClips(tmp_path)[0]


def test_real_clips() -> None:
    root = Path(__file__).resolve().parents[3] / "shared" / "data" / "dvs_gesture_clips"
    if not root.is_dir():
        pytest.skip(f"real gesture clips are not at {root}")
    packed = EventClips(root).pack()
    assert len(packed) == 10
    assert int(packed.lengths.min()) >= 44_482
    assert int(packed.t.max()) < 1_000_000
