"""examples/spikegpt_energy.py: trained neurons fire, both forms print the same, stored counts are read."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from spikeloom.energy import save
from spikeloom.energy.spikegpt_convention import firing_rates, paper_convention, side_by_side

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "spikegpt_energy.py"


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
