"""examples/one_step_snn.py: a short run goes down to one step and prints the table; a second call takes the stages."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "one_step_snn.py"


def test_a_short_run(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(example, "LAYERS", (8, "A", 8, "A"))
    monkeypatch.setattr(example, "HIDDEN", (32,))
    short = ["--data", "sklearn", "--epochs", "2", "--ann-epochs", "8", "--folder", str(tmp_path / "stages")]
    texts = []
    for _ in range(2):
        assert example.main(short) == 0
        texts.append(capsys.readouterr().out)
    rows = [re.findall(r"^ *(\d+c?) +([\d.]+)% .* ([\d.]+)%$", text, re.M) for text in texts]
    assert rows[0] == rows[1]
    assert [row[0] for row in rows[0]] == ["60c", "5c", "5", "4", "3", "2", "1"]
    assert float(rows[0][-1][1]) > 60
    energy = [float(row[2]) for row in rows[0]]
    assert energy[-1] == min(energy)
    assert "1132 to train, 125 to choose epochs, 540 to test" in texts[0]


def test_the_embedded_digits(example: ModuleType) -> None:
    train, held_out, test, says = example.digits("mnist5k", 0)
    assert [list(part[0].shape) for part in (train, held_out, test)] == [
        [900, 1, 16, 16],
        [100, 1, 16, 16],
        [1000, 1, 16, 16],
    ]
    assert "MNIST-5k" in says
    assert 0 <= float(train[0].min()) <= float(train[0].max()) <= 1
