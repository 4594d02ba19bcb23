"""examples/spikegpt_energy.py: trained neurons fire, both forms print the same, stored counts are read."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from spikeloom.energy import save
from spikeloom.energy.spikegpt_convention import firing_rates, paper_convention, side_by_side

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "spikegpt_energy.py"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The model is so small that threads on cores with other work wait for each other for most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_spikegpt_energy", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_short_training_fires_and_both_forms_count_the_same(
    example: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, ids = example.train(30), torch.tensor(list(example.TEXT))[: example.CONTEXT, None]
    counts = example.measure(model, ids, piece=example.CONTEXT)
    assert firing_rates(counts).keys() == {"binary"} | {f"blocks.{b}.lif{n}" for b in (0, 1) for n in (1, 2)}
    assert min(firing_rates(counts).values()) > 0.01
    assert paper_convention(counts).ratio(head=False) > 5

    save(counts, tmp_path / "counts.json.gz")
    assert example.main([str(tmp_path / "counts.json.gz")]) == 0
    assert capsys.readouterr().out == side_by_side(counts) + "\n"


def test_the_script_prints_both_conventions(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main(["--steps", "2"]) == 0
    printed = capsys.readouterr().out
    for words in ("per token, mean of 64", "paper convention", "strict", "ANN / network", "token by token"):
        assert words in printed
