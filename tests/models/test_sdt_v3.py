"""Spike-driven Transformer V3: sizes of all variants, spikes, memory, energy, official checkpoints, its page."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spikeloom.energy import count
from spikeloom.models import SDTV3, SDTV3Config, create_model, describe, from_official, list_models, model_config
from spikeloom.neurons import ILIF
from spikeloom.synapses import NormNeuron

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "models" / "spike_driven_transformer_v3.md").read_text("utf-8")
PARAMETERS = {
    "sdt_v3_t": 2_702_048,
    "sdt_v3_s": 5_105_608,
    "sdt_v3_m": 10_023_112,
    "sdt_v3_l": 18_987_504,
}
DIMS = (8, 16, 24, 32)


def frames(batch: int = 3, seed: int = 0) -> Tensor:
    """Images `[B, 3, 32, 48]`."""
    return torch.randn(batch, 3, 32, 48, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny(**options: Any) -> SDTV3:
    """A small model in evaluation and float64, the statistics of one batch as its running ones, so that it fires."""
    torch.manual_seed(0)
    config = SDTV3Config(**{"embed_dims": DIMS, "num_heads": 4, "mlp_ratio": 1.0, "num_classes": 10, **options})
    model = SDTV3(config).double()
    norms = [part for part in model.modules() if isinstance(part, NormNeuron | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.constant_(norm.bias, 0.5)
    with torch.no_grad():
        model.train()(frames(8, seed=1).unsqueeze(0).expand(config.T or 1, -1, -1, -1, -1))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_counts_are_those_of_the_official_code(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert f"{PARAMETERS[name]:,}" in PAGE


def test_variants_and_what_was_published() -> None:
    assert list_models("sdt_v3*") == sorted(PARAMETERS)
    found = {name: [(p.dataset, p.accuracy) for p in describe(name).published] for name in sorted(PARAMETERS)}
    assert found == {
        "sdt_v3_l": [("ImageNet-1k", 79.8)],
        "sdt_v3_m": [("ImageNet-1k", 78.5)],
        "sdt_v3_s": [],
        "sdt_v3_t": [],
    }


def test_maps_of_every_stage_need_not_be_square() -> None:
    model = tiny()
    shapes: list[list[int]] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda m, given, out: shapes.append(list(out.shape)))
    logits = model(frames())
    assert logits.shape == (1, 3, 10)
    widths, parts = (4, 8, 16, 24, 32), (2, 4, 8, 16, 16)
    assert shapes == [[1, 3, width, 32 // p, 48 // p] for width, p in zip(widths, parts, strict=True)]
    assert not torch.equal(model(frames().flip(-1)), logits)
    assert [len(stage.blocks) for stage in model.stages] == [1, 1, 2, 6, 2]


def test_every_neuron_gives_quarters_and_the_last_one_whole_numbers() -> None:
    model = tiny()
    seen: dict[str, Tensor] = {}
    for name, part in model.named_modules():
        if isinstance(part, ILIF):
            part.register_forward_hook(lambda m, given, out, name=name: seen.update({name: out}))
        if isinstance(part, NormNeuron):
            part.register_forward_hook(lambda m, given, out, name=name: seen.update({name: out}))
    features = model.forward_features(frames())
    assert len(seen) == 105
    assert torch.equal(features, seen.pop("neuron"))
    assert set(features.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert features.unique().numel() > 1
    for name, spikes in seen.items():
        assert set(spikes.unique().tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}, name
        assert spikes.any(), name
    assert model.forward_head(features).shape == (1, 3, 10)


def test_trains_and_is_built_again_from_its_configuration() -> None:
    model = tiny(depths=(1, 1, 1, 1, 1)).train()
    model(frames()).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    again = create_model("sdt_v3_t", **model_config(model)).double().eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(frames()), model.eval()(frames()))


def test_samples_and_steps_do_not_influence_each_other() -> None:
    model = tiny(T=None)
    x = torch.stack([frames(5), frames(5, seed=2)])  # [T, B, C, H, W]
    logits = model(x)
    order = torch.tensor([3, 0, 4, 1, 2])
    # float64: a convolution of another batch size may add in another order
    torch.testing.assert_close(model(x[:, order]), logits[:, order], rtol=1e-10, atol=1e-10)
    split = torch.cat([model(part) for part in x.split([1, 3, 1], 1)], 1)
    torch.testing.assert_close(split, logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.cat([model(x[1:]), model(x[:1])]), logits.flip(0), rtol=1e-10, atol=1e-10)
    assert torch.unique(logits.flatten(0, 1), dim=0).shape[0] == 10


def test_orders_of_the_product_agree() -> None:
    left, right = (tiny(order=order, depths=(1, 1, 1, 2, 1)) for order in ("qk_v", "q_kv"))
    assert torch.equal(left(frames()), right(frames()))


def test_its_energy_is_counted_in_spikes() -> None:
    model = tiny(depths=(1, 1, 1, 1, 1))
    inputs: list[Tensor] = []
    conv = model.get_submodule("stages.1.down.synapse")
    with torch.no_grad():
        handle = conv.register_forward_hook(lambda m, given, out: inputs.append(given[0]))
        model(frames())
        handle.remove()
        with count(model, T=1, strict=True) as run:
            model(frames())
    counts = run.counts()
    assert not counts.uncounted
    layers = {layer.name: layer for layer in counts.layers}
    assert layers["stages.0.down.synapse"].kind == "float"
    down = layers["stages.1.down.synapse"]
    assert down.kind == "scaled_integer"
    ones = torch.ones_like(conv.weight)
    fan_out = nn.functional.conv_transpose2d(
        torch.ones(3, conv.out_channels, 8, 12).double(), ones, stride=2, padding=1, output_padding=1
    )
    assert int(down.sop_unit.sum()) == int((4 * inputs[0][0] * fan_out).sum())  # a value n / 4 costs n accumulates
    assert int(down.sop.sum()) == int(((inputs[0][0] != 0) * fan_out).sum())
    products = [layer for layer in counts.layers if "attn.matmul" in layer.name]
    assert len(products) == 4
    assert all(layer.sop_unit is None for layer in products)


def test_compiles_without_graph_break() -> None:
    model = tiny(depths=(1, 0, 0, 1, 0))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(frames()), model(frames()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dims": (9, 16, 24, 32)}, r"embed_dims is \(9, 16, 24, 32\).*the first one even"),
        ({"num_heads": 7}, "got dim=96 and num_heads=7"),
        ({"embed_dims": (8, 16, 24)}, "expected 4 values"),
        ({"depths": (1, 1, 2, 6)}, "expected 5 values"),
        ({"depths": (1, 1, 2, -1, 1)}, "depths"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0"),
        ({"mlp_ratio": 0.01}, "mlp_ratio is 0.01; .* a hidden channel: at least 1 / "),
        ({"mlp_ratio": float("nan")}, "mlp_ratio is nan"),
        ({"T": 0}, "T=0 must be >= 1"),
        ({"order": "vk"}, "order is 'vk'"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("sdt_v3_t", **options)


def test_wrong_frames_are_refused() -> None:
    model = SDTV3(SDTV3Config(embed_dims=DIMS, mlp_ratio=1.0))
    with pytest.raises(ValueError, match="both sides must be multiples of 16"):
        model(torch.zeros(2, 3, 40, 32))
    with pytest.raises(ValueError, match="was built for T=1"):
        model(torch.zeros(4, 2, 3, 32, 32))


def norm(name: str, width: int) -> dict[str, list[int]]:
    """Entries of a batch normalisation."""
    return {f"{name}.num_batches_tracked": []} | {
        f"{name}.{key}": [width] for key in ("weight", "bias", "running_mean", "running_var")
    }


def sep(name: str, width: int, kernel: int) -> dict[str, list[int]]:
    """Entries of a separable convolution."""
    shapes = {"pwconv1": [2 * width, width, 1, 1], "dwconv": [2 * width, 1, kernel, kernel]}
    shapes["pwconv2"] = [width, 2 * width, 1, 1]
    state: dict[str, list[int]] = {}
    for part, shape in shapes.items():
        state |= {f"{name}.{part}.0.weight": shape} | norm(f"{name}.{part}.1", shape[0])
    return state


def attention_block(name: str, width: int, ratio: int) -> dict[str, list[int]]:
    """Entries of an attention block."""
    state = sep(f"{name}.conv", width, 3)
    sizes = {"q": (width, width), "k": (width, width), "v": (width, 4 * width), "proj": (4 * width, width)}
    for part, (before, after) in sizes.items():
        state |= {f"{name}.attn.{part}_conv.0.weight": [after, before, 1, 1]}
        state |= norm(f"{name}.attn.{part}_conv.1", after)
    for number, (before, after) in enumerate(((width, ratio * width), (ratio * width, width)), 1):
        state |= {f"{name}.mlp.fc{number}_conv.weight": [after, before, 1], f"{name}.mlp.fc{number}_conv.bias": [after]}
        state |= norm(f"{name}.mlp.fc{number}_bn", after)
    return state


def official(dims: tuple[int, ...], ratio: int = 4, classes: int = 10) -> dict[str, Tensor]:
    """A state dict as the authors' code writes it, on the meta device."""
    shapes: dict[str, list[int]] = {"head.weight": [classes, dims[3]], "head.bias": [classes]}
    widths = (3, dims[0] // 2, *dims)
    for stage, (before, width) in zip(("1_1", "1_2", "2", "3", "4"), pairwise(widths), strict=True):
        kernel = 7 if stage == "1_1" else 3
        shapes |= {f"downsample{stage}.encode_conv.weight": [width, before, kernel, kernel]}
        shapes |= {f"downsample{stage}.encode_conv.bias": [width]} | norm(f"downsample{stage}.encode_bn", width)
    for name, width in (("1_1", widths[1]), ("1_2", widths[2]), ("2_1", widths[3]), ("2_2", widths[3])):
        shapes |= sep(f"ConvBlock{name}.0.Conv", width, 7)
        for part, (before, after) in enumerate(((width, ratio * width), (ratio * width, width)), 1):
            shapes |= {f"ConvBlock{name}.0.conv{part}.weight": [after, before, 3, 3]}
            shapes |= norm(f"ConvBlock{name}.0.bn{part}", after)
    for stage, width, depth in (("3", dims[2], 6), ("4", dims[3], 2)):
        for i in range(depth):
            shapes |= attention_block(f"block{stage}.{i}", width, ratio)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def arguments(dims: tuple[int, ...], **options: Any) -> dict[str, Any]:
    """Constructor arguments as the authors' code has them; it never reads some of them."""
    given = {"img_size_h": 64, "img_size_w": 64, "patch_size": 16, "depths": 8, "sr_ratios": 1, "num_classes": 10}
    return {**given, "embed_dim": list(dims), "num_heads": 4, "mlp_ratios": 1, "in_channels": 3, **options}


def test_official_checkpoints() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.tensor(1) if name.endswith("tracked") else torch.rand(entry.shape, generator=generator)
        for name, entry in official(DIMS, ratio=1).items()
    }
    wrapped = {"model": {f"module.{name}": value for name, value in state.items()}}
    model = from_official("sdt_v3", arguments(DIMS), wrapped)
    assert isinstance(model, SDTV3)
    assert (model.config.embed_dims, model.config.num_heads, model.config.T) == (DIMS, 4, 1)
    own = model.state_dict()
    places = {
        "ConvBlock2_2.0.Conv.dwconv.1.running_var": "stages.2.blocks.1.sep.dw.fire.running_var",
        "ConvBlock1_1.0.bn2.bias": "stages.0.blocks.0.conv2.norm.bias",
        "block4.1.conv.pwconv2.1.weight": "stages.4.blocks.1.sep.pw2.norm.weight",
        "block3.5.attn.v_conv.1.bias": "stages.3.blocks.5.attn.v.fire.bias",
        "block3.0.attn.proj_conv.1.bias": "stages.3.blocks.0.attn.proj.norm.bias",
        "downsample4.encode_conv.bias": "stages.4.down.synapse.bias",
        "head.weight": "head.weight",
    }
    for theirs, ours in places.items():
        assert torch.equal(own[ours], state[theirs]), theirs
    again = from_official("sdt_v3", arguments(DIMS), state, T=None, order="q_kv")
    assert isinstance(again, SDTV3)
    assert (again.config.T, again.config.order) == (None, "q_kv")


@pytest.mark.parametrize("name", ["sdt_v3_t", "sdt_v3_m"])
def test_a_checkpoint_of_another_variant_names_the_one_that_it_fits(name: str) -> None:
    dims = describe(name).config.embed_dims
    wrong = arguments((32, 64, 128, 192), num_heads=8, mlp_ratios=4)
    with torch.device("meta"), pytest.raises(ValueError, match=rf"other shapes: .*It fits {name}\.$"):
        from_official("sdt_v3", wrong, official(dims))


def test_missing_and_extra_entries_are_listed() -> None:
    state = official(DIMS, ratio=1)
    del state["block3.0.attn.q_conv.1.bias"], state["downsample2.encode_conv.bias"]
    state |= {"block3.6.attn.q_conv.0.weight": torch.zeros(24), "ConvBlock2_2.1.bn1.bias": torch.zeros(1)}
    with torch.device("meta"), pytest.raises(ValueError, match="does not fit the sdt_v3 model") as error:
        from_official("sdt_v3", arguments(DIMS), state)
    assert "2 entries too many: ConvBlock2_2.1.bn1.bias, block3.6.attn.q_conv.0.weight." in str(error.value)
    assert "2 entries missing: block3.0.attn.q_conv.1.bias, downsample2.encode_conv.bias." in str(error.value)


def test_the_page_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    for block, printed in blocks:
        torch.manual_seed(0)
        exec(block, names)
        assert capsys.readouterr().out == printed
