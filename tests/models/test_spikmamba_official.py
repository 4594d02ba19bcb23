"""The networks of the SpikMamba code: live parameters, quirks, state dicts, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom import Stream
from spikeloom.energy import count
from spikeloom.models import SpikMambaOfficial, SpikMambaOfficialConfig, create_model, from_official, list_models
from spikeloom.models.sizes import size_of
from spikeloom.models.spikmamba_official import rename
from spikeloom.neurons import LIF

LIVE = {
    "sla_16": 2_024_992,
    "sla_8": 2_091_820,
    "bisla_16": 6_290_220,
    "bisla_8": 6_288_172,
    "bimamba_16": 4_122_668,
    "bimamba_8": 4_120_620,
    "bissm_bisla_16": 2_674_988,
    "bissm_bisla_8": 2_672_940,
}
MIXERS = {"sla": 0, "bisla": 0, "bissm_bisla": 1, "bimamba": 2}
T, B = 3, 2


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny(variant: Any = "bimamba", **options: Any) -> Any:
    """A network of 3 frames of 8 x 8 pixels, 2 x 2 tokens, whose neurons fire; float64, in evaluation."""
    torch.manual_seed(0)
    given = {"input_size": (8, 8), "patch_size": 4, "T": T, "embed_dim": 16, "num_heads": 2, "num_classes": 5}
    model = SpikMambaOfficial(
        SpikMambaOfficialConfig(variant, **{**given, "mamba_depth": MIXERS[variant], **options})
    ).double()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm1d)):
        nn.init.constant_(norm.bias, 0.6)
        norm.running_var.fill_(0.3)
    return model.eval()


def official(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict under the code's names."""
    found = {}
    for key, value in model.state_dict().items():
        name = f"layers.0.{key}" if key.startswith("blocks.") else key
        found[name.replace("_norm.", "_bn.")] = value.clone()
    return found


@pytest.mark.parametrize("name", LIVE)
def test_live_parameters(name: str) -> None:
    assert size_of(f"spikmamba_official_{name}").parameters == LIVE[name]


def test_every_variant_is_measured() -> None:
    assert list_models("spikmamba_official_*") == sorted(f"spikmamba_official_{name}" for name in LIVE)


@pytest.mark.parametrize("variant", MIXERS)
def test_a_state_dict_shows_everything_but_the_heads(variant: str) -> None:
    model = tiny(variant)
    state = official(model)
    again: Any = from_official("spikmamba", {"num_heads": 2}, {"model": state})
    assert again.config == model.config
    assert all(torch.equal(value.float(), again.state_dict()[key].float()) for key, value in model.state_dict().items())
    without = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    again = from_official("spikmamba", {"num_heads": 2, "mlla_depth": 2, "drop_rate": 0.1}, without)
    assert again.config.drop_rate == 0.1
    assert not any(key.endswith("num_batches_tracked") for key in without), "the caller's state dict was changed"
    assert {rename(key) for key in state} == model.state_dict().keys()


def test_entries_that_are_never_read_are_left_out() -> None:
    model = tiny()
    dead = ("cls_token", "norm.weight", "sps_patch_embed.rpe_bn.bias", "block.0.attn.q_conv.weight")
    blocks = ("layers.0.blocks.1.to2.weight", "layers.0.blocks.0.mlp.fc1_bn.running_mean")
    state = {**official(model), **{key: torch.zeros(1) for key in (*dead, *blocks)}}
    with pytest.warns(UserWarning, match="6 entries that the official spikmamba code never reads"):
        again = from_official("spikmamba", {"num_heads": 2}, state).double()
    x = random(T, B, 3, 8, 8)
    torch.testing.assert_close(again.eval()(x), model(x), rtol=1e-5, atol=1e-5)


def test_state_dicts_that_do_not_fit_are_refused() -> None:
    state = official(tiny())
    with pytest.raises(ValueError, match="no num_heads"):
        from_official("spikmamba", {}, state)
    with pytest.raises(ValueError, match="'heads', no argument"):
        from_official("spikmamba", {"num_heads": 2, "heads": 2}, state)
    fits = from_official("spikmamba", {"num_heads": 2, "img_size": [8, 8], "patch_size": 4}, state)
    assert fits.config.input_size == (8, 8)  # type: ignore[union-attr]
    for key, value, shown in (("img_size", 64, r"input_size=\(8, 8\)"), ("patch_size", 2, "patch_size=4")):
        with pytest.raises(ValueError, match=rf"has {key}={value}, and the shapes .* show {shown}"):
            from_official("spikmamba", {"num_heads": 2, key: value}, state)
    key = "layers.0.blocks.1.attn.qk_bn.weight"
    with pytest.raises(ValueError, match=rf"1 entries missing: {key}"):
        from_official("spikmamba", {"num_heads": 2}, {name: v for name, v in state.items() if name != key})
    with pytest.raises(ValueError, match=r"1 entries too many: mamba_layers\.0\.mixer\.E"):
        from_official("spikmamba", {"num_heads": 2}, {**state, "mamba_layers.0.mixer.E": torch.zeros(1)})
    with pytest.raises(ValueError, match="other shapes: temporal_pos_embedding"):
        from_official("spikmamba", {"num_heads": 2, "T": 4}, state)
    with pytest.raises(ValueError, match="mamba_depth is 2; expected 0 for 'sla'"):
        from_official("spikmamba", {"num_heads": 2, "variant": "sla"}, state)
    with pytest.raises(ValueError, match="entries missing"):
        from_official("spikmamba", {"num_heads": 2}, {"head.weight": torch.zeros(5, 16)})


def test_neurons_run_on_from_sample_to_sample() -> None:
    model, x = tiny("sla"), random(T, B, 3, 8, 8)
    logits = model(x)
    torch.testing.assert_close(model(x[:, :1]), logits[:, :1])
    assert not torch.allclose(model(x[:, 1:]), logits[:, 1:]), "the second sample starts where the first one ended"
    assert not torch.allclose(model(x.flip(1)).flip(1), logits)
    stream = Stream(model)
    assert torch.equal(stream(x[:, :1]), model(x[:, :1]))
    torch.testing.assert_close(stream(x[:, 1:]), logits[:, 1:])


def test_neurons_run_on_into_the_reversed_half() -> None:
    model, x = tiny("bisla"), random(T, B, 3, 8, 8)
    seen: list[Tensor] = []
    model.blocks[0].attn.qk_lif.register_forward_hook(lambda m, given, out: seen.append(given[0]))
    model(x)
    assert seen[0].shape == (2 * T * B, 4, 32)
    stream = Stream(model)
    first, second = stream(x), stream(x)
    assert torch.equal(first, model(x))
    assert not torch.equal(first, second)


def test_streams_leave_the_mixers_alone() -> None:
    model, x = tiny("bimamba"), random(T, B, 3, 8, 8)
    assert torch.equal(Stream(model)(x), model(x))


def test_each_half_has_statistics_of_its_own() -> None:
    model, x = tiny("bisla").train(), random(T, B, 3, 8, 8)
    model(x)
    assert model.blocks[0].attn.qk_norm.num_batches_tracked == 2
    assert model.patch_embed.proj_norm.num_batches_tracked == 1
    assert model.patch_embed.proj_norm.num_features == 4, "one for each place of a token"


def test_starting_values_and_rates() -> None:
    torch.manual_seed(0)
    model: Any = create_model("spikmamba_official_bimamba_8")
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 0.1])
    assert [layer.drop_path.rate for layer in model.mamba_layers] == pytest.approx([0, 0, 0.0091, 0.0182], abs=1e-4)
    assert model.drop_path.rate == 0.1
    mixer = model.mamba_layers[0].mixer
    assert mixer.dt_proj.bias.max() < -2
    assert mixer.dt_proj_b.bias.max() > 0.1, "torch's own starting values"
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    sixteen: Any = create_model("spikmamba_official_sla_16")
    assert (sixteen.patch_embed.drop.p, sixteen.blocks[0].attn.drop.p) == (0.25, 0.3)


def test_only_patches_queries_and_keys_spike() -> None:
    model = tiny("bimamba").float()
    names = {name for name, module in model.named_modules() if isinstance(module, LIF)}
    assert names == {"patch_embed.proj_lif", "blocks.0.attn.qk_lif", "blocks.1.attn.qk_lif"}
    with torch.no_grad(), count(model, strict=True) as run:
        model(random(T, B, 3, 8, 8).float())
    counted = run.counts()
    assert not counted.uncounted
    assert {layer.kind for layer in counted.layers if layer.is_param} == {"float"}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"input_size": (8, 12)}, "expected a square"),
        ({"input_size": (10, 10)}, "multiple of patch_size=4"),
        ({"mamba_depth": 0}, "expected >= 1 for 'bimamba'"),
        ({"num_heads": 3}, "num_heads=3"),
        ({"qk_dropout": 1.0}, "qk_dropout"),
        ({"T": 0}, "T=0"),
    ],
    ids=["square", "patch", "mixers", "heads", "dropout", "steps"],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny("bimamba", **options)


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="SpikMambaOfficial got frames of 12 x 12 pixels and was built for 8 x 8"):
        tiny()(random(T, B, 3, 12, 12))
