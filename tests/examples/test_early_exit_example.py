"""examples/early_exit.py: a short training shows the table and the picture; another network can be given."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

from spikeloom.conversion import convert, save_converted
from spikeloom.models import create_model, save_model

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "early_exit.py"


def test_most_steps_are_saved(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "exits.png"
    assert example.main(["--epochs", "3", "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    found = re.search(r"([\d.]+)% fewer steps; accuracy ([\d.]+)% -> ([\d.]+)%", text)
    assert found is not None
    saved, before, after = map(float, found.groups())
    assert saved >= 40
    assert before > 85
    assert after >= before - 1.5  # three epochs and 1,000 test images
    assert "oracle" in text
    assert "synaptic operations" in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_saved_network(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = create_model("conv_snn_tiny", in_channels=1, input_size=(12, 12))
    torch.nn.init.constant_(model.stages[0].fire.bias, 0.5)
    torch.nn.init.constant_(model.stages[1].fire.bias, 0.5)
    save_model(model, tmp_path / "net")
    assert example.main(["--model", str(tmp_path / "net"), "--steps", "3", "--picture", ""]) == 0
    assert "of 3 steps" in capsys.readouterr().out


def test_a_converted_network(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_converted(convert(example.small_qcfs().eval(), method="qcfs", T=4), tmp_path / "net")
    given = ["--converted", str(tmp_path / "net"), "--side", "14", "--steps", "4", "--picture", ""]
    assert example.main(given) == 0
    assert "of 4 steps" in capsys.readouterr().out
