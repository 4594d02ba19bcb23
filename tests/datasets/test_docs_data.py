"""docs/data.md: its code runs and prints what the page says; what it names exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from spikeloom import datasets

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def test_blocks_run_and_print_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE.read_text(encoding="utf-8"), re.S | re.M
    )
    assert len(blocks) == 5
    for block, printed in blocks:
        exec(block, names)
        assert capsys.readouterr().out == printed, block


def test_names_exist() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)[`(]", text, re.M)
    for name in re.findall(r"^\| `(\w+)[`(]", text, re.M) + re.findall(r"`(\w+)`[,.]", text.split("## Noise")[1]):
        assert hasattr(datasets, name), name
