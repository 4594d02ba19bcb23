"""Spikformer: the sizes of every variant against those of the authors' code, the attention's order, switches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from spikeloom.models import Spikformer, SpikformerConfig, create_model, describe, list_models
from spikeloom.models.registry import default_config
from spikeloom.models.sizes import parameters
from spikeloom.spiking_attention import SSA
from spikeloom.spiking_attention.products import product

SIZES = {
    "spikformer_cifar_2_256": ({}, 2_570_538, 2_568_490),
    "spikformer_cifar_4_256": ({}, 4_159_274, 4_155_178),
    "spikformer_cifar_2_384": ({}, 5_768_122, 5_765_050),
    "spikformer_cifar_4_384": ({}, 9_330_874, 9_324_730),
    "spikformer_cifar_4_384-100": ({"num_classes": 100}, 9_365_524, 9_359_380),
    "spikformer_dvs_2_256": ({}, 2_585_610, 2_566_666),
    "spikformer_dvs_2_256-11": ({"num_classes": 11}, 2_585_867, 2_566_923),
    "spikformer_8_384": ({}, 16_828_312, 16_816_024),
    "spikformer_6_512": ({}, 23_385_640, 23_373_352),
    "spikformer_8_512": ({}, 29_705_768, 29_689_384),
    "spikformer_10_512": ({}, 36_025_896, 36_005_416),
    "spikformer_8_768": ({}, 66_363_208, 66_338_632),
}
"""Parameters of the authors' code with all that it holds, and without what no forward touches."""


@pytest.mark.parametrize("case", SIZES)
def test_parameters(case: str) -> None:
    overrides, measured, used = SIZES[case]
    with torch.device("meta"):
        name = case.split("-")[0]
        assert parameters(create_model(name, **overrides)) == used
        assert parameters(create_model(name, **overrides, legacy_keys=True)) == measured


def test_every_variant_of_the_paper_is_in_the_table() -> None:
    registered = {name for name in list_models() if describe(name).kind is Spikformer} - {"spikformer_small"}
    assert registered == {case.split("-")[0] for case in SIZES}


@pytest.mark.parametrize(
    ("name", "tokens", "width"),
    [
        ("spikformer_cifar_4_384", 64, 32),
        ("spikformer_dvs_2_256", 64, 16),
        ("spikformer_8_384", 196, 32),
        ("spikformer_8_512", 196, 64),
        ("spikformer_8_768", 196, 64),
    ],
)
def test_all_variants_take_keys_and_values_first(name: str, tokens: int, width: int) -> None:
    config = default_config(name)
    stride = 2 ** sum(config.pools)
    assert (config.input_size[0] // stride) ** 2 == tokens
    assert config.embed_dim // config.num_heads == width
    flops = {}
    for order in (config.order, "q_kv"):
        with FlopCounterMode(display=False) as counter:
            product(*torch.empty(3, 1, tokens, width, device="meta"), config.scale, order)
        flops[order] = counter.get_total_flops()
    assert flops["auto"] == flops["q_kv"] == 4 * tokens * width**2


def tiny(**overrides: Any) -> Spikformer:
    torch.manual_seed(0)
    small: dict[str, Any] = {"embed_dim": 16, "num_heads": 2, "depth": 2, "mlp_ratio": 1.0, "T": 3, "scale": 0.5}
    return Spikformer(SpikformerConfig(**{**small, **overrides}))


def test_the_stream_holds_whole_numbers() -> None:
    """{0, 1, 2} behind the stem; every block adds up to 2."""
    model, seen = tiny().train(), []
    for module in (model.stem, *model.blocks):
        module.register_forward_hook(lambda m, args, y: seen.append(y.detach()))
    model(torch.rand(2, 3, 8, 8))
    for depth, y in enumerate(seen):
        assert torch.equal(y, y.round())
        assert y.max().item() <= 2 + 2 * depth
        assert y.any()


def test_switches_reach_the_attention() -> None:
    model = tiny(scale="rsqrt_d", order="qk_v", linear=False)
    mixers = [module for module in model.modules() if isinstance(module, SSA)]
    assert len(mixers) == 2
    for mixer in mixers:
        assert (mixer.scale, mixer.order) == (8**-0.5, "qk_v")
        assert mixer.qkv.synapse.bias is None
        assert mixer.proj.synapse.bias is not None
    assert default_config("spikformer_dvs_2_256").scale == 0.25
    assert default_config("spikformer_8_512").scale == 0.125


def test_linear_maps_start_as_in_vision_transformers() -> None:
    model = tiny()
    weight = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, torch.nn.Linear)])
    assert 0.018 < weight.std().item() < 0.022
    mixer = model.blocks[0].attn
    assert isinstance(mixer, SSA)
    assert not mixer.qkv.synapse.bias.any()


def test_parameters_that_no_forward_reads_change_nothing() -> None:
    plain, legacy = tiny().eval(), tiny(legacy_keys=True, legacy_positions=4).eval()
    extra = legacy.state_dict().keys() - plain.state_dict().keys()
    assert extra == {
        *(f"blocks.{i}.norm{j}.{key}" for i in range(2) for j in (1, 2) for key in ("weight", "bias")),
        "pos_embed",
        "norm.weight",
        "norm.bias",
    }
    legacy.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(plain(x), legacy(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 12}, r"embed_dim is 12; expected a multiple of 8"),
        ({"num_heads": 3}, r"dim=16 and num_heads=3; expected a number of heads that divides dim"),
        ({"depth": 0}, "depth=0"),
        ({"mlp_ratio": 0.0}, r"mlp_ratio is 0.0; expected a finite number > 0"),
        ({"mlp_ratio": 0.05}, r"mlp_ratio is 0.05; .* at least 1 / 16 here"),
        ({"mlp_ratio": float("inf")}, r"mlp_ratio is inf"),
        ({"scale": 0.0}, r"SpikformerConfig got scale=0.0; expected a finite number > 0"),
        ({"scale": float("nan")}, r"SpikformerConfig got scale=nan"),
        ({"scale": "rsqrt"}, r"got scale='rsqrt'; expected a finite number > 0, such as 0.125, or 'rsqrt_d'"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan"), True, None, "sqrt_d"], ids=str)
def test_impossible_scales_of_the_attention_are_refused(scale: Any) -> None:
    with pytest.raises(ValueError, match=r"SSA got scale=.*; expected a finite number > 0"):
        SSA(16, 2, scale=scale)


def test_the_attention_says_how_its_last_neuron_runs() -> None:
    assert "proj_lif" not in SSA(16, 2).extra_repr()
    assert SSA(16, 2, proj_lif="batch_leak").extra_repr().endswith(", proj_lif='batch_leak'")


def test_results_that_were_not_read_again_say_so() -> None:
    """Only the largest network's result was confirmed."""
    for name in list_models("spikformer_[!v]*"):
        for result in describe(name).published:
            assert ("not re-read in the paper" in result.note) == (name != "spikformer_8_768"), (name, result)
