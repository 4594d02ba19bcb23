"""The report of an ANN does not call it spiking."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spikeloom.energy import count
from spikeloom.energy.figures import layer_energies, ratios
from spikeloom.energy.report import Report
from spikeloom.energy.store import check_writable
from spikeloom.energy.subject import ANN, SNN, subject
from spikeloom.energy.words import headline, verdict
from spikeloom.neurons import LIF


def report_of(fire: nn.Module, T: int | None, x: torch.Tensor) -> Report:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), fire, nn.Linear(8, 3)).eval()
    with torch.no_grad(), count(net, T=T, strict=True) as run:
        net(x)
    return run.report()


class Step(nn.Module):
    """A spike written by hand, which the counter does not know as a neuron."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.gt(x, 0).to(x.dtype)


def test_an_ann_is_called_one(tmp_path: Path) -> None:
    report = report_of(nn.ReLU(), 1, torch.rand(5, 6))
    assert subject(report.counts) is ANN
    found = verdict(report)
    assert found.text.startswith("No spiking neuron ran: an ANN of one step. Zeros skipped / dense: ")
    assert found.tone == ""
    assert "of all its terms, zero or not; horowitz45_fp32" in headline(report)
    page = report.to_html(tmp_path / "page.html").read_text()
    for words in (page, str(report)):
        text = words.split("<body>")[-1]
        assert "SNN / ANN" not in text
        assert "QANN" not in text
        assert "Firing rates" not in text
        assert "SNN exact" not in text
        assert "piking network" not in text
        assert "zeros skipped / dense" in text
    assert ratios(report) is None
    assert "Against the ANN" not in page
    assert {data.labels for data in layer_energies(report)} == {("zeros skipped", "dense")}


@pytest.mark.parametrize(
    ("fire", "T", "x"),
    [(LIF(), None, torch.ones(1, 5, 6)), (nn.ReLU(), 2, torch.rand(2, 5, 6)), (Step(), 1, torch.rand(5, 6))],
    ids=["a neuron, one step", "two steps", "spikes by hand"],
)
def test_anything_else_may_spike(fire: nn.Module, T: int | None, x: torch.Tensor) -> None:
    report = report_of(fire, T if T != 2 else None, x)
    assert subject(report.counts) is SNN
    assert "No spiking neuron ran" not in verdict(report).text


def test_names_of_layers_may_be_changed() -> None:
    report = report_of(LIF(), None, torch.ones(2, 5, 6))
    other = report.renamed({"0": "first.linear", "1": "fire"})
    assert [y.name for y in other.counts.layers] == ["first.linear", "2"]
    assert [entry.name for entry in other.counts.aux] == ["fire"]
    assert [y.name for y in report.counts.layers] == ["0", "2"]
    assert other.energy() == report.energy()
    assert other.counts.renamed({"first": "a"}).layers[0].name == "a.linear"


def test_what_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "folders" / "page.html")
    check_writable(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(ValueError, match="is a folder; expected the name of a file"):
        check_writable(tmp_path)
    with pytest.raises(ValueError, match=r"no file can be made in .*file \(it is no folder\)"):
        check_writable(tmp_path / "file" / "page.html")
