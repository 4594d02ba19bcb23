"""docs/models.md and docs/models/spikformer.md: their code runs and prints what the pages say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from spikeloom.models import describe, list_models, registry
from spikeloom.models.cli import amount
from spikeloom.models.sizes import size_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("models.md", "models/spikformer.md")


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_and_print_what_the_page_says(
    page: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    compared = 0
    for block, printed in re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text_of(page), re.S | re.M):
        exec(block, names)
        out = capsys.readouterr().out
        if printed:
            assert out == printed, block
            compared += 1
    assert compared >= 3


def test_the_index_names_every_family_and_its_page() -> None:
    page = text_of("models.md")
    patterns = re.findall(r"\| `([a-z0-9_]+\*)` \|", page)
    named = {name for pattern in patterns for name in list_models(pattern)}
    assert named == set(list_models())
    for link in re.findall(r"\((models/[a-z0-9_]+\.md)\)", page):
        assert (DOCS / link).is_file(), link


def test_the_table_of_spikformer_is_that_of_the_package() -> None:
    rows = {
        row[0]: row for row in re.findall(r"^\| `(spikformer_\w+)` \| (.*) \|$", text_of("models/spikformer.md"), re.M)
    }
    paper = describe("spikformer_8_512").paper
    assert rows.keys() == {name for name in list_models() if describe(name).paper == paper} - {"spikformer_small"}
    for name, (_, row) in rows.items():
        size, entry = size_of(name), describe(name)
        _, parameters, macs, T, accuracies = row.split(" | ")
        assert parameters == f"{size.parameters:,}"
        number, unit = amount(size.macs).split()
        assert macs == (f"{float(number):.0f} M" if unit == "M" else f"{number} G")
        assert str(size.T) == T
        for result in entry.published:
            assert re.search(rf"{result.dataset} {result.accuracy:g}0?\b", accuracies), (name, result)
