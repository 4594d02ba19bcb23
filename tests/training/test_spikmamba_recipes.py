"""SpikMamba in training: what does not decay, the layout of its kernels, the recipes, the account of its energy."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from spikeloom_tests.training.tiny_files import write_clips
from torch import nn

from spikeloom.datasets.cli import data as data_command
from spikeloom.models import SpikMambaConfig, create_model, load_model
from spikeloom.models.patch_conv import PatchConv
from spikeloom.training import fit, get_recipe, list_recipes
from spikeloom.training.energy_report import report_energy
from spikeloom.training.optim import learning_rate, parameter_groups
from spikeloom.training.sources import SOURCES, check_augment, source

RECIPES = [name for name in list_recipes() if name.startswith("spikmamba")]
TINY: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "depth": 1, "d_state": 2}


def test_marked_parameters_do_not_decay() -> None:
    model = create_model("spikmamba_2_256", **TINY, input_size=(16, 16), T=2)
    decayed, others = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    free = {names[id(p)] for p in others["params"] if p.ndim >= 2}
    block = "blocks.0.mamba."
    assert free == {"pos_embed", "temporal_pos_embedding", f"{block}A_log", f"{block}A_b_log"}
    assert {f"{block}D", f"{block}dt_proj.bias", "norm_f.weight"} <= {names[id(p)] for p in others["params"]}
    assert {f"{block}x_proj.weight", "head.weight"} <= {names[id(p)] for p in decayed["params"]}
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)


def test_the_patches_kernel_lies_channels_last() -> None:
    torch.manual_seed(0)
    conv = PatchConv(2, 4, 4)
    frames = torch.rand(3, 2, 2, 8, 8)
    plain, before = conv(frames), conv.weight.detach().clone()
    weight = conv.weight
    conv = conv.to(memory_format=torch.channels_last)
    assert conv.weight is weight
    assert tuple(weight.shape) == (4, 2, 1, 4, 4)
    assert weight.squeeze(2).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weight, before)
    torch.testing.assert_close(conv(frames), plain)
    assert conv.double().weight.dtype == torch.float64


def test_without_a_mixer_there_is_no_state_space_model() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {**TINY, "input_size": (16, 16), "T": 3, "in_channels": 2}
    model = create_model("spikmamba_2_256", **shape, mixer="none")
    assert not [name for name, _ in model.named_parameters() if "mamba" in name or "norm_m" in name]
    whole = create_model("spikmamba_2_256", **shape)
    assert model.state_dict().keys() < whole.state_dict().keys()
    assert model(torch.rand(3, 2, 2, 16, 16)).shape == (3, 2, 300)
    with pytest.raises(ValueError, match="mixer is 'lstm'; expected 'mamba' or 'none'"):
        SpikMambaConfig(mixer="lstm")  # type: ignore[arg-type]


def small_run(mixer: str) -> Any:
    recipe = get_recipe("spikmamba_small")
    data = replace(recipe.data, T=4, limit=16)
    args = {**recipe.model_args, **TINY, "mixer": mixer}
    return replace(recipe, model_args=args, data=data, epochs=2, batch_size=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    recipe, folder = small_run("mamba"), tmp_path_factory.mktemp("run")
    return recipe, fit(recipe, folder / "run", device="cpu", console=Console(quiet=True))


def test_the_small_recipe_trains(run: Any) -> None:
    _, result = run
    assert result.test.samples == 16
    assert math.isfinite(result.test.mean_loss)
    assert "blocks.0.mamba.in_bn" in result.firing


def test_the_energy_report_says_what_multiplies(run: Any) -> None:
    recipe, result = run
    out = io.StringIO()
    report = report_energy(result.checkpoint, recipe, torch.device("cpu"), Console(file=out, width=200), result.test)
    multiply = {layer.name for layer in report.counts.layers if layer.is_param and layer.kind == "float"}
    analogue = ("mamba.in_proj", "sla.in_proj", "sla.act_proj", "sla.qk", "mlp.fc1", "mlp.fc2")
    assert {f"blocks.0.{name}" for name in analogue} | {"head"} <= multiply
    assert not {name for name in multiply if "conv1d" in name}, "which reads spikes"
    Console(file=out, width=200).print(report)
    said = out.getvalue()
    assert "energy on 16 test recordings" in said
    assert re.search(r"in_proj +(† )?linear +float .* 0 +1,024 ", said), "no additions, as many MACs as terms"
    assert "MAC, effective" in said


def test_the_network_without_a_mixer_trains(tmp_path: Path) -> None:
    recipe = small_run("none")
    result = fit(replace(recipe, epochs=1), tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert not [name for name in result.firing if "mamba" in name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_its_data_and_builds_its_model(name: str) -> None:
    recipe = get_recipe(name)
    if recipe.data.name != "event_store":  # packed recordings say themselves what they are
        check_augment(recipe.augment, recipe.data)
    classes = SOURCES[recipe.data.name].num_classes
    model: nn.Module = create_model(recipe.model, **{"num_classes": classes, "T": recipe.data.T, **recipe.model_args})
    assert model.config.in_channels == 2  # type: ignore[union-attr]
    assert model.config.T == recipe.data.T  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_published")])
def test_published_settings(name: str) -> None:
    recipe = get_recipe(name)
    optim = recipe.optim
    assert (recipe.epochs, recipe.batch_size, optim.weight_decay, optim.clip_norm) == (100, 32, 2e-4, None)
    assert learning_rate(0, 700, 7, optim) == 1e-5
    assert learning_rate(699, 700, 7, optim) == pytest.approx(1e-6, rel=1e-2)


@pytest.mark.parametrize(("name", "lr"), [("spikmamba_paf_script", 1e-3), ("spikmamba_efaction_script", 5e-4)])
def test_settings_of_the_scripts(name: str, lr: float) -> None:
    recipe = get_recipe(name)
    rates = [learning_rate(epoch * 3, recipe.epochs * 3, 3, recipe.optim) for epoch in range(recipe.epochs)]
    assert rates[0] == 1e-6
    assert max(rates) == rates[199] == pytest.approx(lr, rel=0.01), "the end of the warm-up"
    assert rates[2000:] == [5e-6] * 200
    assert (recipe.batch_size, recipe.data.T, recipe.model) == (8, 16, "spikmamba_official_sla_16")
    assert (recipe.augment.mixup, recipe.augment.mix_prob, recipe.augment.mix_epochs) == (0.5, 0.5, 75)


def test_settings_of_the_script_for_hardvs() -> None:
    recipe = get_recipe("spikmamba_hardvs_script")
    rates = [learning_rate(epoch, recipe.epochs, 1, recipe.optim) for epoch in range(recipe.epochs)]
    assert rates[0] == 1e-5
    assert max(rates) == rates[10] == pytest.approx(1e-3, rel=0.01), "the end of the warm-up"
    assert rates[196:] == [1e-5] * 10
    assert (recipe.batch_size, recipe.data.T, recipe.model) == (32, 8, "spikmamba_official_bimamba_8")


def test_gestures_are_read_and_trained_on(tmp_path: Path) -> None:
    recipe = get_recipe("spikmamba_gesture")
    data = replace(recipe.data, root=str(write_clips(tmp_path / "gestures", 40)), T=2, limit=4)
    assert recipe.augment.flip == 0, "a mirrored left hand is a right hand"
    small = replace(recipe, model_args=recipe.model_args | TINY, data=data, epochs=1, batch_size=2)
    result = fit(small, tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert math.isfinite(result.test.mean_loss)


def test_hardvs_is_packed_and_trained_on(tmp_path: Path) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "raw"
    for part, stored in (("train", "train"), ("val", "validation"), ("test", "test")):
        for action in ("001", "300"):
            (root / f"action_{action}").mkdir(parents=True, exist_ok=True)
            columns = {"x": rng.integers(0, 346, 50), "y": rng.integers(0, 260, 50), "p": rng.integers(0, 2, 50)}
            np.savez(root / f"action_{action}" / f"dvSave-{part}.npz", t=np.arange(50), **columns)
        (root / f"{part}_label.txt").write_text(f"action_001/dvSave-{part} 20 0\naction_300/dvSave-{part} 31 299\n")
        store = tmp_path / "stores" / f"{stored}.events"
        assert data_command(["pack", "hardvs", str(root), str(store), "--split", part]) == 0
    recipe = get_recipe("spikmamba_hardvs_published")
    data = replace(recipe.data, root=str(tmp_path / "stores"), T=2)
    small = replace(recipe, model_args=recipe.model_args | TINY, data=data, epochs=1, batch_size=2)
    result = fit(small, tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert result.test.samples == 2
    script = get_recipe("spikmamba_hardvs_script")
    check_augment(script.augment, replace(script.data, root=data.root))
    assert load_model(result.checkpoint).config.num_classes == 300  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["paf", "efaction"])
def test_a_missing_download_is_explained(name: str, tmp_path: Path) -> None:
    data = get_recipe(f"spikmamba_{name}_published").data
    with pytest.raises(ValueError, match=r"Pass --root FOLDER, which holds class folders 1 to"):
        source(data).load(data, "train")
    with pytest.raises(FileNotFoundError, match="Get them from"):
        source(data).load(replace(data, root=str(tmp_path)), "train")
