"""docs/delays.md: its code runs and prints what the page says, and its table is that of the package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeloom.models import create_model, describe, list_models

PAGE = Path(__file__).resolve().parents[2] / "docs" / "delays.md"


def test_blocks_run_and_print_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(
        r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE.read_text(encoding="utf-8"), re.S | re.M
    )
    assert len(blocks) == 8
    for block, printed in blocks:
        exec(block, names)
        assert capsys.readouterr().out == printed, block


def test_the_table_is_that_of_the_package() -> None:
    rows = re.findall(r"^\| `(delays_\w+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert [name for name, _ in rows] == list_models("delays_*")
    for name, row in rows:
        with torch.device("meta"):
            model: Any = create_model(name)
        config = model.config
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        everything = sum(p.numel() for p in model.parameters())
        expected = (config.depth, config.hidden, config.kernel_count, config.max_delay, trained, everything)
        _, *numbers, accuracies = row.split(" | ")
        assert [int(number.replace(",", "")) for number in numbers] == list(expected)
        for result in describe(name).published:
            assert f"{result.dataset} {result.accuracy:.2f}" in accuracies
