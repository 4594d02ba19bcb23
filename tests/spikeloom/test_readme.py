"""The README's Python runs as it stands, and its commands exist."""

import re
from pathlib import Path

import pytest
import torch

import spikeloom.cli

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    layer = names["layer"]
    assert isinstance(layer, torch.nn.Module)
    assert layer(torch.rand(4, 3)).shape == (4, 3)


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^spikeloom (\w+)", README, re.MULTILINE))))
def test_commands_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = spikeloom.cli.main([command, "--help"])
    except SystemExit as leaving:
        code = leaving.code
    assert code in (0, None)
    assert command in capsys.readouterr().out
