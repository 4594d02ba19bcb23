"""Checkpoints of the Max-Former code: `from_official("maxformer", ...)`, and "ms_qkformer" for its baseline.

The code (bic-L/MaxFormer, commit 6ddd4cc) has three copies of its networks, for CIFAR, event frames and ImageNet, whose
heads and depths are fixed: 8, 16 and D / 64 heads. Embeddings, mixers and depths are read off the names. A checkpoint
with other names, as its ImageNet evaluation expects them, is matched by order (`by_order`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from spikeloom.models.by_order import Entries, named, of_conv, of_norm
from spikeloom.models.config import configure
from spikeloom.models.maxformer import (
    CIFAR,
    DVS,
    IMAGENET,
    QK_CIFAR,
    QK_DVS,
    QK_IMAGENET,
    MaxFormer,
    MaxFormerConfig,
    MixerName,
)
from spikeloom.models.maxformer_embed import EMBEDS, EmbedName, Plan
from spikeloom.models.official import Family, register_family

FLAVOURS = {"orig": CIFAR, "max_plus": DVS, "orig_imagenet": IMAGENET, "qk_init": IMAGENET}
"""The copy of the code that a first embedding belongs to."""


def entries(config: MaxFormerConfig) -> Entries:
    """Names and shapes of the official state dict of a network, in its order."""
    found: Entries = {}
    before = config.in_channels
    for s, (name, width) in enumerate(zip(config.embeds, config.widths, strict=True)):
        found |= of_embed(EMBEDS[name], f"patch_embed{s + 1}.", before, width)
        before = width
    for s, (mixer, width, depth) in enumerate(zip(config.mixers, config.widths, config.depths, strict=True)):
        hidden = int(width * config.mlp_ratio)
        for i in range(depth):
            block = f"stage{s + 1}.{i}."
            found |= of_mixer(mixer, block, width)
            found |= of_conv(f"{block}mlp.fc1_conv", hidden, width, 1, 1, bias=True)
            found |= of_norm(f"{block}mlp.fc1_bn", hidden)
            found |= of_conv(f"{block}mlp.fc2_conv", width, hidden, 1, 1, bias=True)
            found |= of_norm(f"{block}mlp.fc2_bn", width)
    if config.num_classes:
        found |= of_conv("head", config.num_classes, config.embed_dim, bias=True)
    return found


def of_embed(plan: Plan, prefix: str, before: int, width: int) -> Entries:
    """The entries of an embedding."""
    found: Entries = {}
    sizes = (before, *(width // link.part for link in plan.main))
    for i, link in enumerate(plan.main):
        conv, norm = official_pair(link.name)
        found |= of_conv(prefix + conv, sizes[i + 1], sizes[i], 3, 3) | of_norm(prefix + norm, sizes[i + 1])
    conv, norm = official_pair(plan.shortcut.name)
    return found | of_conv(prefix + conv, width, sizes[plan.source], 1, 1) | of_norm(prefix + norm, width)


def official_pair(name: str) -> tuple[str, str]:
    """The official names of a link's convolution and normalisation."""
    if "embed" in name:
        return f"{name}.embed_conv", f"{name}.embed_bn"
    numbered = re.fullmatch(r"(proj)([12])", name)
    if numbered:
        return f"proj_conv{numbered[2]}", f"proj_bn{numbered[2]}"
    return f"{name}_conv", f"{name}_bn"


def of_mixer(mixer: MixerName, block: str, width: int) -> Entries:
    """The entries of a token mixer."""
    if mixer.startswith("dwc"):
        kernel = int(mixer.removeprefix("dwc"))
        conv = f"{block}mixer.{'conv5' if kernel == 7 else 'conv'}"
        return of_conv(conv, width, 1, kernel, kernel, bias=True) | of_norm(f"{conv}_bn", width)
    found: Entries = {}
    for part in {"ssa": "qkv", "ssa_dwc": "qkv", "qka": "qk"}.get(mixer, ""):
        found |= of_conv(f"{block}attn.{part}_conv", width, width, 1) | of_norm(f"{block}attn.{part}_bn", width)
    if found:
        found |= of_conv(f"{block}attn.proj_conv", width, width, 1, bias=True)
        found |= of_norm(f"{block}attn.proj_bn", width)
    if mixer == "ssa_dwc":
        found |= of_conv(f"{block}attn.dwc", width, 1, 5, 5, bias=True) | of_norm(f"{block}attn.dwc_bn", width)
    return found


def _embed_of(state: Mapping[str, Tensor], prefix: str) -> EmbedName | None:
    """The embedding whose names are nearest to those of a state dict; None if it has none of them."""
    own = {key for key in state if key.startswith(prefix)}
    apart = {name: own ^ of_embed(plan, prefix, 1, 8).keys() for name, plan in EMBEDS.items()}
    name = min(apart, key=lambda name: len(apart[name]))
    if len(apart[name]) >= len(own):
        return None
    if name == "one_max":  # the ImageNet code gives the same names to convolutions in another order
        first, short = (state.get(f"{prefix}{link}.embed_conv.weight") for link in ("embed1", "embed2"))
        if first is not None and short is not None and first.shape[1:2] != short.shape[1:2]:
            name = "one_max_first"
    found: EmbedName = name  # type: ignore[assignment]
    return found


def _mixer_of(state: Mapping[str, Tensor], block: str) -> MixerName:
    """The mixer of a block; "identity" for pooling too, which has no parameters."""
    kernels = [
        state[key].shape[-1] for key in (f"{block}mixer.conv.weight", f"{block}mixer.conv5.weight") if key in state
    ]
    if kernels:
        mixer: MixerName = f"dwc{kernels[0]}"  # type: ignore[assignment]
        return mixer
    parts = {key.removeprefix(f"{block}attn.").partition(".")[0] for key in state if key.startswith(f"{block}attn.")}
    if "dwc" in parts:
        return "ssa_dwc"
    if "v_conv" in parts or "v_bn" in parts:
        return "ssa"
    return "qka" if parts else "identity"


def _shown(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of our configuration that the names and shapes of a state dict show; empty for other names."""
    embeds, mixers, depths = [], [], []
    s = 1
    while (embed := _embed_of(state, f"patch_embed{s}.")) is not None:
        found = [re.match(rf"stage{s}\.(\d+)\.", key) for key in state]
        depths.append(len({match[1] for match in found if match}))
        embeds.append(embed)
        mixers.append(_mixer_of(state, f"stage{s}.0."))
        s += 1
    hidden, stem = (state.get(key) for key in (f"stage{s - 1}.0.mlp.fc1_conv.weight", _first(embeds)))
    head = state.get("head.weight")
    if not embeds or 0 in depths or hidden is None or stem is None or min(hidden.ndim, stem.ndim) < 2:
        return {}
    return {
        "embeds": tuple(embeds),
        "mixers": tuple(mixers),
        "depths": tuple(depths),
        "embed_dim": hidden.shape[1],
        "mlp_ratio": hidden.shape[0] / hidden.shape[1],
        "in_channels": stem.shape[1],
        "num_classes": 0 if head is None else head.shape[0],
    }


def _first(embeds: list[EmbedName]) -> str:
    """The name of the first convolution's weight."""
    return f"patch_embed1.{official_pair(EMBEDS[embeds[0]].main[0].name)[0]}.weight" if embeds else ""


_GIVEN = {
    "embed_dim": "embed_dims",
    "mlp_ratio": "mlp_ratios",
    "in_channels": "in_channels",
    "num_classes": "num_classes",
    "T": "T",
}


def _configuration(
    base: MaxFormerConfig, config: Mapping[str, Any], shown: Mapping[str, Any], options: Mapping[str, Any]
) -> MaxFormerConfig:
    """Our configuration: of the copy of the code, over it what the weights show, what was given, and the options."""
    given = {name: config[theirs] for name, theirs in _GIVEN.items() if theirs in config}
    ours = {"T": None if base in (DVS, QK_DVS) else base.T, **shown, **given}
    if base.starts == "convolutions":
        ours.setdefault("num_heads", max(1, ours.get("embed_dim", base.embed_dim) // 64))
    return configure(base, {**ours, **options})


def _build(family: str, config: dict[str, Any], state: dict[str, Tensor], **options: Any) -> MaxFormer:
    """By name if the names are the code's, else by the order of one of its networks: then `state` gets the names."""
    flavours = {
        "maxformer": {"CIFAR": CIFAR, "event": DVS, "ImageNet": IMAGENET},
        "ms_qkformer": {"CIFAR": QK_CIFAR, "event": QK_DVS, "ImageNet": QK_IMAGENET},
    }[family]
    shown = _shown(state)
    by_name = None
    if shown:
        base = FLAVOURS.get(shown["embeds"][0])
        if base is None and "num_heads" not in options:
            raise ValueError(
                f"The {family} state dict begins with the embedding {shown['embeds'][0]!r}, which is of none of the "
                "published networks, so that the number of heads is not known; expected num_heads=."
            )
        by_name = _configuration(base or CIFAR, config, shown, options)
    by_order = {name: _configuration(base, config, {}, options) for name, base in flavours.items()}
    layouts = {name: entries(found) for name, found in by_order.items()}
    taken = named(state, None if by_name is None else entries(by_name), layouts, family)
    if taken is not None:
        return MaxFormer(by_order[taken])
    assert by_name is not None  # names that describe nothing are matched by order or refused
    return MaxFormer(by_name)


def rename(key: str) -> str:
    """An official name under our modules, with `_conv` and `_bn` for what `official.translate` completes."""
    key = re.sub(r"^patch_embed(\d+)\.", lambda m: f"embeds.{int(m[1]) - 1}.convs.", key)
    key = re.sub(r"(embed\d)\.embed_(conv|bn)\.", r"\1_\2.", key)
    key = re.sub(r"^stage(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.", key)
    key = key.replace(".attn.dwc.", ".attn.dwc_conv.").replace(".attn.", ".mixer.")
    return re.sub(r"\.mixer\.conv5?(_bn)?\.", lambda m: f".mixer{m[1] or '_conv'}.", key)


_ARGUMENTS = (*_GIVEN.values(), "depths")  # depths: taken, stored and never read there
register_family("maxformer", Family(partial(_build, "maxformer"), rename, (), "maxformer_*", _ARGUMENTS))
register_family("ms_qkformer", Family(partial(_build, "ms_qkformer"), rename, (), "ms_qkformer_*", _ARGUMENTS))
