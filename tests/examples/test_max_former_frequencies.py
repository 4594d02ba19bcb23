"""examples/max_former_frequencies.py: its spectra of known maps and filters, and that a small run writes everything."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from spikeloom.synapses import NormNeuron

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "max_former_frequencies.py"


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("cycles", "above"), [(2, 0.0), (5, 1.0)])
def test_a_wave_is_in_its_ring(example: ModuleType, cycles: int, above: float) -> None:
    wave = torch.cos(2 * math.pi * cycles * torch.arange(16) / 16).expand(3, 2, 16, 16)
    spectrum = example.power(wave + 7) + 1e-9  # an offset is at r = 0, which is in no ring
    frequencies, curve = example.rings(spectrum)
    assert frequencies == [k / 16 for k in range(1, 9)]
    assert max(range(8), key=curve.__getitem__) == cycles - 1
    assert example.share(spectrum) == pytest.approx(above, abs=1e-6)


def test_power_is_the_mean_over_maps_and_obeys_parseval(example: ModuleType) -> None:
    maps = noise(2, 3, 4, 8, 8)
    spectrum = example.power(maps)
    assert spectrum.shape == (8, 8)
    assert spectrum.sum().item() == pytest.approx(64 * maps.double().square().sum((3, 4)).mean().item())


def test_white_noise_is_flat_and_four_fifths_lie_above(example: ModuleType) -> None:
    spectrum = example.power(noise(500, 32, 32))
    _, curve = example.rings(spectrum)
    assert max(abs(value) for value in curve) < 0.5
    assert example.share(spectrum) == pytest.approx(0.805, abs=0.01)


@pytest.mark.parametrize("value", [0.1, 0.0])
def test_maps_without_structure_have_no_share(value: float, example: ModuleType) -> None:
    found = example.spectrum_of(example.power(torch.full((2, 8, 8), value)))
    assert math.isnan(found["share"])
    assert example.without_nan(found) == {
        "cycles_per_pixel": [0.125, 0.25, 0.375, 0.5],
        "db": [None] * 4,
        "share": None,
    }


@pytest.mark.parametrize("limit", [1, 3, 700, 999])
def test_a_limit_is_kept(limit: int, example: ModuleType) -> None:
    images, labels = example.digits("test", limit)
    assert len(images) == len(labels) == limit


def test_average_pooling_is_the_filter_that_it_is(example: ModuleType) -> None:
    """|transfer| of a mean over 3 x 3 on a torus, (1 + 2 cos 2 pi fx)(1 + 2 cos 2 pi fy) / 9, but for the border."""
    f = torch.fft.fftfreq(64, dtype=torch.float64)
    one = (1 + 2 * torch.cos(2 * math.pi * f)) / 3
    expected = example.spectrum_of((one[:, None] * one).square())
    found = example.in_space(size=64, maps=100)["avg"]
    assert found["share"] == pytest.approx(expected["share"], abs=0.02)
    assert found["db"][:16] == pytest.approx(expected["db"][:16], abs=0.5)


def test_lif_is_a_low_pass_filter_in_time_and_none_in_space(example: ModuleType) -> None:
    in_time = example.in_time(steps=32, neurons=5000)
    passed, leak = in_time["spikes, linear part"], in_time["leak without threshold"]
    assert leak[-1] < -8
    assert leak[-1] < passed[-1] < -2
    assert max(abs(value) for value in example.in_space(maps=200)["lif"]["db"]) < 0.5


def test_a_small_run_writes_the_numbers_and_the_picture(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    build, small = example.build, example.in_space(maps=20)

    def lively(*given: Any) -> nn.Module:
        """After a few steps too: normalisations that follow the data at once, and stretch it."""
        model = build(*given)
        for norm in model.modules():
            if isinstance(norm, NormNeuron | nn.BatchNorm1d | nn.BatchNorm2d):
                norm.momentum = 0.9
                nn.init.constant_(norm.weight, 2.0)
        return model

    monkeypatch.setattr(example, "build", lively)
    monkeypatch.setattr(example, "in_space", lambda: small)
    runs, out, picture = tmp_path / "runs", tmp_path / "numbers.json", tmp_path / "picture.png"
    options = ["--limit", "100", "--epochs", "1", "--width", "16", "--runs", str(runs), "--picture", str(picture)]
    assert example.main([*options, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("trained in") == 4
    assert picture.read_bytes().startswith(b"\x89PNG")
    results: dict[str, Any] = json.loads(out.read_text("utf-8"))
    assert results["settings"] == {"epochs": 1, "seeds": 1, "width": 16, "limit": 100, "embed": "orig_later"}
    for mixer, measured in results["variants"].items():
        points = measured[0]["points"]
        assert list(points) == [f"{s} {point}" for s in (1, 2, 3) for point in ("in", "mixed", "out")]
        assert all(0 < point["share"] < 1 and 0 < point["rate"] < 1 for point in points.values())
        sides = [len(points[f"{s} out"]["db"]) for s in (1, 2, 3)]
        assert sides == [16, 8, 4]
        if mixer == "avg":  # membranes themselves are replaced by means over 3 x 3
            assert points["1 mixed"]["share"] < 0.3 * points["1 in"]["share"]
        if mixer == "identity":
            assert points["1 mixed"] == points["1 in"]
    # networks are trained once
    assert example.main([*options, "--out", str(tmp_path / "again.json")]) == 0
    assert "trained in" not in capsys.readouterr().out
    assert (tmp_path / "again.json").read_text("utf-8") == out.read_text("utf-8")


def test_settings_that_train_nothing_are_refused(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.arguments(["--epochs", "0"])
    assert "--epochs 0 --seeds 1: expected at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        example.arguments(["--limit", "0"])
    assert "--limit 0: expected at least 1" in capsys.readouterr().err


def test_a_silent_network_is_measured_too(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    small = example.in_space(maps=20)
    build = example.build

    def silent(*given: Any) -> nn.Module:
        model = build(*given)
        for norm in model.modules():
            if isinstance(norm, NormNeuron | nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.zeros_(norm.weight)
        return model

    monkeypatch.setattr(example, "build", silent)
    monkeypatch.setattr(example, "train", lambda model, *_: model.eval())
    monkeypatch.setattr(example, "in_space", lambda: small)
    out, picture = tmp_path / "numbers.json", tmp_path / "picture.png"
    options = ["--limit", "20", "--width", "16", "--runs", str(tmp_path / "runs"), "--picture", str(picture)]
    assert example.main([*options, "--out", str(out)]) == 0
    assert "-: constant maps" in capsys.readouterr().out
    assert picture.stat().st_size > 0
    text = out.read_text("utf-8")
    assert "NaN" not in text
    assert json.loads(text)["variants"]["max"][0]["points"]["3 out"]["share"] is None
