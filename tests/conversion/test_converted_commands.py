"""`spikeloom energy` and `spikeloom eval` on a folder that `spikeloom convert` wrote."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.cli import main
from spikeloom.conversion import ConvertedNet, convert, load_converted, save_converted
from spikeloom.conversion.files import is_converted
from spikeloom.conversion.shown import show
from spikeloom.energy import compare, count
from spikeloom.energy.counts import MapCount
from spikeloom.energy.report import Report

Printed = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, on a terminal wide enough for every line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    torch.manual_seed(0)


class Small(nn.Module):
    """Two activations by one module, one by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.hidden, self.last = nn.Linear(64, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(self.relu(self.stem(x))))
        logits: Tensor = self.last(torch.relu(self.hidden(nn.functional.avg_pool2d(x, 2).flatten(1))))
        return logits


def written(folder: str = "snn", **choices: Any) -> tuple[ConvertedNet, Tensor, Tensor]:
    """A converted network in a folder, and `test.pt` with 21 images and labels, most of them what the network says."""
    images = torch.rand(64, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        net = convert(Small().eval(), images.split(4), **{"T": 6, **choices})
    save_converted(net, folder)
    with torch.no_grad():
        labels = net(images[:21]).mean(0).argmax(1)
    labels[:3] = (labels[:3] + 1) % 5
    torch.save({"images": images[:21], "labels": labels}, "test.pt")
    return net, images[:21], labels


def test_energy_with_labels(capsys: Printed) -> None:
    net, images, _ = written()
    line = ["energy", "snn", "--images", "test.pt", "--html", "page.html", "--json", "all.json", "--device", "cpu"]
    assert main([*line, "--batch-size", "4"]) == 0
    text = capsys.readouterr().out
    assert "snn, converted by ltb" in text
    assert "85.7 % accuracy (18 of 21 images; test.pt, 21 images)" in text
    assert "spiking network" in text
    report = Report.load("all.json")
    with torch.no_grad(), count(net, T=6, strict=True) as run:
        net(images)
    expected = run.counts()
    assert (report.counts.T, report.counts.samples) == (6, 21)
    assert [y.name for y in report.counts.layers] == ["stem.0", "conv", "hidden", "last"]
    assert [y.kind for y in report.counts.layers] == [y.kind for y in expected.layers]
    assert report.counts.layers[1].kind == "binary"
    assert report.counts.layers[0].static_input
    for y, z in zip(report.counts.layers, expected.layers, strict=True):
        assert (y.sop == z.sop).all()
    rows = {row.name: row.energy_pj for row in compare(expected)}
    assert report.ann() == rows["ann_exact"]
    steps = 6 * rows["ann_exact"] / rows["exact"]
    assert f"Break-even with the ANN at about T = {steps:.1f}" in text
    assert f"Break-even with the ANN at about T = {steps:.1f}" in Path("page.html").read_text()
    assert report.accuracy_by_step is not None
    assert report.accuracy_by_step[-1] == report.accuracy == 18 / 21
    neurons = [entry.name for entry in report.counts.aux if hasattr(entry, "spikes")]
    assert neurons[:2] == ["relu", "relu#2"]
    assert re.fullmatch(r"relu test_converted_commands:\d+", neurons[2])


def test_images_alone_other_steps_and_fewer_images(capsys: Printed) -> None:
    _, images, _ = written()
    torch.save(images, "alone.pt")
    assert main(["energy", "snn", "--images", "alone.pt", "--T", "3", "--samples", "5", "--json", "a.json"]) == 0
    assert "accuracy" not in capsys.readouterr().out
    report = Report.load("a.json")
    assert (report.counts.T, report.counts.samples, report.accuracy) == (3, 5, None)
    assert main(["eval", "snn/model.safetensors", "--images", "alone.pt"]) == 0
    assert "no accuracy: the file has no tensor 'labels'" in capsys.readouterr().out


@pytest.mark.parametrize("T", [2, 6])
def test_a_network_that_looks_ahead(T: int, capsys: Printed) -> None:
    net, _, _ = written(method="srp", T=T, rho=4)
    counts = []
    for size in ("1", "4", "16"):
        assert main(["energy", "snn", "--images", "test.pt", "--json", "a.json", "--batch-size", size]) == 0
        text = capsys.readouterr().out
        assert "85.7 % accuracy (18 of 21 images" in text
        assert "Every layer looks 4 steps ahead" in text
        counts.append(Report.load("a.json").counts)
    assert max(T, 4) == counts[0].T
    for other in counts[1:]:
        assert all((y.sop == z.sop).all() for y, z in zip(counts[0].layers, other.layers, strict=True))
    assert main(["eval", "snn", "--images", "test.pt", "--batch-size", "3"]) == 0
    text = capsys.readouterr().out
    assert f"accuracy 85.71% (18 of 21); T = {T} and 4 more to look ahead; test.pt, 21 images" in text
    assert "watch" not in text
    assert net.latency == T + 4


def test_a_batch_of_as_many_images_as_steps_and_channels_counts_as_others_do(capsys: Printed) -> None:
    written(method="ltb", offset="cos", T=4, rho=2)  # states [B, C, H, W] of 4 channels
    counts = []
    for size in (1, 3, 4, 5, 16, 20):
        batches = [len(x) for x, _ in show(Path("snn"), Path("test.pt")).batches(size, torch.device("cpu"))]
        assert sum(batches) == 21
        assert not {1, 2, 4} & {*batches}, size
        assert max(batches) <= max(2 * size + 2, 8)
        assert main(["energy", "snn", "--images", "test.pt", "--json", "a.json", "--batch-size", str(size)]) == 0
        counts.append(Report.load("a.json").counts)
    for other in counts[1:]:
        assert other.layers[1].sop.tolist() == counts[0].layers[1].sop.tolist()
        for entry, first in zip(other.of(MapCount), counts[0].of(MapCount), strict=True):
            assert entry == first
    capsys.readouterr()


def test_eval_prints_accuracy_and_rates(capsys: Printed) -> None:
    written()
    assert main(["eval", "snn", "--images", "test.pt", "--batch-size", "4"]) == 0
    text = capsys.readouterr().out
    assert "accuracy 85.71% (18 of 21); T = 6; test.pt, 21 images" in text
    assert "relu#2" in text


def test_steps_that_a_method_was_not_made_for_warn() -> None:
    written(method="mse")
    with pytest.warns(UserWarning, match="made for T = 6"):
        assert main(["energy", "snn", "--images", "test.pt", "--T", "3"]) == 0


def test_mistakes_explain_themselves(capsys: Printed) -> None:
    _, images, labels = written()
    files: dict[str, Any] = {
        "frames": images.expand(6, *images.shape).clone(),
        "small": torch.rand(3, 1, 5, 5),
        "bytes": (images * 255).byte(),
        "nan": images * torch.tensor(float("nan")),
        "few": {"images": images, "labels": labels[:3]},
        "halves": {"images": images, "labels": labels / 2 + 0.25},
        "beyond": {"images": images, "labels": labels + 5},
    }
    for name, held in files.items():
        torch.save(held, f"{name}.pt")

    def said(*line: str) -> str:
        assert main([*line]) == 1
        return capsys.readouterr().err

    for command in ("energy", "eval"):
        assert "snn is a converted network, which knows no data set. Add --images FILE" in said(command, "snn")
        assert "there is no file nothing.pt" in said(command, "snn", "--images", "nothing.pt")
        for name, says in {
            "frames": r"float32 \[6, 21, 1, 8, 8\]; expected floating-point images of 4 axes",
            "small": r"the network does not take images \[3, 1, 5, 5\]",
            "bytes": "uint8 .* expected floating-point images",
            "nan": "holds NaN or infinity",
            "few": r"labels of few.pt are torch.int64 \[3\] for 21 images; expected class numbers \[21\]",
            "halves": "labels of halves.pt are no class numbers",
            "beyond": r"has the label \d; the network has 5 classes, from 0 on",
        }.items():
            assert re.search(says, said(command, "snn", "--images", f"{name}.pt"))
    assert "is a converted network; it is shown what --images" in said(
        "energy", "snn", "--images", "test.pt", "--data", "nmnist"
    )
    assert "what --images holds, not --part" in said("eval", "snn", "--images", "test.pt", "--part", "train")
    assert "no folder of `spikeloom convert`" in said("energy", "conv_snn_tiny", "--images", "test.pt")
    assert "no folder of `spikeloom convert`" in said("eval", "runs/nothing", "--images", "test.pt")


def test_what_is_a_converted_network() -> None:
    net, images, _ = written()
    assert is_converted("snn")
    assert is_converted("snn/model.safetensors")
    assert not is_converted(".")
    Path("config.json").write_text("[]")
    assert not is_converted(".")
    assert show(Path("snn"), Path("test.pt")).known("layers.relu_1.fire") == "relu#2.fire"
    with torch.no_grad():
        assert torch.equal(load_converted("snn/model.safetensors")(images), net(images))


def test_eval_refuses_batches_of_no_image(capsys: Printed) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "snn", "--batch-size", "-1"])
    assert "--batch-size is -1; expected >= 1" in capsys.readouterr().err
