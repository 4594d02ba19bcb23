"""Checkpoints of the Max-Former code: every entry's place and order, loading by name and by order, what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from spikeloom_tests.models.maxformer_oracle import official, random, tiny
from torch import Tensor

from spikeloom.models import MaxFormerConfig, create_model, from_official
from spikeloom.models.maxformer import CIFAR, DVS, IMAGENET, QK_CIFAR, QK_DVS, QK_IMAGENET, MaxFormer
from spikeloom.models.maxformer_official import entries
from spikeloom.models.official import translate

ARGUMENTS = {"in_channels": 3, "num_classes": 10, "embed_dims": 32, "mlp_ratios": 4, "depths": 4, "T": 4}


@pytest.mark.parametrize(
    ("config", "number"),
    [(CIFAR, 169), (DVS, 110), (IMAGENET, 398), (QK_CIFAR, 200), (QK_IMAGENET, 434), (QK_DVS, 122)],
    ids=["cifar", "dvs", "imagenet", "qk_cifar", "qk_imagenet", "qk_dvs"],
)
def test_every_official_entry_has_its_place(config: MaxFormerConfig, number: int) -> None:
    layout = entries(config)
    assert len(layout) == number
    with torch.device("meta"):
        model = MaxFormer(config)
    own = model.state_dict()
    assert {translate("maxformer", key, own).partition("#")[0] for key in layout} == own.keys()
    assert {key: tuple(value.shape) for key, value in official(model).items()} == layout


def test_the_order_of_the_authors_code() -> None:
    def modules(config: MaxFormerConfig) -> list[str]:
        return list(dict.fromkeys(key.rpartition(".")[0] for key in entries(config)))

    cifar = modules(CIFAR)
    assert cifar[:6] == [
        *("patch_embed1.proj_conv", "patch_embed1.proj_bn", "patch_embed1.embed1.embed_conv"),
        *("patch_embed1.embed1.embed_bn", "patch_embed1.embed2.embed_conv", "patch_embed1.embed2.embed_bn"),
    ]
    assert [name for name in cifar if name.startswith("patch_embed2") and "conv" in name] == [
        *("patch_embed2.max_embed1.embed_conv", "patch_embed2.embed1.embed_conv", "patch_embed2.max_embed2.embed_conv")
    ]
    assert [name.removeprefix("stage3.0.") for name in cifar if name.startswith("stage3.0.")] == [
        *(f"attn.{part}_{kind}" for part in ("q", "k", "v", "proj") for kind in ("conv", "bn")),
        *(f"mlp.{part}_{kind}" for part in ("fc1", "fc2") for kind in ("conv", "bn")),
    ]
    assert cifar[-1] == "head"
    shapes = entries(CIFAR)
    assert shapes["stage3.1.attn.q_conv.weight"] == (384, 384, 1)
    assert shapes["stage2.0.mixer.conv.weight"] == (192, 1, 3, 3)
    assert shapes["stage1.0.mlp.fc1_conv.weight"] == (384, 96, 1, 1)
    assert shapes["stage1.0.mlp.fc1_bn.num_batches_tracked"] == ()
    assert entries(IMAGENET)["stage1.0.mixer.conv5.weight"] == (96, 1, 7, 7)
    links = [name.removeprefix("patch_embed1.") for name in modules(QK_IMAGENET) if name.startswith("patch_embed1")]
    assert links == ["proj_conv", "proj_bn", "proj_conv1", "proj_bn1", "proj_conv2", "proj_bn2", "rpe_conv", "rpe_bn"]


def test_the_authors_checkpoint_loads_by_name() -> None:
    model = tiny(num_heads=8)
    x = random(2, 3, 16, 16)
    state = official(model)
    shuffled = dict(sorted(state.items()))
    wrapped = {"state_dict": {f"module.{key}": value for key, value in shuffled.items()}, "epoch": 3}
    again = from_official("maxformer", {}, wrapped, scale=0.5).eval()
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("name", "family", "heads", "depths"),
    [
        ("maxformer_10_384", "maxformer", 2, (1, 2, 1)),
        ("ms_qkformer_10_384", "ms_qkformer", 2, (1, 2, 1)),
        ("ms_qkformer_dvs_2_256", "ms_qkformer", 16, (1, 1)),
    ],
)
def test_every_copy_of_the_code_has_its_heads(name: str, family: str, heads: int, depths: tuple[int, ...]) -> None:
    model = tiny(name, embed_dim=128, num_heads=heads, depths=depths, scale=0.125)
    again: Any = from_official(family, {"embed_dims": 128, "depths": 10}, official(model))
    assert again.config == replace(model.config, T=None if "dvs" in name else 4, input_size=again.config.input_size)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("embeds", [("orig", "one_max"), ("orig", "one_max_first"), ("orig", "orig_later")])
@pytest.mark.parametrize("mixer", ["dwc1", "dwc7", "ssa_dwc", "qka"])
def test_ablations_are_read_off_the_names(embeds: tuple[Any, ...], mixer: Any) -> None:
    config = MaxFormerConfig(embed_dim=32, depths=(2, 1), embeds=embeds, mixers=("identity", mixer), mlp_ratio=2.0)
    model = MaxFormer(config)
    again: Any = from_official("maxformer", {}, official(model))
    assert again.config == config
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def renamed(model: Any) -> dict[str, Tensor]:
    """A checkpoint whose names are not those of the published code."""
    return {f"layer_{i}": value for i, value in enumerate(official(model).values())}


def test_other_names_are_matched_by_order() -> None:
    model = tiny(num_heads=8, scale=0.125)
    state = renamed(model)
    with pytest.warns(UserWarning, match=r"All 169 entries of the maxformer checkpoint .* such as 'layer_0'") as seen:
        again = from_official("maxformer", ARGUMENTS, state).eval()
    x = random(2, 3, 16, 16)
    assert torch.equal(again(x), model(x))
    assert seen[0].filename == __file__
    assert len(state) == 169
    assert "layer_0" in state, "the caller's checkpoint was changed"
    baseline = tiny("ms_qkformer_cifar_4_384", num_heads=8, scale=0.125)
    with pytest.warns(UserWarning, match="All 200 entries of the ms_qkformer checkpoint"):
        again = from_official("ms_qkformer", ARGUMENTS, renamed(baseline)).eval()
    assert torch.equal(again(x), baseline(x))


def test_an_order_that_does_not_fit_is_refused() -> None:
    state = renamed(tiny(num_heads=8))
    state["layer_0"] = torch.zeros(16, 3, 3, 3)
    with pytest.raises(
        ValueError,
        match=r"entry 0 is layer_0 \[16, 3, 3, 3\], where patch_embed1\.proj_conv\.weight \[4, 3, 3, 3\] is expected",
    ):
        from_official("maxformer", ARGUMENTS, state)
    del state["layer_168"]
    with pytest.raises(ValueError, match=r"has 168 entries .* CIFAR has 169, event has 110"):
        from_official("maxformer", ARGUMENTS, state)
    swapped = list(renamed(tiny(num_heads=8)).items())
    swapped[0], swapped[6] = swapped[6], swapped[0]
    with pytest.raises(ValueError, match=r"entry 0 is layer_6 .* where patch_embed1\.proj_conv\.weight"):
        from_official("maxformer", ARGUMENTS, dict(swapped))


def test_names_that_do_not_fit_are_listed() -> None:
    state = official(tiny(num_heads=8))
    key = "stage3.0.attn.k_bn.bias"
    missing = {name: value for name, value in state.items() if name != key}
    with pytest.raises(ValueError, match=rf"1 entries missing: {re.escape(key)}"):
        from_official("maxformer", ARGUMENTS, missing)
    with pytest.raises(ValueError, match=r"1 entries too many: stage3\.0\.attn\.table"):
        from_official("maxformer", ARGUMENTS, {**state, "stage3.0.attn.table": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"other shapes: stage3\.0\.attn\.k_bn\.bias \[3\]"):
        from_official("maxformer", ARGUMENTS, {**state, key: torch.zeros(3)})
    with torch.device("meta"):
        other = official(create_model("maxformer_cifar_4_384"))
    with pytest.raises(ValueError, match=r"other shapes: .* It fits maxformer_cifar_4_384\."):
        from_official("maxformer", ARGUMENTS, other)
    unknown = MaxFormer(MaxFormerConfig(embed_dim=32, embeds=("max", "max", "max")))
    with pytest.raises(ValueError, match=r"begins with the embedding 'max'.*expected num_heads="):
        from_official("maxformer", ARGUMENTS, official(unknown))
