"""`spikeloom data`: info, verify, pack and show on small recordings."""

from __future__ import annotations

from pathlib import Path

import pytest
from spikeloom_tests.datasets import recordings as made

from spikeloom.cli import main
from spikeloom.datasets import EventStore

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
    assert "1,800 (300 to 300 each)" in capsys.readouterr().out
    assert main(["data", "info", str(folder / "nod" / "0.raw")]) == 0
    assert "100 x 120" in capsys.readouterr().out
    assert main(["data", "show", str(store), "--index", "4", "--frames", "5", "--out", str(tmp_path / "seen")]) == 0
    image = pytest.importorskip("PIL.Image")
    with image.open(tmp_path / "seen" / "own_4.gif") as gif:
        assert (gif.n_frames, gif.size) == (5, (360, 300))
    with image.open(tmp_path / "seen" / "own_4.png") as png:
        assert png.size == (1210, 660)


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
    with pytest.warns(RuntimeWarning, match="Recording 1 is left out"):
        assert main([*call, "--on-error", "skip"]) == 0
    assert "1 recordings could not be read" in capsys.readouterr().out
    assert len(EventStore(out_file)) == 5


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 2
    assert main(["data", "--help"]) == 0
    assert "verify" in capsys.readouterr().out
    assert main(["data", "pack", "n-mnist", str(tmp_path), "a.events"]) == 1
    assert "known: nmnist" in capsys.readouterr().err
    assert main(["data", "info", str(tmp_path / "none.raw")]) == 1
    assert main(["data", "pack", "folder", str(tmp_path), "a.events"]) == 1
    assert "--height" in capsys.readouterr().err.replace("\n", " ")
