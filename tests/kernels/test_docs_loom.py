"""docs/loom.md: its code runs and prints what the page says; it names the whole language."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from spikeloom.kernels import SURROGATES
from spikeloom.kernels.refusal import FUNCTIONS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "loom.md").read_text(encoding="utf-8")


def test_blocks_run_and_print_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {"__name__": "docs_loom"}
    blocks = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE, re.S | re.M)
    assert len(blocks) == 2
    for block, printed in blocks:
        exec(block, names)
        assert capsys.readouterr().out == printed, block


def test_the_language_is_named_in_full() -> None:
    words = set(PAGE.partition("## Language")[2].partition("## Memory")[0].replace("`", " ").split())
    assert set(FUNCTIONS) <= words
    assert set(SURROGATES) <= words
