"""Spikformer V2, our reconstruction: published sizes, joins, the blocks of Spikformer, streaming, energy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spikeloom.energy import count
from spikeloom.models import SpikformerV2, SpikformerV2Config, create_model, describe, list_models, model_config
from spikeloom.models.spikformer import Spikformer, SpikformerConfig
from spikeloom.models.spikformer_v2 import Stage
from spikeloom.neurons import Stream

VARIANTS = {
    "spikformer_v2_8_384": (29_111_272, 4, 78.80),
    "spikformer_v2_8_512": (51_545_064, 4, 80.38),
    "spikformer_v2_12_512": (64_177_128, 1, None),
    "spikformer_v2_16_768": (172_278_760, 1, 81.10),
}


def frames(T: int = 3, B: int = 2, H: int = 16, W: int = 32) -> Tensor:
    return torch.rand(T, B, 2, H, W, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def tiny(**options: Any) -> SpikformerV2:
    """Two blocks of width 32 behind three stages, float64, with running statistics that make every layer fire."""
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"embed_dim": 32, "num_heads": 4, "depth": 2, "stages": 3, "T": None, "num_classes": 5}
    model = SpikformerV2(SpikformerV2Config(in_channels=2, **{**defaults, **options})).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("fire.bias"):
                parameter.fill_(0.7)
        for _ in range(40):
            model(frames())
    return model.eval()


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_published_sizes(name: str) -> None:
    size, T, accuracy = VARIANTS[name]
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == size
    entry = describe(name)
    assert [result.accuracy for result in entry.published] == ([] if accuracy is None else [accuracy])
    assert "our reconstruction" in entry.paper
    assert "our reconstruction" in entry.says
    images = torch.zeros(1, 3, 224, 224, device="meta")
    assert model.frames(images).shape[0] == T
    assert model.stride == 16


def test_the_family_of_spikformer_does_not_hold_it() -> None:
    assert list_models("spikformer_v2_*") == sorted(VARIANTS)
    assert not set(list_models("spikformer_[!v]*")) & set(VARIANTS)
    assert "spikformer_8_384" in list_models("spikformer_[!v]*")


@pytest.mark.parametrize(("stages", "tokens"), [(2, 32), (3, 8), (4, 2)])
def test_shapes(stages: int, tokens: int) -> None:
    model = tiny(stages=stages)
    x = frames()
    maps = model.stem(x)
    assert maps.shape == (3, 2, 32, 16 // 2**stages, 32 // 2**stages)
    assert maps[0, 0, 0].numel() == tokens
    assert model(x).shape == (3, 2, 5)
    model.reset_classifier(0)
    assert model(x).shape == (3, 2, 32)
    assert [stage.down.synapse.out_channels for stage in model.stem] == [32 >> i for i in reversed(range(stages))]


def streams(model: SpikformerV2, x: Tensor) -> list[Tensor]:
    """What leaves each stage of the stem."""
    found = []
    for stage in model.stem:
        x = stage(x)
        found.append(x)
    return found


def test_iand_keeps_the_stream_binary_and_add_makes_whole_numbers() -> None:
    add, iand = tiny(), tiny(join="iand")
    assert [sorted(x.unique().tolist()) for x in streams(add, frames())] == [[0, 1, 2]] * 3
    assert [sorted(x.unique().tolist()) for x in streams(iand, frames())] == [[0, 1]] * 3
    stage = iand.stem[0]
    assert isinstance(stage, Stage)
    y, b = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert stage.join(y, b).tolist() == [0, 0, 1, 0]
    assert add.stem[0].join(y, b).tolist() == [0, 1, 1, 2]


def test_blocks_are_those_of_spikformer() -> None:
    first = (
        Spikformer(SpikformerConfig(in_channels=2, embed_dim=32, num_heads=4, depth=2, linear=False)).double().eval()
    )
    second = tiny()
    first.blocks.load_state_dict(second.blocks.state_dict())
    tokens = second.stem(frames()).flatten(3).transpose(2, 3)
    mixed = second.blocks(tokens)
    assert torch.equal(first.blocks(tokens), mixed)
    assert mixed.max() > tokens.max()
    assert {block.attn.scale for block in second.blocks} == {0.125}


def test_every_parameter_gets_a_gradient_and_the_configuration_builds_it_again() -> None:
    model = tiny().train()
    model(frames()).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    again = create_model("spikformer_v2_8_384", **model_config(model)).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(frames()), model.eval()(frames()))


def test_chunks_of_a_stream_are_the_whole() -> None:
    model = tiny()
    x, stream = frames(T=5), Stream(model)
    with torch.no_grad():
        assert torch.equal(torch.cat([stream(x[:2]), stream(x[2:3]), stream(x[3:])]), model(x))


@pytest.mark.parametrize("join", ["add", "iand"])
def test_every_operation_is_counted(join: str) -> None:
    model, x = tiny(join=join), frames()
    with torch.no_grad(), count(model, strict=True) as run:
        model(x)
    layers = {layer.name: layer for layer in run.counts().layers}
    spikes = model.stem[0].down(x)
    # every spike of the first stage meets 9 taps of 16 output channels, but at the border fewer
    weight = torch.ones_like(model.stem[0].expand.synapse.weight)
    fan_out = torch.nn.functional.conv2d(spikes.flatten(0, 1), weight, padding=1).sum()
    assert layers["stem.0.expand.synapse"].sop.sum() == int(fan_out)
    assert layers["stem.0.expand.synapse"].kind == "binary"
    assert layers["stem.1.down.synapse"].kind == ("binary" if join == "iand" else "integer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 36, "num_heads": 4}, r"embed_dim is 36 with stages=4; expected a multiple of 8"),
        ({"embed_dim": 48, "num_heads": 4, "stages": 6}, "expected a multiple of 32"),
        ({"num_heads": 7}, "heads that divides dim"),
        ({"join": "or"}, "one of 'add', 'iand'"),
        ({"stages": 0}, "stages=0"),
        ({"expansion": 0}, "expansion=0"),
    ],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("spikformer_v2_8_384", **options)


def test_a_size_that_the_stride_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one token of 8 x 8 pixels, so both sides must be multiples of 8"):
        tiny()(frames(H=20))


def test_the_page_runs_and_has_the_numbers_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models" / "spikformer_v2.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```\n", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == page.count("```python") == 2
    torch.manual_seed(0)
    for block, printed in blocks:
        exec(block, names)
        assert capsys.readouterr().out == printed, block
    for name, (size, T, accuracy) in VARIANTS.items():
        published = "" if accuracy is None else f"{accuracy:.2f} %"
        assert re.search(rf"^\| `{name}` \| {size:,} \| {T} \| {published}", page, re.MULTILINE), name
    assert "No official code or weights exist" in page
