"""The published recipes: their numbers, and that each builds its model, reads its data and takes steps."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from spikeloom_tests.training.tiny_files import write_cifar, write_cifar10_dvs, write_clips

from spikeloom.models import create_model
from spikeloom.training import fit, get_recipe, list_recipes
from spikeloom.training.optim import learning_rate
from spikeloom.training.sources import check_augment

PAPER = [  # those for ImageNet, for texts and for delays are of another kind
    name
    for name in list_recipes()
    if name.endswith("_paper")
    and not name.startswith("delays_")
    and get_recipe(name).data.name != "imagenet"
    and get_recipe(name).task != "language"
]
SMALL: dict[str, dict[str, Any]] = {
    "spikformer_cifar_4_384": {"embed_dim": 32, "num_heads": 4, "depth": 1},
    "spikformer_dvs_2_256": {"embed_dim": 32, "num_heads": 4, "depth": 1},
    "qkformer_cifar": {"embed_dim": 64, "num_heads": 4, "depths": [1, 1, 1]},
    "qkformer_cifar10dvs": {"embed_dim": 64, "num_heads": 4},
    "qkformer_gesture": {"embed_dim": 64, "num_heads": 4},
    "maxformer_cifar_4_384": {"embed_dim": 32, "num_heads": 4},
    "maxformer_dvs_2_256": {"embed_dim": 32, "num_heads": 4},
    "max_resnet18": {"stem_width": 8, "widths": [16, 24, 32], "depths": [1, 1, 1]},
    "ms_qkformer_cifar_4_384": {"embed_dim": 32, "num_heads": 4},
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
    "sdt_cifar10dvs_paper": (210, 32, 7.5e-3, 3e-4, 10, 1e-3),
    "sdt_gesture_paper": (210, 16, 3e-4, 1e-5, 10, 1e-6),
    "maxformer_cifar10_dvs_paper": (106, 16, 5e-3, 1e-5, 10, 1e-5),
    "maxformer_gesture_paper": (160, 16, 5e-3, 1e-5, 10, 1e-5),
}
for _family in ("maxformer", "max_resnet18", "ms_qkformer"):
    NUMBERS[f"{_family}_cifar10_paper"] = (410, 128, 1.5e-3, 1e-5, 20, 8e-5)
    NUMBERS[f"{_family}_cifar100_paper"] = (410, 64, 1.5e-3, 1e-5, 20, 1e-5)


def of_max_former(name: str) -> bool:
    return name.startswith(("maxformer", "max_resnet18", "ms_qkformer"))


def of_images(name: str) -> bool:
    return get_recipe(name).data.name in ("cifar10", "cifar100")


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
    T = 2 if of_images(name) else 4
    data = replace(recipe.data, root=str(roots[recipe.data.name]), T=T, limit=4, allow_partial=True)
    small = replace(recipe, model_args=recipe.model_args | SMALL[recipe.model], data=data, epochs=1, batch_size=2)
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
    decay = 1e-4 if name == "sdt_cifar10dvs_paper" else 0.06
    assert (optim.weight_decay, optim.betas, optim.clip_norm, recipe.ema) == (decay, (0.9, 0.999), None, None)
    assert recipe.loss.label_smoothing == 0.1
    assert recipe.bf16 == (name not in ("sdt_cifar10_paper", "sdt_cifar100_paper"))
    assert "paper's accuracy" in list_recipes()[name]
    rates = [learning_rate(epoch * 7, recipe.epochs * 7, 7, optim) for epoch in range(recipe.epochs)]
    assert rates[0] == optim.warmup_lr
    assert rates[-10:] == [optim.min_lr] * 10


@pytest.mark.parametrize("name", [name for name in PAPER if of_images(name)])
def test_its_changes_of_images_are_those_of_the_paper(name: str) -> None:
    recipe = get_recipe(name)
    augment, data = recipe.augment, recipe.data
    assert (data.T, data.drop_last, recipe.loss.name) == (4, True, "rate")
    ours = of_max_former(name)
    assert (augment.flip, augment.shift_px, augment.cutmix) == (0.5, 0, 0.5 if ours else 0.0)
    mixup = 0.75 if ours and data.name == "cifar100" else 0.5
    assert (augment.mixup, augment.mix_prob, augment.mix_epochs) == (mixup, 1.0, None if ours else 200)
    kept = "five" if name.startswith("spikformer") or ours else "all"
    assert (augment.rand_augment, augment.rand_operations) == ("rand-m9-n1-mstd0.4-inc1", kept)
    assert (augment.erase, augment.erase_mode) == (0.0 if name.startswith("sdt") else 0.25, "const")


@pytest.mark.parametrize("name", [name for name in PAPER if not of_images(name)])
def test_its_changes_of_frames_are_those_of_the_paper(name: str) -> None:
    recipe, ours = get_recipe(name), name.startswith("sdt")
    augment, data = recipe.augment, recipe.data
    assert (data.split, data.encoding, data.drop_last) == ("number", "count", not ours)
    assert (data.T, data.pool) == ((10, 2) if name == "sdt_cifar10dvs_paper" else (16, 1))
    assert (augment.flip, augment.frame_op, augment.legacy_cutmix) == (0.5, True, False)
    assert augment.cutmix == (0.1 if of_max_former(name) else 0.0)
    mixing = (augment.mixup, augment.mix_prob, augment.mix_epochs)
    assert mixing == ((0.0, 1.0, None) if ours else (0.5, 0.5, 75))
    assert recipe.loss.name == ("tet" if name == "sdt_cifar10dvs_paper" else "rate")


def test_the_spike_driven_transformers_for_events_have_the_poolings_of_the_configuration_files() -> None:
    objects, gestures = get_recipe("sdt_cifar10dvs_paper"), get_recipe("sdt_gesture_paper")
    assert (objects.loss.tet_lambda, objects.loss.tet_mean) == (0.001, 1.0)
    for recipe, digits, size in ((objects, "0011", (64, 64)), (gestures, "0111", (128, 128))):
        model = create_model(recipe.model, **recipe.model_args, T=recipe.data.T)
        assert "".join(str(int(pool)) for pool in model.config.pools) == digits
        assert model.config.input_size == size


@pytest.mark.parametrize("name", ["spikformer_cifar10_paper", "qkformer_cifar10_paper"])
def test_a_recipe_for_cifar_says_early_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe(name)
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2.functional", None)
    with pytest.raises(ImportError, match=r"pip install 'spikeloom\[images\]'"):
        check_augment(recipe.augment, recipe.data)
