"""Readers of event files: the same recording from every format, by content, with bounds and errors that say where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spikeloom_tests.datasets import recordings as made

from spikeloom.datasets import Events, PackedEvents, Sequences, event_format, prophesee_raw, read_events
from spikeloom.kernels.backends import choose

KINDS = tuple(made.ENCODERS)
FORMAT = {"evt2": "raw", "evt3": "raw", "mat_packed": "mat", "hdf5_packed": "hdf5"}


def written(tmp_path: Path, kind: str, events: made.Columns) -> Path:
    suffix, encode = made.ENCODERS[kind]
    path = tmp_path / f"{kind}{suffix}"
    path.write_bytes(encode(events))
    return path


def same(events: Events, expected: made.Columns) -> None:
    for name, column in zip("txyp", expected, strict=True):
        assert getattr(events, name).tolist() == column.tolist(), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_recording(kind: str, tmp_path: Path) -> None:
    t, x, y, p = made.columns()
    path = written(tmp_path, kind, (t, x, y, p))
    assert event_format(path) == FORMAT.get(kind, kind)
    events = read_events(path, 128, 128)
    expected = (t - t[0], 127 - y, 127 - x, p) if kind == "aedat2" else (t - t[0], x, y, p)
    same(events, expected)
    assert (events.height, events.width) == (128, 128)
    clock = 1_000_000 if kind.startswith("hdf5") else 0
    same(read_events(path, 128, 128, rebase=False), (t + clock, *expected[1:]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_is_the_files_or_the_smallest(kind: str, tmp_path: Path) -> None:
    t, x, y, p = made.columns()
    events = read_events(written(tmp_path, kind, (t, x, y, p)))
    stated = {"aedat2": (128, 128), "aedat3": (128, 128), "dat": (100, 120), "evt2": (100, 120), "evt3": (100, 120)}
    assert (events.height, events.width) == stated.get(kind, (int(y.max()) + 1, int(x.max()) + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_off_the_sensor_is_named(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind, made.columns())
    with pytest.raises(ValueError, match=r"outside the sensor of height 10 x width 10"):
        read_events(path, 10, 10)


@pytest.mark.parametrize("kind", ["lz4", "plain", "zstd"])
def test_aedat4_is_what_the_package_aedat_reads(kind: str) -> None:
    aedat = pytest.importorskip("aedat")
    path = made.DATA / f"dv_processing_{kind}.aedat4"
    theirs = np.concatenate([packet["events"] for packet in aedat.Decoder(str(path)) if "events" in packet])
    events = read_events(path, rebase=False)
    same(events, (theirs["t"], theirs["x"], theirs["y"], theirs["on"].astype(int)))
    assert (events.height, events.width, len(events)) == (30, 40, 300)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 400), step=st.sampled_from([1, 3, 50, 90_000]))
@pytest.mark.parametrize("kind", ["evt2", "evt3", "dat", "aedat3"])
def test_random_recordings_come_back(kind: str, seed: int, count: int, step: int, tmp_path: Path) -> None:
    """Steps of 90 ms make the 24 bits of EVT 3.0 turn several times."""
    t, x, y, p = made.columns(count, seed, step)
    x, y = np.sort(x), np.minimum(y, 99)  # rising columns: vectors
    same(read_events(written(tmp_path, kind, (t, x, y, p)), 128, 128, rebase=False), (t, x, y, p))


def test_evt3_words_by_hand(tmp_path: Path) -> None:
    words = [0x8001, 0x6010, 0x0005, 0x2807, 0x3003, 0x4005, 0x5081, 0x400F & 0x4001, 0x8002, 0x2009, 0x6001, 0x2001]
    path = tmp_path / "by_hand.raw"
    path.write_bytes(b"% evt 3.0\n% end\n" + np.array(words, "<u2").tobytes())
    events = read_events(path, 20, 40, rebase=False)
    first, second = 4096 + 16, 8192
    assert events.t.tolist() == [first] * 6 + [second, second + 1]
    assert events.x.tolist() == [7, 3, 5, 15, 22, 23, 9, 1]  # vectors go on where the last one ended
    assert events.y.tolist() == [5] * 8
    assert events.p.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("block", [1, 2, 7])
@pytest.mark.parametrize("kind", ["evt2", "evt3"])
def test_blocks_do_not_show(kind: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t, x, y, p = made.columns(120, 3, 90_000)
    t = np.repeat(t[::6], 6)  # vectors
    path = written(tmp_path, kind, (t, np.sort(x.reshape(-1, 6), axis=1).reshape(-1), np.repeat(y[::6], 6), p))
    whole = read_events(path, 128, 128, rebase=False)
    monkeypatch.setattr(prophesee_raw, "_BLOCK", block)
    monkeypatch.setattr(prophesee_raw, "choose", lambda *_: "reference")  # the compiled loop has no blocks
    same(read_events(path, 128, 128, rebase=False), tuple(getattr(whole, n).numpy() for n in "txyp"))  # type: ignore[arg-type]
    assert whole.t.tolist() == t.tolist()


@pytest.mark.parametrize("version", ["2", "3"])
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(0, 3_000), kinds=st.integers(1, 2**16 - 1))
def test_the_compiled_decoder_is_the_other_bit_for_bit(version: str, seed: int, length: int, kinds: int) -> None:
    """Random words of random types: vectors without end, turns of the counter, events before any time or row."""
    if choose("auto", "cpu") != "cpu":
        pytest.skip("needs a C++ compiler")
    rng, (kind, bits) = np.random.default_rng(seed), (np.uint32, 28) if version == "2" else (np.uint16, 12)
    types = np.array([number for number in range(16) if kinds >> number & 1] + [0, 2, 3, 4, 5, 8], kind)
    words = types[rng.integers(0, len(types), length)] << bits | rng.integers(0, 2**bits, length).astype(kind)
    with pytest.MonkeyPatch.context() as patch:
        compiled = prophesee_raw._decoded("a.raw", words, version, 10**9)
        patch.setattr(prophesee_raw, "choose", lambda *_: "reference")
        patch.setattr(prophesee_raw, "_BLOCK", 1_000)
        plain = prophesee_raw._decoded("a.raw", words, version, 10**9)
    assert length < 500 or len(plain[0])
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)


def test_dat_of_version_1_and_without_header(tmp_path: Path) -> None:
    t, x, y, p = made.columns()
    for header in (b"% Version 1\n\x00\x08", b""):
        path = tmp_path / "old.dat"
        path.write_bytes(made.dat((t, x, y, p), header))
        same(read_events(path, 240, 304, rebase=False), (t, x, y, p))


def test_st_mnist_layout(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    train = np.zeros((101, 3))
    train[100] = [0.001, 0.002, 0.0025]
    train[12, 0], train[99, 1], train[3, 1] = 1, -1, 1
    savemat(tmp_path / "LUT.mat", {"spiketrain": train})
    events = read_events(tmp_path / "LUT.mat", rebase=False)
    assert (events.height, events.width) == (10, 10)
    assert events.t.tolist() == [1000, 2000, 2000]
    assert events.x.tolist() == [2, 3, 9]
    assert events.y.tolist() == [1, 0, 9]
    assert events.p.tolist() == [1, 1, 0]


def test_aedat2_of_another_camera_is_refused(tmp_path: Path) -> None:
    """Its addresses would be read as other pixels, without any sign of it."""
    first, rest = made.aedat2(made.columns()).split(b"\r\n", 1)
    path = tmp_path / "a.aedat"
    for chip, refused in ((b"retina.DVS128", False), (b"davis.Davis346blue", True), (b"davis.DAVIS240C", True)):
        path.write_bytes(first + b"\r\n# AEChip: eu.ini.chips." + chip + b"\r\n" + rest)
        if refused:
            with pytest.raises(ValueError, match=rf"camera \S*{chip.decode()}; .*read_davis346"):
                read_events(path)
        else:
            assert len(read_events(path)) == 60


def test_arrays_under_names_of_several(tmp_path: Path) -> None:
    t, x, y, p = made.columns()
    np.savez(tmp_path / "a.npz", ts=t, xs=x, ys=y, ps=p)
    same(read_events(tmp_path / "a.npz", rebase=False), (t, x, y, p))
    np.save(tmp_path / "a.npy", np.stack([t, x, y, p], 1))
    with pytest.raises(ValueError, match=r"array of int64 \(60, 4\).*numpy.savez"):
        read_events(tmp_path / "a.npy")


def test_packed_events_of_one_recording(tmp_path: Path) -> None:
    t, x, y, p = made.columns()
    one = Events.from_arrays(t, x, y, p, 130, 140)
    PackedEvents.from_events([one]).save(tmp_path / "one.npz")
    assert (read_events(tmp_path / "one.npz").height, read_events(tmp_path / "one.npz").width) == (130, 140)
    PackedEvents.from_events([one, one]).save(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="holds 2 recordings"):
        read_events(tmp_path / "two.npz")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("aedat2", "cut off"),
        ("aedat3", r"ends at byte \d+"),
        ("dat", r"within the event that begins at byte \d+"),
        ("evt2", r"ends at byte \d+, within a word of 4 bytes"),
        ("evt3", r"ends at byte \d+, within a word of 2 bytes"),
        ("bin", "whole number of 5-byte events"),
        ("npz", "not a whole .npz"),
        ("npy", "not a whole .npy"),
        ("hdf5", "not a whole HDF5"),
    ],
)
def test_a_file_cut_off_says_where(kind: str, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind, made.columns())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=says):
        read_events(path, 128, 128)


@pytest.mark.parametrize("kind", ["npz", "npy", "mat", "mat_packed", "hdf5", "dat", "evt2", "evt3", "bin", "aedat3"])
def test_more_events_than_allowed_are_refused(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind, made.columns(600))
    with pytest.raises(ValueError, match="at most 10 are read"):
        read_events(path, 128, 128, max_events=10)


def test_a_claimed_size_takes_no_memory(tmp_path: Path) -> None:
    header = b"{'descr': [('t','<i8'),('x','<i8'),('y','<i8'),('p','<i8')], 'fortran_order': False, 'shape': (%d,)}\n"
    text = header % 2**27
    (tmp_path / "claims.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(ValueError, match="not a whole"):
        read_events(tmp_path / "claims.npy")


def test_unknown_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"hello")
    with pytest.raises(ValueError, match="no format of events that is known"):
        read_events(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        read_events(tmp_path / "none.dat")
    with pytest.raises(IsADirectoryError, match="is a folder; expected one recording"):
        read_events(tmp_path)
    (tmp_path / "a.dat").write_bytes(b"")
    with pytest.raises(ValueError, match="is empty, 0 bytes long"):
        read_events(tmp_path / "a.dat")
    (tmp_path / "a.raw").write_bytes(b"% evt 2.1\n% end\n")
    with pytest.raises(ValueError, match=r"names the format '2.1'"):
        read_events(tmp_path / "a.raw")


@pytest.mark.parametrize("kind", made.samples())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**63 - 1))
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(kind: str, seed: int, tmp_path: Path) -> None:
    suffix, sound = made.samples_once()[kind]
    path = tmp_path / f"{kind}{suffix}"
    path.write_bytes(made.damage(sound, np.random.default_rng(seed)))
    try:
        events = made.read(path, 100_000)
    except ValueError as error:
        says = str(error)
    else:
        says = str(path)
        if isinstance(events, Sequences):
            assert int(events.offsets[-1]) == len(events.values)
        else:
            assert bool((events.t >= 0).all())
        if isinstance(events, Events):
            assert bool((events.t[1:] >= events.t[:-1]).all())
    assert str(path) in says
