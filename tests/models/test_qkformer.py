"""QKFormer: sizes of all variants, maps of any shape, memory, the leak across the batch, and official checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.energy import count
from spikeloom.models import QKFormer, QKFormerConfig, create_model, describe, from_official, list_models, model_config
from spikeloom.neurons import Stream
from spikeloom.spiking_attention import SSA, QKChannelAttention, QKTokenAttention
from spikeloom.synapses import BatchNorm2d, NormNeuron

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models" / "qkformer.md").read_text(encoding="utf-8")
PARAMETERS = {
    "qkformer_10_384": 16_473_688,
    "qkformer_10_512": 29_079_336,
    "qkformer_10_768": 64_962_760,
    "qkformer_cifar": 6_706_234,
    "qkformer_cifar10dvs": 1_504_138,
    "qkformer_gesture": 1_999_371,
}
TINY: dict[str, dict[str, Any]] = {
    "cifar": {"embed_dim": 32, "num_heads": 2, "T": 3, "input_size": (8, 8)},
    "imagenet": {"embed_dim": 32, "num_heads": 2, "T": 3, "depths": (1, 1, 1), "input_size": (32, 32)},
    "dvs": {"embed_dim": 32, "num_heads": 2, "T": 3, "depths": (1, 1), "in_channels": 2, "input_size": (32, 32)},
}


def tiny(stem: Any, **options: Any) -> QKFormer:
    """A small model in evaluation; its normalisations have the statistics of a batch and let it fire to the end."""
    torch.manual_seed(0)
    model = QKFormer(QKFormerConfig(stem=stem, **{**TINY[stem], **options}))
    for part in model.modules():
        if isinstance(part, (NormNeuron, BatchNorm2d)):
            part.momentum = 1.0
            torch.nn.init.constant_(part.weight, 2.0)
            torch.nn.init.uniform_(part.bias, 0.0, 1.0)
    with torch.no_grad():
        model(frames(model, batch=8))
    return model.eval()


def frames(model: QKFormer, steps: int = 3, batch: int = 2, seed: int = 0, wider: int = 1) -> Tensor:
    """Frames `[T, B, C, H, W]`; `wider` makes W a multiple of H."""
    height, width = model.config.input_size
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, batch, model.config.in_channels, height, wider * width, generator=generator)


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_counts_are_those_of_the_official_code(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_variants_and_what_was_published() -> None:
    assert list_models("qkformer*") == sorted(PARAMETERS)
    with torch.device("meta"):
        model = create_model("qkformer_cifar", num_classes=100)
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_740_884
    found = {name: [(p.dataset, p.accuracy) for p in describe(name).published] for name in PARAMETERS}
    assert found["qkformer_cifar"] == [("CIFAR-10", 96.18), ("CIFAR-100", 81.15)]
    assert [accuracy for _, accuracy in found["qkformer_10_768"]] == [84.22, 85.25, 85.65]
    assert all("proj_lif='batch_leak'" in p.note for name in PARAMETERS for p in describe(name).published)


@pytest.mark.parametrize("stem", sorted(TINY))
def test_maps_need_not_be_square(stem: str) -> None:
    model = tiny(stem)
    x = frames(model, wider=3)
    logits = model(x)
    assert logits.shape == (3, 2, 10)
    assert torch.unique(logits, dim=1).shape[1] == 2
    mirrored = model(x.flip(-1))
    assert not torch.equal(mirrored, logits)


@pytest.mark.parametrize(("stem", "tokens"), [("cifar", (64, 16, 4)), ("imagenet", (64, 16, 4)), ("dvs", (16, 4))])
def test_tokens_and_values_of_every_stage(stem: str, tokens: tuple[int, ...]) -> None:
    model = tiny(stem)
    seen: list[Tensor] = []
    for blocks in model.stages:
        blocks.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(frames(model))
    assert [x.shape[2] for x in seen] == list(tokens)
    assert [x.shape[3] for x in seen] == list(model.config.widths)
    assert all(x.unique().tolist() == [0.0, 1.0, 2.0] for x in seen)


@pytest.mark.parametrize("stem", sorted(TINY))
def test_trains_and_is_built_again_from_its_configuration(stem: str) -> None:
    model = tiny(stem).train()
    model(frames(model)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    again = create_model("qkformer_cifar", **model_config(model)).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(frames(model)), model.eval()(frames(model)))


@pytest.mark.parametrize("stem", sorted(TINY))
def test_samples_do_not_influence_each_other(stem: str) -> None:
    model = tiny(stem).double()
    x = frames(model, batch=5).double()
    order = torch.tensor([3, 0, 4, 1, 2])
    logits = model(x)
    # float64: a convolution of another batch size may add in another order
    torch.testing.assert_close(model(x[:, order]), logits[:, order], rtol=1e-10, atol=1e-10)
    split = torch.cat([model(part) for part in x.split([1, 3, 1], 1)], 1)
    torch.testing.assert_close(split, logits, rtol=1e-10, atol=1e-10)


def test_the_leak_mixes_samples_and_is_none_in_a_batch_of_one() -> None:
    clean, leaky = tiny("cifar").double(), tiny("cifar", proj_lif="batch_leak").double()
    leaky.load_state_dict(clean.state_dict())
    x = frames(clean, batch=4).double()
    assert (leaky(x) - clean(x)).abs().max() > 1e-3
    torch.testing.assert_close(leaky(x)[0, 0], clean(x)[0, 0], rtol=1e-10, atol=1e-10)  # nothing came before it
    order = torch.tensor([2, 3, 1, 0])
    assert (leaky(x[:, order]) - leaky(x)[:, order]).abs().max() > 1e-3
    assert torch.equal(leaky(x[:, :1]), clean(x[:, :1]))


@pytest.mark.parametrize("proj_lif", ["time", "batch_leak"])
def test_a_stream_of_chunks_is_one_call(proj_lif: str) -> None:
    model = tiny("dvs", T=None, proj_lif=proj_lif).double()
    x = frames(model, steps=7).double()
    stream = Stream(model)
    chunks = torch.cat([stream(part) for part in x.split([3, 1, 1, 2])])
    torch.testing.assert_close(chunks, model(x), rtol=1e-10, atol=1e-10)


def test_mixers_of_the_stages() -> None:
    model = tiny("cifar", mixers=("channel", "token", "ssa"))
    assert [type(blocks[0].attn) for blocks in model.stages] == [QKChannelAttention, QKTokenAttention, SSA]
    assert model(frames(model)).isfinite().all()
    standard = tiny("dvs")
    assert [type(blocks[0].attn) for blocks in standard.stages] == [QKTokenAttention, SSA]


def test_its_energy_is_counted() -> None:
    model = tiny("imagenet", mixers=("token", "channel", "ssa"))
    with torch.no_grad(), count(model, strict=True) as run:
        model(frames(model))
    kinds = {layer.name: layer.kind for layer in run.counts().layers}
    assert kinds["embeds.0.main.0.synapse"] == "float"
    assert kinds["stages.0.0.attn.q.synapse"] == "integer"
    assert kinds["stages.0.0.attn.proj.synapse"] == "binary"
    assert sum(name.startswith("stages.2.0.attn.matmul") for name in kinds) == 2


def test_compiles_without_graph_break() -> None:
    model = tiny("dvs")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(frames(model)), model(frames(model)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": (1, 3)}, r"depths=\(1, 3\).*'cifar' is of 3 stages, so expected 3 depths"),
        ({"mixers": ("token", "ssa")}, "as many mixers"),
        ({"embed_dim": 36}, "expected a multiple of 8"),
        ({"stem": "dvs", "depths": (1, 1), "embed_dim": 24}, "expected a multiple of 16"),
        ({"embed_dim": 24, "num_heads": 4}, "got dim=6 and num_heads=4"),
        ({"mixers": ("token", "sum", "ssa")}, "one of 'token', 'channel', 'ssa'"),
        ({"depths": (1, 0, 1)}, "must be >= 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
        ({"scale": -0.125}, "QKFormerConfig got scale=-0.125; expected a finite number > 0"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("qkformer_cifar", **options)


def test_unknown_parts_are_refused_without_the_registry() -> None:
    with pytest.raises(ValueError, match="mixers of 'token', 'channel', 'ssa'"):
        QKFormerConfig(mixers=("token", "sum", "ssa"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a stem of 'cifar', 'imagenet', 'dvs'"):
        QKFormerConfig(stem="events")  # type: ignore[arg-type]


def test_wrong_frames_are_refused() -> None:
    model = tiny("imagenet")
    with pytest.raises(ValueError, match="both sides must be multiples of 16"):
        model(torch.zeros(2, 3, 40, 32))
    with pytest.raises(ValueError, match="was built for T=3"):
        model(torch.zeros(4, 2, 3, 32, 32))


def norm(name: str, width: int) -> dict[str, list[int]]:
    """Entries of a batch normalisation."""
    return {f"{name}.num_batches_tracked": []} | {
        f"{name}.{key}": [width] for key in ("weight", "bias", "running_mean", "running_var")
    }


def embed(flavour: str, stage: int, channels: int, width: int) -> dict[str, list[int]]:
    """Entries of the official patch embedding of a stage, counted from 1."""
    if stage > 1:
        convs = {"proj" if flavour == "dvs" else "proj3": channels, "proj4": width}
        widths, source = [width, width], channels
    else:
        parts = {"cifar": (2, 1), "imagenet": (2, 1, 1), "dvs": (8, 4, 2, 1)}[flavour]
        widths = [width // part for part in parts]
        convs = dict(zip(("proj", "proj1", "proj2", "proj3"), [channels, *widths[:-1]], strict=False))
        source = widths[1] if flavour == "dvs" else widths[0]
    state: dict[str, list[int]] = {}
    for (name, before), after in zip(convs.items(), widths, strict=True):
        state |= {f"{name}_conv.weight": [after, before, 3, 3]} | norm(f"{name}_bn", after)
    state |= {"proj_res_conv.weight": [width, source, 1, 1]} | norm("proj_res_bn", width)
    return {f"patch_embed{stage}.{key}": shape for key, shape in state.items()}


def block(flavour: str, last: bool, width: int, ratio: int) -> dict[str, list[int]]:
    """Entries of an official block."""
    attn = ("attn" if flavour == "imagenet" else "ssa") if last else "tssa"
    state: dict[str, list[int]] = {f"{attn}.proj_conv.bias": [width]}
    for name in (*("qkv" if last else "qk"), "proj"):
        state |= {f"{attn}.{name}_conv.weight": [width, width, 1]} | norm(f"{attn}.{name}_bn", width)
    for number, (before, after) in enumerate(((width, ratio * width), (ratio * width, width)), 1):
        name = f"mlp.{'fc' if flavour == 'imagenet' else 'mlp'}{number}"
        state |= {f"{name}_conv.weight": [after, before, 1, 1], f"{name}_conv.bias": [after]}
        state |= norm(f"{name}_bn", after)
    return state


def official(flavour: str, dim: int, depths: tuple[int, ...], ratio: int = 4, classes: int = 10) -> dict[str, Tensor]:
    """A state dict as the authors' code writes it, on the meta device."""
    shapes: dict[str, list[int]] = {"head.weight": [classes, dim], "head.bias": [classes]}
    channels = 2 if flavour == "dvs" else 3
    for stage, depth in enumerate(depths, 1):
        width = dim >> (len(depths) - stage)
        shapes |= embed(flavour, stage, channels, width)
        for i in range(depth):
            entries = block(flavour, stage == len(depths), width, ratio)
            shapes |= {f"stage{stage}.{i}.{key}": shape for key, shape in entries.items()}
        channels = width
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def random(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbers for the entries."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(1) if name.endswith("tracked") else torch.rand(entry.shape, generator=generator)
        for name, entry in state.items()
    }


@pytest.mark.parametrize(
    ("flavour", "dim", "depths", "config", "heads"),
    [
        ("cifar", 32, (1, 1, 1), {"embed_dims": 32, "num_heads": 12, "depths": 3, "T": 2}, 8),
        ("imagenet", 32, (1, 2, 1), {"embed_dims": 32, "num_heads": 4, "depths": 4, "T": 2, "num_classes": 10}, 4),
        ("dvs", 64, (1, 1), {"embed_dims": 64, "num_heads": 1, "mlp_ratios": 4, "depths": 9}, 16),
    ],
)
def test_official_checkpoints(
    flavour: str, dim: int, depths: tuple[int, ...], config: dict[str, Any], heads: int
) -> None:
    state = random(official(flavour, dim, depths))
    model = from_official("qkformer", config, {"model": {f"module.{key}": value for key, value in state.items()}})
    assert isinstance(model, QKFormer)
    found = model.config
    assert (found.stem, found.depths, found.num_heads, found.T) == (flavour, depths, heads, config.get("T"))
    assert found.proj_lif == "batch_leak"
    main = model.embeds[1].get_submodule("main.1")
    assert torch.equal(main.synapse.weight, state["patch_embed2.proj4_conv.weight"])
    clean = from_official("qkformer", config, state, proj_lif="time", T=5)
    assert isinstance(clean, QKFormer)
    assert (clean.config.proj_lif, clean.config.T) == ("time", 5)
    assert all(torch.equal(value, clean.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("flavour", "dim", "depths", "ratio", "name"),
    [
        ("imagenet", 512, (1, 2, 7), 4, "qkformer_10_512"),
        ("cifar", 384, (1, 1, 2), 4, "qkformer_cifar"),
        ("dvs", 256, (1, 1), 1, "qkformer_cifar10dvs"),
    ],
)
def test_a_checkpoint_of_another_variant_names_the_one_that_it_fits(
    flavour: str, dim: int, depths: tuple[int, ...], ratio: int, name: str
) -> None:
    state = official(flavour, dim, depths, ratio)
    wrong = {"embed_dims": dim // 2, "num_heads": 8, "num_classes": 10, "mlp_ratios": ratio}
    with torch.device("meta"), pytest.raises(ValueError, match=rf"other shapes: .*It fits {name}\.$"):
        from_official("qkformer", wrong, state)


def test_missing_and_extra_entries_are_listed() -> None:
    state = official("cifar", 32, (1, 1, 1))
    del state["stage1.0.tssa.proj_bn.weight"], state["patch_embed3.proj3_conv.weight"]
    state |= {"stage1.0.norm1.weight": torch.zeros(8), "patch_embed2.proj7_conv.weight": torch.zeros(1)}
    with torch.device("meta"), pytest.raises(ValueError, match="does not fit the qkformer model") as error:
        from_official("qkformer", {"embed_dims": 32, "depths": 3}, state)
    assert "2 entries too many: patch_embed2.proj7_conv.weight, stage1.0.norm1.weight." in str(error.value)
    assert "2 entries missing: patch_embed3.proj3_conv.weight, stage1.0.tssa.proj_bn.weight." in str(error.value)


@pytest.mark.parametrize("depths", [2, "4", None])
def test_official_depths_are_checked(depths: Any) -> None:
    state = official("cifar", 32, (1, 1, 1))
    with torch.device("meta"), pytest.raises(ValueError, match=r"depths=.*; expected .* 1 and 1 .* at least 3"):
        from_official("qkformer", {"embed_dims": 32, "depths": depths}, state)


def test_the_page_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE, re.DOTALL | re.M)
    assert blocks
    for code, printed in blocks:
        exec(code, names)
        assert capsys.readouterr().out == printed


def test_the_page_lists_every_variant() -> None:
    for name, parameters in PARAMETERS.items():
        (row,) = re.findall(rf"^\| `{name}` \|(.*)\|$", PAGE, re.M)
        assert f"{parameters:,}" in row
        for published in describe(name).published:
            assert f"{published.accuracy:.2f}".removesuffix("0") in row
