"""Checkpoints of the papers' code: names, shapes and wrappings, and what is said of those that do not fit."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from spikeloom.models import Spikformer, from_official, list_families
from spikeloom.models.official import Family, load_official, register_family, translate, unwrap
from spikeloom.spiking_attention import SSA

D, L = 16, 2
CONFIG: dict[str, Any] = {"embed_dims": D, "num_heads": 2, "depths": L, "mlp_ratios": 2, "num_classes": 5, "T": 3}
GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "spiking_attention"


def norm(name: str, width: int) -> dict[str, list[int]]:
    """Shapes of a batch normalisation."""
    shapes = {key: [width] for key in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.{key}": shape for key, shape in {**shapes, "num_batches_tracked": []}.items()}


def shapes(flavour: str, depth: int = L, dim: int = D, classes: int = 5, ratio: int = 2) -> dict[str, list[int]]:
    """Entries of the official Spikformer, from its published names."""
    linear = flavour == "cifar"
    word, ones = ("linear", []) if linear else ("conv", [1])
    found: dict[str, list[int]] = {}
    widths = [2 if flavour == "dvs" else 3, dim // 8, dim // 4, dim // 2, dim]
    for i in range(4):
        digit = str(i or "")
        found[f"patch_embed.proj_conv{digit}.weight"] = [widths[i + 1], widths[i], 3, 3]
        found |= norm(f"patch_embed.proj_bn{digit}", widths[i + 1])
    found["patch_embed.rpe_conv.weight"] = [dim, dim, 3, 3]
    found |= norm("patch_embed.rpe_bn", dim)
    for i in range(depth):
        for j in (1, 2):
            found |= {f"block.{i}.norm{j}.{key}": [dim] for key in ("weight", "bias")}
        for part in ("q", "k", "v", "proj"):
            found[f"block.{i}.attn.{part}_{word}.weight"] = [dim, dim, *ones]
            if linear or part == "proj":
                found[f"block.{i}.attn.{part}_{word}.bias"] = [dim]
            found |= norm(f"block.{i}.attn.{part}_bn", dim)
        for part, size in (("fc1", (ratio * dim, dim)), ("fc2", (dim, ratio * dim))):
            found[f"block.{i}.mlp.{part}_{word}.weight"] = [*size, *(ones * (2 if flavour == "imagenet" else 1))]
            found[f"block.{i}.mlp.{part}_{word}.bias"] = [size[0]]
            found |= norm(f"block.{i}.mlp.{part}_bn", size[0])
    if flavour == "dvs":
        found |= {"pos_embed": [1, 4, dim], "norm.weight": [dim], "norm.bias": [dim]}
    return {**found, "head.weight": [classes, dim], "head.bias": [classes]}


def state_of(flavour: str, **sizes: int) -> dict[str, Tensor]:
    """A state dict with random entries, variances positive."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(3) if not shape else torch.rand(shape, generator=generator) + 0.1
        for name, shape in shapes(flavour, **sizes).items()
    }


def read(flavour: str = "cifar", state: Any = None, config: Any = None, **options: Any) -> Spikformer:
    """The model of a state dict; the warning about entries that are never read is expected."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*never reads", UserWarning)
        model = from_official("spikformer", CONFIG if config is None else config, state or state_of(flavour), **options)
    assert isinstance(model, Spikformer)
    return model


@pytest.mark.parametrize("flavour", ["cifar", "imagenet", "dvs"])
def test_every_flavour_is_read(flavour: str) -> None:
    state = state_of(flavour)
    model = read(flavour, state)
    assert model.config.linear == (flavour == "cifar")
    assert model.config.scale == (0.25 if flavour == "dvs" else 0.125)
    assert (model.config.embed_dim, model.config.depth, model.config.num_classes) == (D, L, 5)
    T = 4 if flavour == "imagenet" else 3  # the ImageNet code runs 4 steps whatever it is told
    assert model.config.T == T
    assert model.stride == (4 if flavour == "cifar" else 16)
    own = model.state_dict()
    assert torch.equal(own["stem.stages.0.synapse.weight"], state["patch_embed.proj_conv.weight"])
    assert torch.equal(own["stem.rpe.fire.running_var"], state["patch_embed.rpe_bn.running_var"])
    word = "linear" if flavour == "cifar" else "conv"
    assert torch.equal(own["blocks.1.mlp.fc1.synapse.weight"], state[f"block.1.mlp.fc1_{word}.weight"].reshape(32, 16))
    read_qkv = torch.cat([state[f"block.0.attn.{part}_{word}.weight"].reshape(16, 16) for part in "qkv"])
    fused = {name: value for name, value in own.items() if "blocks.0.attn" in name and value.shape == read_qkv.shape}
    assert any(torch.equal(value, read_qkv) for value in fused.values())
    assert torch.equal(own["head.weight"], state["head.weight"])


def test_entries_that_no_forward_reads_are_counted_once() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from_official("spikformer", CONFIG, state_of("dvs"))
    (warning,) = caught
    assert "11 entries that the official spikformer code never reads were left out, such as" in str(warning.message)
    assert "legacy_keys=True keeps them" in str(warning.message)
    assert warning.filename == __file__


def test_legacy_keys_keep_them() -> None:
    state = state_of("dvs")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = from_official("spikformer", CONFIG, state, legacy_keys=True)
    own = model.state_dict()
    never_read = [key for key in state if "norm" in key or key == "pos_embed"]
    assert len(never_read) == 11
    for key in never_read:
        assert torch.equal(own[key.replace("block.", "blocks.")], state[key])
    counters = 2 * L  # the normalisations of q, k and v count their batches one by one, ours together
    assert sum(value.numel() for value in own.values()) == sum(value.numel() for value in state.values()) - counters
    x = torch.rand(3, 2, 2, 32, 32)
    assert torch.equal(model.eval()(x), read("dvs", state).eval()(x))


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module", "all"])
def test_wrapped_state_dicts(wrap: str) -> None:
    state: dict[str, Any] = state_of("cifar")
    expected = read("cifar", state).state_dict()
    if wrap in ("module", "all"):
        state = {f"module.{key}": value for key, value in state.items()}
    if wrap != "module":
        state = {"state_dict" if wrap == "all" else wrap: state, "epoch": 3}
    found = read("cifar", state).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_what_is_no_state_dict_is_said() -> None:
    with pytest.raises(ValueError, match=r"holds 'epoch', a int; expected tensors by name"):
        unwrap({"epoch": 3})
    with pytest.raises(ValueError, match=r"state dict is a list; expected tensors by name, or a checkpoint"):
        from_official("spikformer", CONFIG, [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"holds 1, a Tensor; expected tensors by name"):
        from_official("spikformer", CONFIG, {1: torch.zeros(1)})  # type: ignore[dict-item]


def test_a_file_of_the_training_script_is_read(tmp_path: Path) -> None:
    """As timm writes it: the script's arguments beside the weights; the context is the one that the pages show."""
    torch.save({"state_dict": state_of("cifar"), "args": argparse.Namespace(lr=1e-3), "epoch": 3}, tmp_path / "a.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(tmp_path / "a.pth", map_location="cpu", weights_only=True)
    assert torch.equal(read("cifar", checkpoint).state_dict()["head.bias"], state_of("cifar")["head.bias"])


@pytest.mark.parametrize("family", ["qkformer", "sdt", "sdt_v3", "spikformer"])
def test_unknown_arguments_give_the_nearest(family: str) -> None:
    with pytest.raises(ValueError, match=rf"The {family} configuration has 'num_head', .*\(nearest: num_heads\)"):
        from_official(family, {"num_head": 8}, {})
    with pytest.raises(ValueError, match=rf"The {family} configuration is a list; expected the keyword arguments"):
        from_official(family, [8], {})  # type: ignore[arg-type]


def test_arguments_that_change_nothing_are_taken() -> None:
    ignored = {"img_size_h": 32, "patch_size": 4, "sr_ratios": 1, "qkv_bias": False, "drop_path_rate": 0.2}
    ignored |= {"norm_layer": torch.nn.LayerNorm, "pretrained_cfg": None}
    assert read("cifar", config={**CONFIG, **ignored}).config == read("cifar").config


@pytest.mark.parametrize(
    ("family", "entries", "lacking"),
    [
        ("spikformer", (), "num_heads"),
        ("qkformer", ("patch_embed1.proj2_conv.weight",), "num_heads"),
        ("sdt", (), "dvs_mode"),
        ("sdt", (), "num_heads"),
        ("sdt_v3", (), "num_heads"),
    ],
)
def test_arguments_that_no_shape_shows_are_demanded(family: str, entries: tuple[str, ...], lacking: str) -> None:
    config = {
        "num_heads": 8,
        "num_classes": 10,
        **({"pooling_stat": "0011", "dvs_mode": False} if family == "sdt" else {}),
    }
    del config[lacking]
    with pytest.raises(ValueError, match=rf"The {family} configuration has no {lacking}, which no shape"):
        from_official(family, config, {key: torch.zeros(1) for key in entries})


def test_arguments_of_no_model_name_the_variant_that_fits() -> None:
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes("cifar", 2, 384, 100, ratio=4).items()}
    config = {"embed_dims": 384, "num_heads": 7, "depths": 2}
    with pytest.raises(ValueError, match=r"num_heads=7; expected .* The state dict fits spikformer_cifar_2_384\.$"):
        read("cifar", state, config)


def test_weights_of_maps_and_1x1_convolutions_are_exchanged_by_shape() -> None:
    flat = state_of("cifar")
    deep = {key: value[..., None, None] if key.endswith("linear.weight") else value for key, value in flat.items()}
    assert deep["block.0.mlp.fc1_linear.weight"].ndim == 4
    expected = read("cifar", flat).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in read("cifar", deep).state_dict().items())
    wide = {**flat, "block.0.mlp.fc1_linear.weight": flat["block.0.mlp.fc1_linear.weight"][..., None].repeat(1, 1, 3)}
    with pytest.raises(ValueError, match=r"fc1_linear.weight \[32, 16, 3\] \(the model has \[32, 16\]\)"):
        read("cifar", wide)


def test_an_unknown_family_gives_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"There is no family 'spikeformer' \(nearest: spikformer.*Known: "):
        from_official("spikeformer", {}, {})
    assert "spikformer" in list_families()
    with pytest.raises(ValueError, match="'spikformer' is already registered"):
        register_family("spikformer", Family(lambda *a: None, str, (), "*", ()))  # type: ignore[arg-type, return-value]


def test_missing_entries_are_listed() -> None:
    state = state_of("cifar")
    for key in ("head.bias", "patch_embed.rpe_bn.weight", "block.1.attn.k_bn.running_mean"):
        del state[key]
    with pytest.raises(ValueError, match="3 entries missing: ") as raised:
        read("cifar", state)
    message = str(raised.value)
    assert "entries too many" not in message
    assert "block.1.attn.k_bn.running_mean, head.bias, patch_embed.rpe_bn.weight." in message  # the official names


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (r"patch_embed\.proj_bn\..*", "patch_embed.proj_bn.weight"),  # the first has no number
        (r"patch_embed\.rpe_bn\..*", "patch_embed.rpe_bn.weight"),
        (r"block\.1\.attn\.[qkv].*", "block.1.attn.v_linear.bias"),
        (r"block\.1\..*", "block.1.mlp.fc2_linear.weight"),
        (r"block\..*attn.v.*", "block.0.attn.v_linear.weight"),
        (r"block\..*attn.*", "blocks.1.attn.qkv.synapse.weight (k part)"),  # nothing there to make the name from
    ],
)
def test_missing_modules_are_named(lost: str, named: str) -> None:
    state = {key: value for key, value in state_of("cifar").items() if not re.fullmatch(lost, key)}
    count = sum(bool(re.fullmatch(lost, key)) and "norm" not in key for key in shapes("cifar"))
    with pytest.raises(ValueError, match=rf"{count} entries missing: .*{re.escape(named)}[,.]") as raised:
        read("cifar", state)
    assert ("part)" in named) == ("part)" in str(raised.value))


def test_entries_too_many_are_listed() -> None:
    state = {**state_of("cifar"), "block.0.attn.new.weight": torch.zeros(1), "neck.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"2 entries too many: block.0.attn.new.weight, neck.bias\.") as raised:
        read("cifar", state)
    assert "entries missing" not in str(raised.value)
    assert "fits none of the registered variants (spikformer_" in str(raised.value)


def test_a_checkpoint_of_another_variant_names_it() -> None:
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in shapes("cifar", 2, 384, 100, ratio=4).items()}
    config = {"embed_dims": 256, "num_heads": 8, "depths": 2, "num_classes": 100}
    with pytest.raises(ValueError, match=r"\d+ other shapes: .*It fits spikformer_cifar_2_384\.$"):
        read("cifar", state, config)


def test_options_replace_fields() -> None:
    model = read("cifar", T=8, order="q_kv")
    assert (model.config.T, model.config.order) == (8, "q_kv")
    assert read("imagenet", T=2).config.T == 2
    with pytest.raises(ValueError, match="no field 'ordr'"):
        read("cifar", ordr="q_kv")


def test_names_follow_the_convention_of_the_papers() -> None:
    own = {"x.norm.weight", "y.fire.weight", "z1.synapse.weight"}
    cases = {
        "x_bn.weight": "x.norm.weight",
        "y_bn.weight": "y.fire.weight",
        "z_conv1.weight": "z1.synapse.weight",
        "y_linear.weight": "y.synapse.weight",
        "block.3.mlp.fc1_conv.bias": "blocks.3.mlp.fc1.synapse.bias",
        "patch_embed.proj_bn2.bias": "stem.stages.2.fire.bias",
    }
    assert {key: translate("spikformer", key, own) for key in cases} == cases


@pytest.mark.parametrize("name", ["ssa_linear_TBNC_eval", "ssa_conv_TBCN_dvs_eval", "ssa_conv_TBCHW_imagenet_eval"])
def test_a_layer_of_the_official_code_is_read(name: str) -> None:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as stored:  # type: ignore[no-untyped-call]
        x, y = (stored.get_tensor(key).double() for key in ("in.x", "out.y"))
        prefix = "state."
        state = {key.removeprefix(prefix): stored.get_tensor(key) for key in stored.keys() if prefix in key}  # noqa: SIM118
        config = json.loads(stored.metadata()["config"])
    layer = SSA(
        config["dim"],
        config["num_heads"],
        scale=config["scale"],
        bias="q_linear.bias" in state,
        layout=config["layout"].strip("[]").replace(",", ""),
    )
    load_official(layer, state, "spikformer")
    torch.testing.assert_close(layer.double().eval()(x), y, rtol=0, atol=1e-10)
