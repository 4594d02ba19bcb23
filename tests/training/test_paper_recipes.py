"""The published recipes: their numbers, and that each builds its model, reads its data and takes steps."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from spikeloom_tests.training.tiny_files import write_cifar, write_cifar10_dvs, write_clips

from spikeloom.training import fit, get_recipe, list_recipes
from spikeloom.training.optim import learning_rate

PAPER = [name for name in list_recipes() if name.endswith("_paper")]
SMALL: dict[str, dict[str, Any]] = {
    "spikformer_cifar_4_384": {"embed_dim": 32, "num_heads": 4, "depth": 1},
    "spikformer_dvs_2_256": {"embed_dim": 32, "num_heads": 4, "depth": 1},
    "qkformer_cifar": {"embed_dim": 64, "num_heads": 4, "depths": [1, 1, 1]},
    "qkformer_cifar10dvs": {"embed_dim": 64, "num_heads": 4},
    "qkformer_gesture": {"embed_dim": 64, "num_heads": 4},
    "sdt_cifar_2_512": {"embed_dim": 32, "num_heads": 4, "depth": 1},
    "sdt_dvs_2_256": {"embed_dim": 32, "num_heads": 4, "depth": 1},
}
NUMBERS = {  # epochs with 10 of cooldown, batch, peak rate, lowest rate, warm-up, rate before it
    "spikformer_cifar10_paper": (310, 128, 5e-4, 1e-5, 20, 1e-5),
    "spikformer_cifar100_paper": (310, 128, 5e-4, 1e-5, 20, 1e-5),
    "spikformer_cifar10dvs_paper": (106, 16, 1e-3, 1e-5, 10, 1e-5),
    "spikformer_gesture_paper": (106, 16, 1e-3, 1e-5, 10, 1e-5),
    "qkformer_cifar10_paper": (410, 64, 1e-3, 1e-5, 20, 1e-5),
    "qkformer_cifar100_paper": (410, 64, 1e-3, 1e-5, 20, 1e-5),
    "qkformer_cifar10dvs_paper": (106, 16, 5e-3, 1e-5, 10, 1e-5),
    "qkformer_gesture_paper": (202, 16, 1e-3, 2e-5, 10, 1e-5),
    "sdt_cifar10_paper": (310, 64, 3e-4, 1e-5, 20, 1e-6),
    "sdt_cifar100_paper": (310, 64, 3e-4, 1e-5, 20, 1e-6),
    "sdt_cifar10dvs_paper": (106, 16, 1e-3, 1e-5, 10, 1e-5),
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "cifar10": write_cifar(tmp_path_factory.mktemp("cifar10"), 10, 6, 2),
        "cifar100": write_cifar(tmp_path_factory.mktemp("cifar100"), 100, 6, 2),
        "cifar10_dvs": write_cifar10_dvs(tmp_path_factory.mktemp("cifar10_dvs")),
        "dvs_gesture": write_clips(tmp_path_factory.mktemp("dvs_gesture"), 40),
    }


@pytest.mark.parametrize("name", PAPER)
def test_it_builds_reads_and_takes_steps(name: str, roots: dict[str, Path], tmp_path: Path) -> None:
    recipe = get_recipe(name)
    T = 2 if recipe.data.name.startswith("cifar1") else 4
    data = replace(recipe.data, root=str(roots[recipe.data.name]), T=T, limit=4, allow_partial=True)
    small = replace(recipe, model_args=SMALL[recipe.model], data=data, epochs=1, batch_size=2)
    result = fit(small, tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert result.test.samples == min(4, {"cifar10": 2, "cifar100": 2}.get(recipe.data.name, 4))
    assert math.isfinite(result.test.mean_loss)
    assert (result.checkpoint / "model.safetensors").stat().st_size > 10_000
    assert result.checkpoint.name == "checkpoint-000002"


@pytest.mark.parametrize("name", PAPER)
def test_its_numbers_are_those_of_the_paper(name: str) -> None:
    recipe = get_recipe(name)
    optim = recipe.optim
    found = (recipe.epochs, recipe.batch_size, optim.lr, optim.min_lr, optim.warmup_epochs, optim.warmup_lr)
    assert found == NUMBERS[name]
    assert (optim.weight_decay, optim.betas, optim.clip_norm, recipe.ema) == (0.06, (0.9, 0.999), None, None)
    assert recipe.loss.label_smoothing == 0.1
    assert recipe.bf16 == (not name.startswith("sdt"))
    assert "paper's accuracy" in list_recipes()[name]
    rates = [learning_rate(epoch * 7, recipe.epochs * 7, 7, optim) for epoch in range(recipe.epochs)]
    assert rates[0] == optim.warmup_lr
    assert rates[-10:] == [optim.min_lr] * 10


@pytest.mark.parametrize("name", PAPER)
def test_its_augmentation_is_that_of_the_paper(name: str) -> None:
    recipe = get_recipe(name)
    augment, data = recipe.augment, recipe.data
    assert (augment.flip, augment.mixup, augment.cutmix) == (0.5, 0.5, 0.0)
    if "dvs" in data.name:
        assert (data.T, data.split, data.encoding) == (16, "number", "count")
        assert (augment.frame_op, augment.mix_prob, augment.mix_epochs) == (True, 0.5, None)
        assert recipe.loss.name == ("tet" if name.startswith("sdt") else "rate")
    else:
        assert data.T == 4
        assert (augment.rand_augment, augment.mix_prob, augment.mix_epochs) == ("rand-m9-n1-mstd0.4-inc1", 1.0, 200)
        assert augment.erase == (0.0 if name.startswith("sdt") else 0.25)
        assert (augment.erase_mode, augment.shift_px) == ("const", 0)
