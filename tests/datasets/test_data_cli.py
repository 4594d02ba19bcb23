"""`spikeloom data`: info, verify, pack and show on small recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from spikeloom_tests.datasets import recordings as made

from spikeloom.cli import main
from spikeloom.datasets import EventFolder, Events, EventStore
from spikeloom.datasets.pictures import write_raster

COLUMNS = made.columns(300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("nod", "wave"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "own" / name / f"{i}.raw").write_bytes(made.evt3(COLUMNS))
    return tmp_path / "own"


def test_pack_verify_info_show(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "own.events"
    assert main(["data", "pack", "folder", str(folder), str(store), "--height", "100", "--width", "120"]) == 0
    assert EventStore(store).classes == ("nod", "wave")
    assert main(["data", "verify", str(store)]) == 0
    assert "6 of 6 recordings are sound" in capsys.readouterr().out
    assert main(["data", "info", str(store)]) == 0
    out = capsys.readouterr().out
    assert "1,800 (300 to 300 each)" in out
    assert f"ends at {(COLUMNS[0][-1] - COLUMNS[0][0]) / 1e6:.6g} to" in out
    assert main(["data", "info", str(folder / "nod" / "0.raw")]) == 0
    assert "100 x 120" in capsys.readouterr().out
    assert main(["data", "show", str(store), "--index", "4", "--frames", "5", "--out", str(tmp_path / "seen")]) == 0
    image = pytest.importorskip("PIL.Image")
    with image.open(tmp_path / "seen" / "own_4.gif") as gif:
        assert (gif.n_frames, gif.size) == (5, (360, 300))
    with image.open(tmp_path / "seen" / "own_4.png") as png:
        assert png.size == (2200, 1200)


def test_damage_is_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = folder / "nod" / "1.raw"
    broken.write_bytes(broken.read_bytes()[:-1])
    assert main(["data", "verify", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "within a word of 2 bytes" in out.replace("\n", " ")
    assert "5 of 6" in out
    out_file = str(tmp_path / "own.events")
    call = ["data", "pack", "folder", str(folder), out_file, "--height", "100", "--width", "120"]
    assert main(call) == 1
    assert "on_error skip leaves out" in capsys.readouterr().err.replace("\n", " ")
    assert main([*call, "--on-error", "skip"]) == 0
    out = capsys.readouterr().out
    assert "1 recordings could not be read and were left out:\n  1: " in out
    assert "within a word of 2 bytes" in out
    assert len(EventStore(out_file)) == 5


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 2
    assert main(["data", "--help"]) == 0
    assert "verify" in capsys.readouterr().out
    assert main(["data", "pack", "n-mnist", str(tmp_path), "a.events"]) == 1
    assert "Known: nmnist" in capsys.readouterr().err
    assert main(["data", "info", str(tmp_path / "none.raw")]) == 1
    assert main(["data", "pack", "folder", str(tmp_path), "a.events"]) == 1
    assert "--height" in capsys.readouterr().err.replace("\n", " ")
    assert "there is no command 'shw'" in said(["data", "shw"], capsys, 2)
    assert "Did you mean 'nmnist'" in said(["data", "pack", "nmist", str(tmp_path), "a.events"], capsys)
    assert "has its own sensor" in said(["data", "pack", "nmnist", str(tmp_path), "a.events", "--height", "3"], capsys)
    assert "is a folder" in said(["data", "info", str(tmp_path)], capsys)


def said(call: list[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
    assert main(call) == code
    return capsys.readouterr().err.replace("\n", " ")


def test_folders_that_are_none(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--height", "100", "--width", "120"]
    pack = ["data", "pack", "folder"]
    recording, store = str(folder / "nod" / "0.raw"), str(tmp_path / "own.events")
    assert "There is no folder" in said([*pack, str(tmp_path / "none"), store, *size], capsys)
    assert "0.raw lies at another depth" in said([*pack, str(folder / "nod"), store, *size], capsys)
    assert "--test SHARE splits" in said([*pack, str(folder), store, *size, "--split", "test"], capsys)
    assert f"{recording} is a file" in said([*pack, str(folder), f"{recording}/own.events", *size], capsys)
    assert f"{recording} is a file" in said(["data", "show", recording, "--out", recording], capsys)
    assert "cannot be opened for writing" in said([*pack, str(folder), "/proc/own.events", *size], capsys)
    (tmp_path / "a.events").mkdir()
    assert "is a folder; an event store is one file" in said(
        [*pack, str(folder), str(tmp_path / "a.events"), *size], capsys
    )


def test_hidden_files_are_no_recordings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "nod" / "._0.raw").write_bytes(b"Mac OS X")
    assert len(EventFolder(folder, 100, 120)) == 6
    assert main(["data", "verify", str(folder)]) == 0
    assert "6 of 6" in capsys.readouterr().out


def test_packing_says_the_split_and_what_it_replaced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["data", "pack", "folder", str(folder), str(tmp_path / "own.events"), "--height", "100", "--width", "120"]
    assert main(call) == 0
    out = capsys.readouterr().out
    assert "split:" not in out
    assert "in place of" not in out
    assert main([*call, "--test", "0.4"]) == 0
    out = capsys.readouterr().out
    assert "split: 4 train, 0 validation, 2 test" in out
    assert "in place of the file that was there" in out


def test_ctrl_c_says_that_packing_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Events:
        raise KeyboardInterrupt

    monkeypatch.setattr(EventFolder, "read", interrupted)
    store = tmp_path / "own.events"
    assert main(["data", "pack", "folder", str(folder), str(store), "--height", "100", "--width", "120"]) == 130
    assert "the same command goes on where it was" in capsys.readouterr().out.replace("\n", " ")
    assert not store.exists()


def test_a_guessed_size_is_said(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.npz").write_bytes(made.npz(COLUMNS))
    assert main(["data", "info", str(tmp_path / "a.npz")]) == 0
    assert "the smallest that holds all events" in capsys.readouterr().out
    assert main(["data", "info", str(folder / "nod" / "0.raw")]) == 0
    assert "smallest" not in capsys.readouterr().out


def test_the_raster_draws_rows_that_fired(tmp_path: Path) -> None:
    """ON in the upper half, OFF in the lower: the left picture is blue above and orange below."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    y = np.arange(4000) % 800
    t = np.arange(4000) * 250
    write_raster(Events.from_arrays(t, y % 9, y, (y < 400).astype(int), 800, 9), tmp_path / "a.png")
    with image.open(tmp_path / "a.png") as png:
        pixels = np.asarray(png.convert("RGB")).astype(int)[500:1050, 200:1200]
    bluish = (pixels[..., 2] - pixels[..., 0]).sum(1)
    assert bluish[:200].sum() > 0 > bluish[-200:].sum()
