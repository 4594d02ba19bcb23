"""Max-Former as its authors' code has it: official state dicts in full, inputs, every stage, dense operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from spikeloom_tests.models.maxformer_oracle import official, random, tiny

from spikeloom.energy import count
from spikeloom.models import create_model, list_models
from spikeloom.models.max_resnet import entries as resnet_entries
from spikeloom.models.maxformer import MIXERS, MaxFormer, MaxFormerConfig
from spikeloom.models.maxformer_embed import EMBEDS
from spikeloom.models.official import translate

Layout = list[tuple[str, tuple[int, ...]]]

CONVS = {  # of the embeddings, in the order of the official code; "r": a shortcut of 1 x 1, from this part of the width
    "orig": "proj 2, embed1 1, r embed2 2",
    "orig_imagenet": "embed1 2, embed2 1, embed3 1, r embed4 2",
    "max": "max_embed1 1, embed1 1, r max_embed2 0",
    "max_plus": "proj 8, max_embed1 4, max_embed2 2, max_embed3 1, r embed1 4",
    "one_max": "embed1 1, max_embed1 1, r embed2 0",
    "qk_init": "proj 2, proj1 1, proj2 1, r rpe 2",
    "qk_stage": "proj3 1, proj4 1, r proj_res 0",
}
"""Name of a convolution and the part of the stage's width that it has, or that its shortcut reads (0: the input)."""


def bn(name: str, width: int) -> Layout:
    vectors: Layout = [(f"{name}.{entry}", (width,)) for entry in ("weight", "bias", "running_mean", "running_var")]
    return [*vectors, (f"{name}.num_batches_tracked", ())]


def embed(kind: str, prefix: str, before: int, width: int) -> Layout:
    found: Layout = []
    last = before
    for conv in CONVS[kind].split(", "):
        *shortcut, name, part = conv.split()
        if "embed" in name:
            weight, norm = f"{name}.embed_conv", f"{name}.embed_bn"
        elif name in ("proj1", "proj2"):
            weight, norm = f"proj_conv{name[-1]}", f"proj_bn{name[-1]}"
        else:
            weight, norm = f"{name}_conv", f"{name}_bn"
        if shortcut:
            source = before if part == "0" else width // int(part)
            shape: tuple[int, ...] = (width, source, 1, 1)
        else:
            shape = (width // int(part), last, 3, 3)
            last = shape[0]
        found += [(f"{prefix}.{weight}.weight", shape), *bn(f"{prefix}.{norm}", shape[0])]
    return found


def block(prefix: str, mixer: str, width: int, ratio: float) -> Layout:
    found: Layout = []
    if mixer.startswith("dwc"):
        name, k = f"{prefix}.mixer.conv{'5' if mixer == 'dwc7' else ''}", int(mixer[3:])
        found += [(f"{name}.weight", (width, 1, k, k)), (f"{name}.bias", (width,)), *bn(f"{name}_bn", width)]
    for part in {"ssa": "qkv", "qka": "qk"}.get(mixer, ""):
        found += [(f"{prefix}.attn.{part}_conv.weight", (width, width, 1)), *bn(f"{prefix}.attn.{part}_bn", width)]
    if mixer in ("ssa", "qka"):
        name = f"{prefix}.attn.proj"
        found += [(f"{name}_conv.weight", (width, width, 1)), (f"{name}_conv.bias", (width,)), *bn(f"{name}_bn", width)]
    hidden = int(width * ratio)
    for name, out, into in (("fc1", hidden, width), ("fc2", width, hidden)):
        found += [(f"{prefix}.mlp.{name}_conv.weight", (out, into, 1, 1)), (f"{prefix}.mlp.{name}_conv.bias", (out,))]
        found += bn(f"{prefix}.mlp.{name}_bn", out)
    return found


def network(
    embeds: str, mixers: str, depths: tuple[int, ...], widths: tuple[int, ...], inputs: tuple[int, int, float]
) -> Layout:
    """inputs: channels, classes, ratio of the MLP."""
    channels, classes, ratio = inputs
    found: Layout = []
    for s, (kind, before, width) in enumerate(zip(embeds.split(), (channels, *widths), widths, strict=False), 1):
        found += embed(kind, f"patch_embed{s}", before, width)
    for s, (mixer, depth, width) in enumerate(zip(mixers.split(), depths, widths, strict=True), 1):
        for i in range(depth):
            found += block(f"stage{s}.{i}", mixer, width, ratio)
    return [*found, ("head.weight", (classes, widths[-1])), ("head.bias", (classes,))]


def resnet() -> Layout:
    found: Layout = [("conv1.weight", (64, 3, 3, 3)), *bn("bn1", 64)]
    before = 64
    for s, (width, depth) in enumerate(((128, 3), (256, 3), (512, 2)), 1):
        for i in range(depth):
            name = f"layer{s}.{i}"
            found += [(f"{name}.conv1.weight", (width, before, 3, 3)), *bn(f"{name}.bn1", width)]
            found += [(f"{name}.conv2.weight", (width, width, 3, 3)), *bn(f"{name}.bn2", width)]
            if i == 0:
                found += [(f"{name}.downsample.1.weight", (width, before, 1, 1)), *bn(f"{name}.downsample.2", width)]
            before = width
    return [*found, ("fc1.weight", (10, 512)), ("fc1.bias", (10,))]


SMALL, LARGE = (96, 192, 384), (1, 2, 7)
OFFICIAL: dict[str, tuple[int, Callable[[], Layout]]] = {
    "maxformer_cifar_4_384": (
        169, lambda: network("orig max max", "identity dwc3 ssa", (1, 1, 2), SMALL, (3, 10, 4)),
    ),
    "maxformer_dvs_2_256": (110, lambda: network("max_plus max", "dwc3 ssa", (1, 1), (128, 256), (2, 10, 1))),
    "maxformer_10_384": (
        398, lambda: network("orig_imagenet max max", "dwc7 dwc5 ssa", LARGE, SMALL, (3, 1000, 4)),
    ),
    "maxformer_10_768": (
        398, lambda: network("orig_imagenet max max", "dwc7 dwc5 ssa", LARGE, (192, 384, 768), (3, 1000, 4)),
    ),
    "ms_qkformer_cifar_4_384": (
        200, lambda: network("orig one_max one_max", "qka qka ssa", (1, 1, 2), SMALL, (3, 10, 4)),
    ),
    "ms_qkformer_10_384": (
        434, lambda: network("qk_init qk_stage qk_stage", "qka qka ssa", LARGE, SMALL, (3, 1000, 4)),
    ),
    "ms_qkformer_dvs_2_256": (122, lambda: network("max_plus one_max", "qka ssa", (1, 1), (128, 256), (2, 10, 1))),
    "max_resnet18": (122, resnet),
}  # fmt: skip
"""Model -> number of entries of the official state dict, and the entries."""


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_state_dict_in_name_shape_and_order(name: str) -> None:
    number, layout = OFFICIAL[name]
    expected = layout()
    assert len(expected) == number
    with torch.device("meta"):
        model: Any = create_model(name)
    if name == "max_resnet18":
        own = model.state_dict()
        found = {key: own[translate("max_resnet", key, own)] for key in resnet_entries(model.config)}
    else:
        found = official(model)
    assert [(key, tuple(value.shape)) for key, value in found.items()] == expected


DENSE = {  # MMAC of one step: of weights, of attention, of the first convolution
    "maxformer_cifar_4_384": (973.803, 4.719, 1.327),
    "maxformer_dvs_2_256": (387.746, 0.524, 4.719),
    "max_resnet18": (2669.352, 0.0, 1.769),
    "maxformer_10_384": (5241.167, 67.437, 16.257),
    "ms_qkformer_10_384": (5831.237, 67.437, 65.028),
    "ms_qkformer_cifar_4_384": (1511.280, 4.719, 1.327),
    "ms_qkformer_dvs_2_256": (506.989, 0.524, 4.719),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_operations_that_the_energy_counter_reports(name: str) -> None:
    """On untrained networks in training mode, so that neurons fire; widths of 512 and 768 take longer than the rest."""
    torch.manual_seed(0)
    model: Any = create_model(name, T=1).train()
    x = 4 * random(1, 1, model.config.in_channels, *model.config.input_size)
    with torch.no_grad(), count(model, strict=True) as run:
        model(x)
    layers = run.counts().layers
    weights = [layer for layer in layers if layer.is_param]
    products = [layer for layer in layers if not layer.is_param]
    assert sum(layer.dense_nominal for layer in weights) / 1e6 == pytest.approx(DENSE[name][0], abs=6e-4)
    assert sum(layer.dense_nominal for layer in products) / 1e6 == pytest.approx(DENSE[name][1], abs=6e-4)
    assert weights[0].dense_nominal / 1e6 == pytest.approx(DENSE[name][2], abs=6e-4)
    assert weights[0].kind == "float"
    real = {layer.name for layer in weights if layer.kind == "float"} - {weights[0].name}
    resnet_only = {f"stages.{s}.0.shortcut.synapse" for s in range(3)} | {"head"}  # the mean of spikes is no spike
    assert real == (resnet_only if name == "max_resnet18" else set())


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("embed", EMBEDS)
def test_every_embedding_with_every_mixer(embed: Any, mixer: Any) -> None:
    """Both in the first stage, where an image or a neuron on it is read, and in the second."""
    torch.manual_seed(0)
    stride = EMBEDS[embed].stride
    config = MaxFormerConfig(
        embed_dim=16, num_heads=2, depths=(1, 1), embeds=(embed, embed), mixers=(mixer, mixer), mlp_ratio=1.0, T=1,
        num_classes=3, scale=0.5,
    )  # fmt: skip
    model = MaxFormer(config).train()
    x = (2 * random(2, 3, stride**2, 2 * stride**2)).requires_grad_()
    logits = model(x)
    assert logits.shape == (1, 2, 3)
    logits.backward(random(1, 2, 3))
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()


def test_other_numbers_of_steps_and_samples_between_calls() -> None:
    """Nothing is left over from a call, so that none has to be reset."""
    model = tiny(T=None)
    frames = random(4, 3, 3, 16, 16)
    whole = model(frames)
    assert whole.shape == (4, 3, 10)
    torch.testing.assert_close(model(frames[:2]), whole[:2], rtol=0, atol=1e-5)
    torch.testing.assert_close(model(frames[:, :1]), whole[:, :1], rtol=0, atol=1e-5)
    assert torch.equal(model(frames), whole)


@pytest.mark.parametrize("name", list_models("maxformer_*") + list_models("ms_qkformer_*") + list_models("max_resnet*"))
def test_images_frames_and_sizes_of_every_variant(name: str) -> None:
    with torch.device("meta"):
        model: Any = create_model(name, T=2)
        channels, stride = model.config.in_channels, model.stride
        assert stride == {(32, 32): 8 if name == "max_resnet18_2222" else 4}.get(model.config.input_size, 16)
        classes = 1000 if "_10_" in name else 10
        assert model(torch.empty(1, channels, stride, 2 * stride)).shape == (2, 1, classes)
        assert model(torch.empty(2, 1, channels, 3 * stride, stride)).shape == (2, 1, classes)
        for height, width in ((stride + 1, stride), (stride, 2 * stride - 2)):
            with pytest.raises(ValueError, match=f"{height} x {width} pixels.*multiples of {stride}"):
                model(torch.empty(1, channels, height, width))
        with pytest.raises(ValueError, match=r"Time is the first axis here: x\.transpose\(0, 1\)"):
            model(torch.empty(3, 2, channels, stride, stride))
