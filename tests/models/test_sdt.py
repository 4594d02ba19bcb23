"""The Spike-driven Transformer: sizes, streaming, the authors' checkpoints, energy, and its page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom import Stream
from spikeloom.energy import Totals, count
from spikeloom.models import create_model, describe, from_official, list_models, model_config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models" / "spike_driven_transformer.md"
TINY: dict[str, Any] = {"embed_dim": 32, "num_heads": 4}
DVS: dict[str, Any] = {**TINY, "in_channels": 2, "T": 3, "pools": (True,) * 4, "dvs": True}
OFFICIAL = {
    "embed_dims": 32,
    "num_heads": 4,
    "mlp_ratios": 4,
    "depths": 2,
    "in_channels": 3,
    "num_classes": 10,
    "T": 4,
    "pooling_stat": "0011",
    "dvs_mode": False,
    "TET": False,
}


def tiny(**options: Any) -> Any:
    """A small model whose neurons all fire now and then."""
    torch.manual_seed(1)
    model = create_model("sdt_cifar_2_512", **{**TINY, **options})
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=2.0 / parameter[0].numel() ** 0.5)
        elif name.endswith(("fire.bias", "norm.bias")):
            nn.init.normal_(parameter, mean=0.7, std=0.3)
    return model.eval()


def frames(T: int = 3, B: int = 2, H: int = 32, W: int = 32, C: int = 2) -> Tensor:
    """Event frames `[T, B, C, H, W]` of zeros and ones."""
    return (torch.rand(T, B, C, H, W, generator=torch.Generator().manual_seed(0)) < 0.3).float()


def official_name(key: str) -> str:
    """What the authors' code calls an entry of ours."""
    *path, part, leaf = key.split(".")
    if part in ("head", "talking_heads"):
        return key.replace("blocks.", "block.").replace("talking_heads", "attn.talking_heads")
    kind = "conv" if part == "synapse" else "bn"
    if path[0] == "blocks":
        return f"{'.'.join(['block', *path[1:]])}_{kind}.{leaf}"
    name, number = {"rpe": ("rpe", ""), "embed": ("proj", "3")}.get(path[1], ("proj", path[-1].replace("0", "")))
    return f"patch_embed.{name}_{kind}{number}.{leaf}"


def official(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model under the authors' names, with maps of tokens as 1 x 1 convolutions."""
    state = {official_name(key): value for key, value in model.state_dict().items()}
    pointwise = re.compile(r"block\..*_conv\.weight")
    return {key: value[..., None, None] if pointwise.fullmatch(key) else value for key, value in state.items()}


MEASURED = {
    "sdt_8_384": 16_816_536,
    "sdt_6_512": 23_373_736,
    "sdt_8_512": 29_689_896,
    "sdt_10_512": 36_006_056,
    "sdt_8_768": 66_339_144,
    "sdt_cifar_2_256": 2_567_082,
    "sdt_cifar_2_512": 10_233_546,
    "sdt_dvs_2_256": 2_566_794,
}


def parameters(name: str, **options: Any) -> tuple[int, Any]:
    with torch.device("meta"):
        model: Any = create_model(name, **options)
    return sum(p.numel() for p in model.parameters()), model.config


@pytest.mark.parametrize("name", MEASURED)
def test_parameters_are_those_of_the_authors_code(name: str) -> None:
    used, config = parameters(name)
    assert parameters(name, legacy_keys=True)[0] == MEASURED[name]
    assert used == MEASURED[name] - config.depth * config.num_heads**2


def test_parameters_with_other_classes() -> None:
    assert parameters("sdt_cifar_2_512", num_classes=100, legacy_keys=True)[0] == 10_279_716
    assert parameters("sdt_dvs_2_256", num_classes=11, legacy_keys=True)[0] == 2_567_051


def test_all_variants_are_known() -> None:
    assert set(list_models("sdt_[!v]*")) == set(MEASURED)
    for name in MEASURED:
        for result in describe(name).published:
            assert ("not re-read" in result.note) == (result.dataset != "ImageNet-1k"), name


@pytest.mark.parametrize(
    ("options", "x", "T"),
    [
        (TINY, torch.rand(2, 3, 8, 24), 4),
        (DVS, frames(H=16, W=48), 3),
        ({**DVS, "dvs": False, "pools": (False, True, True, True)}, frames(H=16, W=8), 3),
        ({**TINY, "mlp_ratio": 1.0, "depth": 1, "pools": (False,) * 4}, torch.rand(2, 3, 4, 6), 4),
    ],
    ids=["images", "dvs", "gesture-stem", "ratio-1-no-pools"],
)
def test_sides_need_not_be_equal(options: dict[str, Any], x: Tensor, T: int) -> None:
    model = tiny(**options)
    assert model(x).shape == (T, 2, 10)
    model.train()(x).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key


def test_turned_images_give_turned_maps() -> None:
    """Without the quirk of the event-camera mode a swap of the sides swaps the maps, if all kernels are swapped too."""
    model, turned = tiny(), tiny()
    for parameter in turned.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.transpose(2, 3).contiguous()
    x = torch.rand(2, 3, 8, 24)
    torch.testing.assert_close(model.double()(x.double()), turned.double()(x.double().transpose(2, 3)))


def test_the_classifier_reads_spikes() -> None:
    model = tiny()
    features = model.forward_features(torch.rand(2, 3, 16, 16))
    assert features.shape == (4, 2, 32)
    assert set(features.unique().tolist()) == {0.0, 1.0}
    headless = create_model("sdt_cifar_2_512", num_classes=0, **TINY)
    assert headless(torch.rand(2, 3, 16, 16)).shape == (4, 2, 32)


def test_the_configuration_builds_it_again() -> None:
    model = tiny(**DVS, legacy_keys=True)
    again = create_model("sdt_dvs_2_256", **model_config(model))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(frames()), model(frames()))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model: Any = create_model("sdt_cifar_2_256")
    for part in (model.stem.rpe, model.blocks[0].attn.q, model.blocks[1].mlp.fc2):
        assert abs(part.synapse.weight.std().item() - 0.02) < 1e-3
    assert not model.blocks[0].mlp.fc1.synapse.bias.any()
    assert model.head.weight.abs().max().item() > 0.06  # uniform within 1 / sqrt(256)
    assert model.head.weight.abs().max().item() <= 1 / 16
    assert model.head.bias.any()


@pytest.mark.parametrize("options", [{**TINY, "T": None}, {**DVS, "T": None}], ids=["plain", "dvs"])
def test_a_stream_of_uneven_chunks_is_one_call(options: dict[str, Any]) -> None:
    model = tiny(**options).double()
    x = torch.rand(7, 2, model.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        stream = Stream(model)
        chunks = torch.cat([stream(chunk) for chunk in x.split([1, 4, 2])])
        whole = model(x)
    assert whole.std() > 0.1
    torch.testing.assert_close(chunks, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dvs", [False, True], ids=["plain", "dvs"])
def test_only_the_first_convolution_of_an_image_costs_macs(dvs: bool) -> None:
    """Every other map reads spikes: nothing multiplies the real-valued stream."""
    model = tiny(dvs=dvs)
    with torch.no_grad(), count(model, strict=True, T=4) as run:
        model(torch.rand(2, 3, 16, 16))
    counts = run.counts()
    kinds = {layer.name: layer.kind for layer in counts.layers}
    first = "stem.stages.0.synapse"
    assert kinds.pop(first) == "float"
    assert set(kinds.values()) == {"binary"}
    assert len(kinds) == 4 + 2 * 6 + 1
    assert all(layer.is_param for layer in counts.layers)  # no product of activations
    totals = Totals(counts)
    sop = {layer.name: int(layer.sop.sum()) for layer in counts.layers}
    assert totals.mac_effective.sum() == sop.pop(first)
    assert totals.ac.sum() == sum(sop.values())
    adds = {entry.name: entry.out_kind for entry in counts.aux if getattr(entry, "op", "") == "add"}
    assert adds == dict.fromkeys(
        ["stem.rpe.fire.add", *(f"blocks.{i}.{part}.add" for i, part in (
            (0, "attn.proj.fire"), (0, "mlp.fc2.fire"), (1, "attn.proj.fire"), (1, "mlp.fc2"),
        ))], "float",
    )  # fmt: skip
    assert all(getattr(entry, "folds_into", "none") for entry in counts.aux)  # no normalisation is left over


def test_event_frames_cost_no_macs() -> None:
    model = tiny(**DVS)
    with torch.no_grad(), count(model, strict=True) as run:
        model(frames())
    counts = run.counts()
    assert {layer.kind for layer in counts.layers} == {"binary"}
    assert Totals(counts).mac_effective.sum() == 0


def test_compiles_without_graph_break() -> None:
    model = tiny(**DVS, depth=1)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(frames()), model(frames()))


def test_the_authors_checkpoint_loads() -> None:
    model = tiny(legacy_keys=True)
    state = official(model)
    assert {"patch_embed.proj_conv.weight", "patch_embed.proj_bn3.bias", "block.1.mlp.fc2_bn.weight"} <= state.keys()
    assert state["block.0.attn.talking_heads.weight"].shape == (4, 4, 1)
    assert state["block.0.attn.q_conv.weight"].shape == (32, 32, 1, 1)
    x = torch.rand(2, 3, 16, 16)
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
    kept = from_official("sdt", OFFICIAL, wrapped, legacy_keys=True).eval()
    assert torch.equal(kept(x), model(x))
    with pytest.warns(UserWarning, match="2 entries that the official sdt code never reads"):
        used = from_official("sdt", OFFICIAL, state).eval()
    assert torch.equal(used(x), model(x))


def test_checkpoints_that_do_not_fit_are_refused() -> None:
    state = official(tiny())
    extra = {**state, "block.0.attn.attn_bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"1 entries too many: block\.0\.attn\.attn_bias\."):
        from_official("sdt", OFFICIAL, extra)
    missing = {key: value for key, value in state.items() if key != "block.1.mlp.fc1_bn.bias"}
    with pytest.raises(ValueError, match=r"1 entries missing: block\.1\.mlp\.fc1_bn\.bias"):
        from_official("sdt", OFFICIAL, missing)
    with torch.device("meta"):
        other = official(create_model("sdt_cifar_2_256"))
    with pytest.raises(ValueError, match=r"other shapes: .* It fits sdt_cifar_2_256\."):
        from_official("sdt", {**OFFICIAL, "embed_dims": 512, "num_heads": 8}, other)


def test_configurations_that_say_too_little_are_refused() -> None:
    state = official(tiny(legacy_keys=True))
    without = {key: value for key, value in OFFICIAL.items() if key != "pooling_stat"}
    with pytest.raises(ValueError, match="pooling_stat=None; expected four digits"):
        from_official("sdt", without, state)
    with pytest.raises(ValueError, match="num_heads=8; the state dict is of 4 heads"):
        from_official("sdt", {**OFFICIAL, "num_heads": 8}, state)
    with pytest.raises(ValueError, match="spike_mode='plif'; only 'lif'"):
        from_official("sdt", {**OFFICIAL, "spike_mode": "plif"}, state)
    without = {key: value for key, value in OFFICIAL.items() if key not in ("T", "num_heads")}
    model: Any = from_official("sdt", without, state, legacy_keys=True)
    assert model.config.T == 4  # of an image
    assert model.config.num_heads == 4  # shown by talking_heads
    events = {**without, "num_heads": 4, "in_channels": 2, "pooling_stat": "1111", "dvs_mode": True}
    model = from_official("sdt", events, official(tiny(**{**DVS, "T": None})))
    assert (model.config.T, model.config.dvs, model.config.in_channels) == (None, True, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 36, "num_heads": 4}, "embed_dim is 36; expected a multiple of 8"),
        ({"num_heads": 7}, "SDTConfig got dim=512 and num_heads=7"),
        ({"depth": 0}, "depth=0, T=4 must be >= 1"),
        ({"T": 0}, "depth=2, T=0 must be >= 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0; expected a finite number > 0"),
        ({"mlp_ratio": 0.001}, "mlp_ratio is 0.001; .* at least 1 / 512"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio is nan; expected a finite number"),
        ({"pools": (True, True)}, "SDTConfig.pools is .*; expected 4 values"),
    ],
    ids=["embed_dim", "num_heads", "depth", "T", "mlp_ratio", "mlp_ratio_small", "mlp_ratio_nan", "pools"],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("sdt_cifar_2_512", **options)


def test_wrong_frames_are_refused() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="both sides must be multiples of 4"):
        model(torch.zeros(2, 3, 18, 16))
    with pytest.raises(ValueError, match=r"was built for T=4\. Time is the first axis here"):
        model(torch.zeros(2, 4, 3, 16, 16))


def test_the_page_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The page loads a checkpoint of the authors' code: here one of the same entries."""
    monkeypatch.chdir(tmp_path)
    stored = tiny(embed_dim=256, num_heads=8, legacy_keys=True)
    torch.save({"state_dict": official(stored)}, "checkpoint.pth.tar")
    page = PAGE.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    code = "".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.M))
    with pytest.warns(UserWarning, match="2 entries that the official sdt code never reads"):
        exec(code, names)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(names["model"].eval()(x), stored(x))


def test_the_table_of_the_page_is_that_of_the_package() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `sdt_")}
    assert rows.keys() == MEASURED.keys()
    for name, row in rows.items():
        used, config = parameters(name)
        assert f"{used:,}" in row, name
        for words in (f"| {config.T} |", f"{config.input_size[0]} x {config.input_size[1]}"):
            assert words in row, (name, words)
        for result in describe(name).published:
            assert f"{result.dataset} {result.accuracy:.4g}" in row, name
