"""docs/conversion.md: its code runs and prints what the page says; its methods are those of the package."""

from __future__ import annotations

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from spikeloom.conversion import METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "conversion.md"


def test_blocks_run_and_print_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text, re.S | re.M)
    assert len(blocks) == 10
    for block, printed in blocks:
        if "import nir" in block and importlib.util.find_spec("nir") is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(block, names)
        assert capsys.readouterr().out == printed, block


def test_every_method_is_described() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Methods")[2].partition("## Max pooling")[0]
    rows = re.findall(r"^\| (`[^|]*) \|", table, re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(METHODS)
