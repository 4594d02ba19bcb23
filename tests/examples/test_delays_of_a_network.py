"""examples/delays_of_a_network.py: what it calls delays, moves and events, and that a small run writes everything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from spikeloom.models import create_model
from spikeloom.training import run as training_run
from spikeloom.training.recipes import get_recipe

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "delays_of_a_network.py"


@pytest.fixture
def small(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe with few recordings and neurons."""
    recipe = get_recipe("delays_manifolds")
    data = replace(recipe.data, limit=100, manifolds=replace(recipe.data.manifolds, train=10, test=10))
    recipe = replace(recipe, model_args={"hidden": 16, "dropout": 0.1}, data=data, batch_size=20)
    monkeypatch.setattr(example, "get_recipe", lambda name: recipe)
    return recipe


def test_a_small_run_writes_the_numbers_and_the_picture(
    example: ModuleType, small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "numbers.json", tmp_path / "picture.png"
    assert example.main(["--epochs", "4", "--picture", str(picture), "--out", str(out), "--sample", "7"]) == 0
    printed = capsys.readouterr().out
    assert "trained for 4 epochs" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 300_000
    results: dict[str, Any] = json.loads(out.read_text("utf-8"))
    assert results["settings"] == {"model": "delays_shd_2l_1kc", "epochs": 4, "seed": 0}
    assert 0 <= results["accuracy"] <= 1
    assert 0 <= results["accuracy_with_start_delays"] <= 1
    assert [layer["synapses"] for layer in results["layers"]] == [320, 256, 160]
    for layer, name in zip(results["layers"], ("hidden 1", "hidden 2", "output"), strict=True):
        assert 0 < layer["move"] < 24
        assert 0 < layer["rounding"] <= 0.5
        assert f"{layer['move']:.2f}" in next(line for line in printed.splitlines() if line.startswith(name))


def test_a_run_folder_is_taken_as_it_is(
    example: ModuleType, small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same numbers as from training here; a run that ended with whole numbers has no others."""
    pytest.importorskip("matplotlib")
    recipe = example.recipe_of(example.arguments(["--epochs", "4"]))
    assert recipe.optim.whole_epochs == 1
    result = training_run.fit(recipe, tmp_path / "run", device="cpu")
    here, there = example.train(recipe), example.loaded(tmp_path / "run")
    for name in ("start", "rounded"):
        for one, other in zip(getattr(here, name), getattr(there, name), strict=True):
            assert torch.equal(one, other)
    assert there.learned is None
    before = [p.detach().clone() for p in there.model.parameters()]
    assert example.accuracies(there)[0] == pytest.approx(result.test.accuracy)
    assert all(torch.equal(p, was) for p, was in zip(there.model.parameters(), before, strict=True))
    picture = tmp_path / "picture.png"
    assert example.main(["--run", str(tmp_path / "run"), "--picture", str(picture)]) == 0
    assert "-  " in capsys.readouterr().out
    assert picture.is_file()


def built(**options: Any) -> Any:
    torch.manual_seed(0)
    return create_model("delays_shd_2l_1kc", in_features=3, hidden=2, num_classes=2, max_delay=5, **options).eval()


def test_delays_follow_from_positions(example: ModuleType) -> None:
    model = built()
    with torch.no_grad():
        model.delayed()[0].P.copy_(torch.tensor([2.0, -2.0, 0.4, 1.0, 0.6, -1.6]).view(1, 2, 3, 1))
    torch.testing.assert_close(example.delays_of(model)[0], torch.tensor([0.0, 4.0, 1.6, 1.0, 1.4, 3.6]))
    assert example.rounded_delays(model)[0].tolist() == [0, 4, 2, 1, 1, 4]


def test_events_are_those_that_meet(example: ModuleType) -> None:
    """Inputs 0, 1, 2 in steps 0, 1, 3; neuron 1 has delays 3, 2, 0, so all of them meet in step 3."""
    model = built(batch_norm=False)
    first = model.delayed()[0]
    with torch.no_grad():
        first.P.copy_(torch.tensor([2.0, 2.0, 2.0, -1.0, 0.0, 2.0]).view(1, 2, 3, 1))
        first.weight.copy_(torch.tensor([2.0, 0.1, 0.1, 0.6, 0.6, 0.6]).view(2, 3, 1))
    x = torch.zeros(6, 3)
    x[0, 0] = x[1, 1] = x[3, 2] = 1
    with model.rounded(), torch.no_grad():
        currents = first(x[:, None])[:, 0]
    spikes = (currents >= 1).float()
    assert spikes.nonzero().tolist() == [[0, 0], [3, 1]]
    sample = example.Sample(0, 0, x, [spikes], currents, torch.zeros(6, 2))
    events = example.events_of(model, sample)
    assert (events.neuron, events.fired, len(events.meeting)) == (1, 3, 3)
    assert events.sent.tolist() == [0, 1, 3]
    assert events.arrives.tolist() == [3, 3, 3]
    silent = example.Sample(0, 0, x, [torch.zeros(6, 2)], currents, torch.zeros(6, 2))
    assert example.events_of(model, silent) is None


@pytest.mark.parametrize("silent", [False, True])
def test_any_sample_can_be_drawn(silent: bool, example: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = built(depth=1)
    found = example.Trained(
        model, get_recipe("delays_manifolds"), example.delays_of(model), None, example.rounded_delays(model)
    )
    spikes = torch.zeros(8, 2) if silent else torch.eye(8)[:, :2]
    x = torch.zeros(6, 3) if silent else torch.eye(6)[:, :3]
    sample = example.Sample(1, 0, x, [spikes], torch.rand(8, 2), torch.rand(10, 2))
    example.draw(found, sample, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_the_current_is_what_the_neurons_get(example: ModuleType) -> None:
    model = built()
    fire = model.blocks[0].fire
    with torch.no_grad():
        fire.running_mean.uniform_()
        fire.bias.uniform_()
    y = torch.randn(5, 2, 2)
    current = example.current(fire, y)
    torch.testing.assert_close((current[0] >= 1).float(), fire(y)[0])  # in the first step there is no memory
    assert example.current(model.head.neuron, y) is y


def test_impossible_settings_are_refused(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.arguments(["--epochs", "1"])
    assert "expected at least 2" in capsys.readouterr().err
    recipe = get_recipe("delays_manifolds")
    with pytest.raises(ValueError, match="no learned delays"):
        example.fresh(replace(recipe, model_args={**recipe.model_args, "delays": "fixed"}))
