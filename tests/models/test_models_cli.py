"""`spikeloom models`: tables that can be read, one model in full, JSON, and what is said of a name that is none."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spikeloom import cli
from spikeloom.models import create_model, describe, list_models
from spikeloom.models.cli import amount, published_line, usage
from spikeloom.models.registry import Published
from spikeloom.models.sizes import Size, input_shape, size_of

NOTE = "400 epochs; 77.86 after 300; not re-read in the paper"


@pytest.fixture(autouse=True)
def columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")


def test_the_table_has_every_model_with_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 100
    rows = {line.split()[0]: line for line in text.splitlines() if re.match(r"  \w", line)}
    assert rows.keys() >= set(list_models())
    assert re.search(r"4 x 3 x 32 x 32 +9\.32 M +927\.75 M +Four blocks", rows["spikformer_cifar_4_384"])
    assert re.search(r"T x 2 x 34 x 34 +14\.31 k +147\.89 k +Two narrow", rows["conv_snn_tiny"])
    for paper in {describe(name).paper for name in list_models()}:
        assert text.count(paper) >= 1
    spaced = re.sub(r"\s+", " ", text)
    assert "paper: CIFAR-10 95.51 %*, CIFAR-100 78.21 %*" in spaced
    assert spaced.count("* with a note: `spikeloom models NAME`") == 1
    assert "none was measured here" in spaced


@pytest.mark.parametrize("width", ["100", "160"])
def test_no_number_or_name_is_cut(width: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert cli.main(["models", "spikformer_[!v]*"]) == 0
    text = capsys.readouterr().out
    assert "…" not in text
    assert "conv_snn" not in text
    assert max(len(line) for line in text.splitlines()) <= int(width)
    assert all(len(re.findall(rf"^  {name} ", text, re.MULTILINE)) == 1 for name in list_models("spikformer_[!v]*"))


def test_one_name_shows_the_model_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "spikformer_cifar_4_384"]) == 0
    text = capsys.readouterr().out
    for line in (
        "spikeloom.models.spikformer.Spikformer",
        "arXiv:2209.15425",
        "stem    2,201,520  23.61 %",
        "blocks  7,119,360  76.35 %",
        "head        3,850   0.04 %",
        "total   9,324,730",
        "CIFAR-10   95.51 %  400 epochs; 95.19 after 300",
        "Published by the paper, not measured here",
        "embed_dim         384",
        "order             'auto'",
        "images [B, 3, 32, 32] or frames [4, B, 3, 32, 32]",
    ):
        assert line in text


def test_its_usage_lines_run() -> None:
    lines = usage("conv_snn_tiny", size_of("conv_snn_tiny")).splitlines()
    names: dict[str, Any] = {"x": torch.zeros(3, 2, 2, 34, 34)}
    exec("\n".join(lines[:-1]), names)
    assert names["logits"].shape == (2, 10)
    assert lines[-1] == "$ spikeloom energy conv_snn_tiny"
    assert usage("a", Size(1, {}, 1, 4, (3, 8, 8))).endswith("$ spikeloom energy a --T 4")


def test_json_has_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "spikformer_cifar_*", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in found] == list_models("spikformer_cifar_*")
    (entry,) = (entry for entry in found if entry["name"] == "spikformer_cifar_4_384")
    assert entry["class"] == "Spikformer"
    assert entry["parameters"] == sum(entry["parts"].values()) == 9_324_730
    assert entry["macs_per_step"] == 927_747_840
    assert entry["input"] == {"T": 4, "C": 3, "H": 32, "W": 32}
    assert entry["published"][1] == {"dataset": "CIFAR-100", "accuracy": 78.21, "note": NOTE, "metric": "top-1 %"}
    assert create_model(entry["name"], **{**entry["config"], "depth": 1}).config.depth == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("spikformer_cifar_4_385", "No model matches 'spikformer_cifar_4_385' (nearest: spikformer_cifar_4_384, "),
        ("spikformer", "'*spikformer*' matches some."),
        ("minf*", "No model matches 'minf*' (nearest: "),
    ],
)
def test_an_unknown_name_gives_the_nearest(pattern: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", pattern]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_published_results_of_one_data_set_say_what_sets_them_apart() -> None:
    results = (
        Published("ImageNet-1k", 84.22),
        Published("ImageNet-1k", 85.65, "at 384 x 384, and more"),
        Published("CIFAR-10", 96.0, "a note"),
    )
    line = published_line(results).replace("\xa0", " ")
    assert line == "paper: ImageNet-1k 84.22 %, 85.65 %* (at 384 x 384), CIFAR-10 96.00 %*"


def test_the_star_is_explained_only_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "conv_snn_*"]) == 0
    assert "*" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0"), (999, "999"), (1_000, "1.00 k"), (9_324_730, "9.32 M"), (74_664_960_000, "74.66 G")]
)
def test_amounts(n: int, text: str) -> None:
    assert amount(n) == text


def test_multiply_accumulates_are_those_of_the_layers() -> None:
    """By hand: 16 channels, 8 x 8 pixels, stages of 2, 4, 8, 16 channels, 4 tokens."""
    tiny: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "depth": 1, "mlp_ratio": 2.0, "input_size": (8, 8)}
    size = size_of("spikformer_cifar_2_256", **tiny)
    stem = 9 * (3 * 2 * 64 + 2 * 4 * 64 + 4 * 8 * 64 + 8 * 16 * 16 + 16 * 16 * 4)
    attention = 4 * 4 * 16 * 16 + 2 * 2 * 4 * 4 * 8  # q, k, v, proj; then 2 heads x 2 products of 4 x 4 x 8
    mlp = 2 * 4 * 16 * 32
    assert size.macs == stem + attention + mlp + 16 * 10
    assert size.shape == (3, 8, 8)
    assert size_of("spikformer_cifar_2_256", **tiny, T=16).macs == size.macs


@pytest.mark.parametrize("name", ["conv_snn_tiny", "spikformer_cifar_2_256"])
def test_sizes_are_those_of_the_real_model(name: str) -> None:
    size = size_of(name)
    model = create_model(name).eval()
    assert size.parameters == sum(p.numel() for p in model.parameters())
    x = torch.zeros(size.T or 1, 1, *size.shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert size.macs == counter.get_total_flops() // 2 // x.shape[0]


def test_an_input_that_is_not_known_is_said() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Config:
        width: int = 3

    with pytest.raises(ValueError, match="net has no in_channels and input_size"):
        input_shape(Config(), "net")
