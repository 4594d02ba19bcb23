"""Max-ResNet: sizes, formulas, the authors' checkpoints, which convolutions multiply."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spikeloom_tests.models.maxformer_oracle import lif
from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom import Stream
from spikeloom.energy import Totals, count
from spikeloom.models import MaxResNet, MaxResNetConfig, create_model, describe, from_official, list_models
from spikeloom.models.max_resnet import entries
from spikeloom.models.official import translate
from spikeloom.models.sizes import size_of
from spikeloom.synapses import NormNeuron

TINY: dict[str, Any] = {"stem_width": 4, "widths": (8, 16, 32), "depths": (2, 1, 2)}


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def tiny(**options: Any) -> MaxResNet:
    """A small model whose neurons fire: its normalisations have the statistics of an input."""
    torch.manual_seed(0)
    model = create_model("max_resnet18", **{**TINY, **options})
    assert isinstance(model, MaxResNet)
    norms = [m for m in model.modules() if isinstance(m, NormNeuron | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.uniform_(norm.weight, 1.0, 2.0)
        nn.init.uniform_(norm.bias, 0.2, 0.8)
    with torch.no_grad():
        model(random(model.config.T or 2, 2, 3, 16, 16))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def official(model: MaxResNet) -> dict[str, Tensor]:
    """Our weights under the official names, in their order."""
    own = model.state_dict()
    return {key: own[translate("max_resnet", key, own)] for key in entries(model.config)}


def test_sizes_are_those_of_the_authors_code() -> None:
    size = size_of("max_resnet18")
    assert size.parameters == 12_502_090
    assert size.macs / 1e6 == pytest.approx(2669.352, abs=1e-3)
    assert size_of("max_resnet18", num_classes=100).parameters == 12_548_260
    assert size_of("max_resnet18_2222", num_classes=100).parameters == 11_220_132  # printed as 11.22 M
    assert list_models("max_resnet*") == ["max_resnet18", "max_resnet18_2222"]
    assert all("reconstructed" in result.note for result in describe("max_resnet18_2222").published)


def test_every_official_entry_has_its_place() -> None:
    layout = entries(MaxResNetConfig())
    assert len(layout) == 122
    with torch.device("meta"):
        model = MaxResNet(MaxResNetConfig())
    own = model.state_dict()
    assert {translate("max_resnet", key, own) for key in layout} == own.keys()
    assert {key: tuple(value.shape) for key, value in official(model).items()} == layout
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in layout))
    block = [f"layer2.0.{name}" for name in ("conv1", "bn1", "conv2", "bn2", "downsample.1", "downsample.2")]
    assert [name for name in modules if name.startswith("layer2.0.")] == block
    shortcuts = [name for name in modules if name.endswith("downsample.1")]
    assert shortcuts == [f"layer{s}.0.downsample.1" for s in (1, 2, 3)]
    assert modules[:2] == ["conv1", "bn1"]
    assert modules[-1] == "fc1"


def plain(model: MaxResNet, w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits `[B, K]` by the formulas; normalisation by the statistics of the batch."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1, pool: bool = False) -> Tensor:
        weight = w[f"{name}.weight"]
        y = F.conv2d(x.flatten(0, 1), weight, stride=stride, padding=weight.shape[-1] // 2)
        y = F.batch_norm(y, None, None, w[f"{norm}.weight"], w[f"{norm}.bias"], training=True)
        return (F.max_pool2d(y, 3, 2, 1) if pool else y).unflatten(0, x.shape[:2])

    u = conv(x, "conv1", "bn1")
    for s, depth in enumerate(model.config.depths):
        for i in range(depth):
            block, halves = f"layer{s + 1}.{i}", s > 0 and i == 0
            shortcut = u
            if f"{block}.downsample.1.weight" in w:
                shortcut = conv(u, f"{block}.downsample.1", f"{block}.downsample.2", stride=1 + halves)
            y = conv(lif(u), f"{block}.conv1", f"{block}.bn1", pool=halves)
            u = conv(lif(y), f"{block}.conv2", f"{block}.bn2") + shortcut
    return F.linear(lif(u).mean((3, 4)), w["fc1.weight"], w["fc1.bias"]).mean(0)


@pytest.mark.parametrize(
    "options", [{}, {"stem_width": 8, "widths": (8, 8, 16, 16), "depths": (2, 1, 1, 2)}], ids=["three", "four"]
)
def test_logits_and_gradients_by_the_formulas(options: dict[str, Any]) -> None:
    """Four stages, of which the first keeps the width, are in no published code."""
    model = tiny(**options).double().train()
    weights = {key: value.detach().clone() for key, value in official(model).items()}
    for value in weights.values():
        value.requires_grad_(value.is_floating_point())
    x = random(4, 2, 3, 16, 24).double()
    logits, expected = model(x).mean(0), plain(model, weights, x)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    cotangent = random(*logits.shape).double()
    logits.backward(cotangent)
    expected.backward(cotangent)
    parameters = dict(model.named_parameters())
    for key, weight in weights.items():
        ours = parameters.get(translate("max_resnet", key, model.state_dict()))
        if ours is not None:
            assert ours.grad is not None
            assert weight.grad is not None
            assert weight.grad.abs().max() > 1e-6, key
            torch.testing.assert_close(ours.grad, weight.grad, rtol=1e-7, atol=1e-9)


def test_checkpoints_by_name_and_by_order() -> None:
    model = tiny()
    x = random(2, 3, 16, 16)
    state = official(model)
    again: Any = from_official("max_resnet", {}, dict(sorted(state.items()))).eval()
    assert again.config == model.config
    assert torch.equal(again(x), model(x))
    other = {f"entry_{i}": value for i, value in enumerate(state.values())}
    with pytest.warns(UserWarning, match="of the max_resnet checkpoint were matched by their order"):
        again = from_official("max_resnet", {}, other, **TINY).eval()
    assert torch.equal(again(x), model(x))
    other["entry_1"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"entry 1 is entry_1 \[5\], where bn1\.weight \[4\] is expected"):
        from_official("max_resnet", {}, other, **TINY)
    with pytest.raises(ValueError, match="CIFAR has 122"):
        from_official("max_resnet", {}, other)
    del state["layer1.0.bn1.bias"]
    with pytest.raises(ValueError, match=r"1 entries missing: layer1\.0\.bn1\.bias"):
        from_official("max_resnet", {}, state)


def test_the_first_convolution_and_the_shortcuts_multiply() -> None:
    model = tiny()
    with torch.no_grad(), count(model, strict=True) as run:
        model(random(4, 2, 3, 16, 16))
    counts = run.counts()
    kinds = {layer.name: layer.kind for layer in counts.layers}
    real = {"stem.synapse", *(f"stages.{s}.0.shortcut.synapse" for s in range(3))}
    assert {name for name, kind in kinds.items() if kind == "float"} >= real
    binary = {name for name, kind in kinds.items() if kind == "binary"}
    assert binary == {
        f"stages.{s}.{i}.conv{j}.synapse" for s, n in enumerate((2, 1, 2)) for i in range(n) for j in (1, 2)
    }
    sop = {layer.name: int(layer.sop.sum()) for layer in counts.layers}
    assert Totals(counts).mac_effective.sum() == sum(n for name, n in sop.items() if name not in binary)


def test_a_stream_of_chunks_is_one_call() -> None:
    model = tiny(T=None).double()
    x = random(5, 2, 3, 8, 12).double()
    stream = Stream(model)
    with torch.no_grad():
        chunks = torch.cat([stream(chunk) for chunk in x.split([1, 2, 2])])
        torch.testing.assert_close(chunks, model(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (8, 16)}, r"widths=\(8, 16\), depths=\(3, 3, 2\); expected one entry per stage"),
        ({"depths": (3, 0, 2)}, r"depths=\(3, 0, 2\), T=4 must be >= 1"),
        ({"stem_width": 0}, "stem_width=0"),
    ],
    ids=["widths", "depths", "stem"],
)
def test_impossible_configurations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("max_resnet18", **options)
