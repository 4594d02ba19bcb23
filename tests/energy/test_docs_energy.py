"""docs/energy.md: its code runs and prints what the page says; its table of models is that of the package."""

from __future__ import annotations

import importlib.util
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spikeloom.energy
from spikeloom.energy import count, get_model, list_models, meter, models
from spikeloom.energy.model_file import PACKAGE_FILE, read_models

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "energy.md").read_text(encoding="utf-8")
LIBRARIES = ("spikingjelly", "snntorch", "norse")
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE, re.DOTALL | re.M
)


def library_of(block: str) -> str:
    """The other library that a block imports, or nothing."""
    return next((name for name in LIBRARIES if re.search(rf"^(from|import) {name}\b", block, re.MULTILINE)), "")


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The models and rules that the page registers, and the files that it writes, go with the test."""
    list_models()
    tables: list[dict[Any, Any]] = [models._MODELS, meter.RULES]
    before = [dict(table) for table in tables]
    monkeypatch.chdir(tmp_path)
    yield
    for table, held in zip(tables, before, strict=True):
        table.clear()
        table.update(held)
    meter._PLANS.clear()


def test_blocks_run_and_print_what_the_page_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    for chips in re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.M):
        (tmp_path / "my_chips.toml").write_text(chips)
    names: dict[str, Any] = {}
    compared = 0
    for block, printed in BLOCKS:
        if library_of(block):
            continue
        capsys.readouterr()
        exec(block, names)
        if printed:
            assert capsys.readouterr().out == printed, block
            compared += 1
    assert compared >= 9


@pytest.mark.parametrize("library", LIBRARIES)
def test_blocks_of_other_libraries_run(library: str) -> None:
    pytest.importorskip(library)
    (block,) = (block for block, _ in BLOCKS if library_of(block) == library)
    names = {"torch": torch, "nn": nn, "count": count}
    exec(block, names)
    run: Any = names["run"]
    found = run.counts()
    assert [layer.is_param for layer in found.layers] == [True, True]
    assert len(found.aux) >= 1
    assert not found.uncounted


def test_the_example_by_hand() -> None:
    """The page's arithmetic once more, from the picture of the spikes and the kernel's taps alone."""
    frames = [[(0, 0), (1, 2)], [(2, 3)]]

    def reached(y: int, x: int) -> set[tuple[int, int]]:
        return {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if 0 <= y + dy < 4 and 0 <= x + dx < 4}

    fan = [[len(reached(y, x)) for x in range(4)] for y in range(4)]
    assert "\n".join(" ".join(map(str, row)) for row in fan) == "4 6 6 4\n6 9 9 6\n6 9 9 6\n4 6 6 4"
    membrane: dict[tuple[int, int], int] = {}
    sop, touched, fired = [], [], []
    for spikes in frames:
        current = [place for spike in spikes for place in reached(*spike)]
        for place in current:
            membrane[place] = membrane.get(place, 0) + 1
        over = [place for place, value in membrane.items() if value >= 2]
        membrane = {place: value for place, value in membrane.items() if value < 2}
        sop.append(2 * sum(fan[y][x] for y, x in spikes))
        touched.append(len(set(current)) + len(spikes))
        fired.append(len(over) + len(spikes))
    assert (sop, touched, fired) == ([26, 12], [13, 7], [4, 5])
    assert sum(sop) + 3 * sum(fired) == 65
    for line in ("SOP [26 12]", "touched [13  7], spikes [4 5]", "SOP [12 15]", "58.50 pJ"):
        assert line in PAGE


def test_every_model_is_in_the_table_with_its_constants() -> None:
    spec = importlib.util.spec_from_file_location("energy_models_table", ROOT / "scripts" / "energy_models_table.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    content = script.table(read_models(PACKAGE_FILE))
    assert script.written(PAGE, content) == PAGE, "run python scripts/energy_models_table.py --write docs/energy.md"
    rows = {line.split("`")[1]: line for line in content.splitlines()[2:]}
    assert sorted(rows) == list_models()
    for name, row in rows.items():
        model = get_model(name)
        for constant, pj in model.constants.items():
            assert f"{constant} = {pj:g}" in row, (name, constant)
        for words in (model.source, model.evidence, model.scope.replace("_", " ")):
            assert words in row, (name, words)
    with pytest.raises(ValueError, match="each once"):
        script.written("no marks", content)


def test_names_of_the_package() -> None:
    """All of them load, those of the report at first use; counting needs neither jinja2 nor matplotlib nor rich."""
    for name in spikeloom.energy.__all__:
        assert getattr(spikeloom.energy, name).__name__ == name
    assert set(spikeloom.energy.__all__) <= set(dir(spikeloom.energy))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        spikeloom.energy.nonsense  # noqa: B018
    code = "import sys, spikeloom.energy; assert not {'jinja2', 'matplotlib', 'rich', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_script_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    runpy.run_path(str(ROOT / "examples" / "energy_of_a_network.py"), run_name="example")["main"]()
    printed = capsys.readouterr().out
    for words in ("synaptic operations per inference", "loihi2018: ", "stopped after 8 of 8 steps"):
        assert words in printed
    assert (tmp_path / "energy.html").exists() == (importlib.util.find_spec("jinja2") is not None)
