"""Max-Former's recipes: cutmix of frames as it should be and as it ran, the small recipes, the ten minutes of CIFAR."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from spikeloom_tests.training.tiny_files import write_cifar, write_fashion
from torch import Tensor

from spikeloom.datasets import Images
from spikeloom.models import create_model
from spikeloom.training import Augment, Data, Recipe, fit, get_recipe, maxformer_recipes
from spikeloom.training.data import Batches
from spikeloom.training.mixing import Mixing, mix_by
from spikeloom.training.optim import learning_rate

T, B, C, H, W = 3, 4, 2, 8, 6


def reference(frames: Tensor, share: float, centre: tuple[float, float], legacy: bool) -> tuple[Tensor, float]:
    """Element by element: frames `[T, B, C, H, W]` behind cutmix, and the part of the own label."""
    ends = []
    for length, place in ((H, centre[0]), (W, centre[1])):
        half = int(length * math.sqrt(1 - share)) // 2
        middle = int(place * length)
        ends.append((min(max(middle - half, 0), length), min(max(middle + half, 0), length)))
    (top, bottom), (left, right) = ends
    mixed = frames.clone()
    for t in range(T):
        for b in range(B):
            for c in range(C):
                for h in range(H):
                    for w in range(W):
                        first, second = (c, h) if legacy else (h, w)
                        if top <= first < bottom and left <= second < right:
                            mixed[t, b, c, h, w] = frames[t, B - 1 - b, c, h, w]
    return mixed, 1 - (bottom - top) * (right - left) / (H * W)


@pytest.mark.parametrize("legacy", [False, True], ids=["corrected", "legacy"])
@pytest.mark.parametrize("centre", [(0.1, 0.5), (0.3, 0.2), (0.8, 0.9)], ids=["top", "left", "bottom"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_cutmix_of_frames(share: float, centre: tuple[float, float], legacy: bool) -> None:
    frames = torch.rand(T, B, C, H, W, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(B)
    mixed, shares = mix_by(Mixing(share, centre), frames, labels, B, legacy_cutmix=legacy)
    expected, kept = reference(frames, share, centre, legacy)
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(shares, torch.eye(B) * kept + torch.eye(B).flip(0) * (1 - kept))
    assert 0 < kept < 1
    if legacy and centre[0] == 0.8 and share == 0.5:  # the box's rows begin behind the last channel
        assert torch.equal(mixed, frames)
    if not legacy:
        assert not torch.equal(mixed, frames)


def test_legacy_cutmix_is_for_frames_and_needs_cutmix() -> None:
    with pytest.raises(ValueError, match=r"Augment\.legacy_cutmix is True; expected False, or a cutmix above 0"):
        Augment(legacy_cutmix=True)
    legacy = Augment(cutmix=1.0, legacy_cutmix=True)
    images = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4), ("x",) * 10, "black")
    with pytest.raises(ValueError, match="the data are images; it changes frames of events alone"):
        Batches(images, Data("cifar10"), 2, torch.device("cpu"), legacy)
    with pytest.raises(ValueError, match=r"expected frames \[T, B, C, H, W\]"):
        mix_by(Mixing(0.5, (0.5, 0.5)), torch.zeros(4, 3, 8, 8), torch.arange(4), 4, legacy_cutmix=True)


def test_the_recipes_of_one_data_set_share_their_settings() -> None:
    for data_set in ("cifar10", "cifar100"):
        recipes = [
            getattr(maxformer_recipes, f"{family}_{data_set}_paper")()
            for family in ("maxformer", "max_resnet18", "ms_qkformer")
        ]
        assert len({recipe.model for recipe in recipes}) == 3
        assert len({str(replace(recipe, model="").to_json()) for recipe in recipes}) == 1
        assert {recipe.seed for recipe in recipes} == {50425}


@pytest.mark.parametrize(("name", "warmup"), [("cifar10", 8e-5), ("cifar100", 1e-5)])
def test_the_rate_of_every_epoch_for_cifar(name: str, warmup: float) -> None:
    recipe: Recipe = getattr(maxformer_recipes, f"maxformer_{name}_paper")()
    rates = [learning_rate(epoch * 5, recipe.epochs * 5, 5, recipe.optim) for epoch in range(recipe.epochs)]
    for epoch, rate in enumerate(rates):
        cosine = 1e-5 + 0.5 * (1.5e-3 - 1e-5) * (1 + math.cos(math.pi * min(epoch, 400) / 400))
        assert rate == pytest.approx(warmup + epoch * (1.5e-3 - warmup) / 20 if epoch < 20 else cosine)


@pytest.mark.parametrize(("name", "epochs", "seed"), [("cifar10_dvs", 96, 35307), ("gesture", 150, 1779)])
def test_frames_are_mixed_half_of_the_time_until_epoch_75(name: str, epochs: int, seed: int) -> None:
    recipe: Recipe = getattr(maxformer_recipes, f"maxformer_{name}_paper")()
    augment = recipe.augment
    assert (augment.mixup, augment.cutmix, augment.mix_prob, augment.mix_epochs) == (0.5, 0.1, 0.5, 75)
    assert (recipe.epochs, recipe.seed, augment.legacy_cutmix) == (epochs + 10, seed, False)
    rates = [learning_rate(epoch, recipe.epochs, 1, recipe.optim) for epoch in range(recipe.epochs)]
    assert rates[0] == 1e-5
    assert rates[10] == pytest.approx(1e-5 + 0.5 * (5e-3 - 1e-5) * (1 + math.cos(math.pi * 10 / epochs)))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("maxformer_saccade_small", 366_730), ("maxformer_fashion_small", 1_650_178), ("cifar10_10min", 6_568_282)],
)
def test_small_recipes_have_their_size(name: str, parameters: int) -> None:
    recipe = get_recipe(name)
    model = create_model(recipe.model, **recipe.model_args, T=recipe.data.T)
    assert sum(p.numel() for p in model.parameters()) == parameters
    channels, size = model.config.in_channels, model.config.input_size
    assert (channels, size) == {
        "saccade_mnist": (2, (recipe.data.crop, recipe.data.crop)),
        "fashion_mnist": (1, (28, 28)),
        "cifar10": (3, (32, 32)),
    }[recipe.data.name]


@pytest.mark.parametrize("name", ["maxformer_fashion_small", "cifar10_10min"])
def test_small_recipes_for_images_take_steps(name: str, tmp_path: Path) -> None:
    recipe = get_recipe(name)
    (tmp_path / "data").mkdir()
    grey = recipe.data.name == "fashion_mnist"
    root = write_fashion(tmp_path / "data") if grey else write_cifar(tmp_path / "data", 10)
    data = replace(recipe.data, root=str(root), T=2, limit=8, allow_partial=not grey)
    narrow = recipe.model_args | {"embed_dim": 32, "num_heads": 4}
    short = replace(recipe, data=data, model_args=narrow, epochs=1, early_epochs=0, batch_size=4)
    result = fit(short, tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert math.isfinite(result.test.mean_loss)
    assert result.checkpoint.name == "checkpoint-000002"


def test_ten_minutes_of_cifar() -> None:
    recipe = get_recipe("cifar10_10min")
    assert (recipe.data.T, recipe.batch_size, recipe.bf16, recipe.data.allow_partial) == (4, 128, True, False)
    steps = recipe.epochs * 281  # of 36,000 images
    rates = [learning_rate(step, steps, 281, recipe.optim) for step in range(steps)]
    assert max(rates) == rates[3 * 281 - 1] == recipe.optim.lr
    assert rates[-1] < 1e-8
    assert recipe.augment.mix_epochs == recipe.epochs - 8
    assert 0 < recipe.early_epochs < recipe.augment.mix_epochs
    assert recipe.augment.rand_operations == "five"
