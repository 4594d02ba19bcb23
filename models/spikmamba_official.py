"""The networks of the SpikMamba code as it is: attention, and behind it a stack of ordinary, non-spiking Mamba mixers.

    x = LIF(norm(patches)) + position + time                                tokens [M, N, C], M = B T
    x = block(x)                            `depth` times, see `spikmamba_official_blocks`
    r = x;  y = mixer_0(norm_0(r));  r = r + y;  y = mixer_1(norm_1(r));  ...;  x = norm_f(r + y)       on [B, T N, C]
    logits[t] = W mean_tokens(x[t]) + b

Code: Typistchen/SpikMamba, commit 743aa75, to the paper Chen et al. 2024, arXiv:2410.16746; mixers as in
OpenGVLab/VideoMamba, commit f3427e4. None of its variants is the paper's network, no weights are published, and it
cannot be trained as it is. It is here so that weights of that code run; for everything else there is `spikmamba`.
Only the neurons behind the patches and those of queries and keys spike: to the energy counter the rest multiplies.

Results depend on the order of the samples in a batch, as the neurons take B T for time; B = 1 is free of it. The code
also keeps the membranes from one call to the next; here every call starts from rest, and `Stream` keeps them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikeloom.models.config import configure
from spikeloom.models.drop_path import DropPath, check_rate
from spikeloom.models.fixed_frames import FixedFrames
from spikeloom.models.official import Family, demand, register_family
from spikeloom.models.patch_conv import PatchConv
from spikeloom.models.registry import register_variant
from spikeloom.models.spikmamba_official_blocks import AttentionBlock, PlaceNorm, TwoWayBlock
from spikeloom.neurons import LIF
from spikeloom.spiking_attention.layout import check_heads
from spikeloom.spiking_attention.mamba import MambaMixer
from spikeloom.spiking_attention.rms_norm import RMSNorm
from spikeloom.spiking_attention.rotary import check_rotary

PAPER = "the code to Chen et al. 2024, SpikMamba, arXiv:2410.16746 (Typistchen/SpikMamba, commit 743aa75)"
EPS = 1e-5
"""Of the root-mean-square normalisations."""
MIXERS_PLANNED = 12
"""The code spreads the rates of DropPath over so many mixers, however many it has."""


@dataclass(frozen=True)
class SpikMambaOfficialConfig:
    """Sizes and switches of the code.

    variant: `sla`, attention blocks; `bisla`, those that read both ways; `bimamba` and `bissm_bisla`, the same and
    `mamba_depth` mixers behind them. patch_dropout, qk_dropout: of whole channels behind the patches, and on queries
    and keys, fixed in the code's `sla` for 16 frames. drop_path_rate: of the last block and the last residual.
    """

    variant: Literal["sla", "bisla", "bimamba", "bissm_bisla"] = "bimamba"
    in_channels: int = 3
    input_size: tuple[int, int] = (128, 128)
    num_classes: int = 300
    T: int = 16
    patch_size: int = 8
    embed_dim: int = 256
    num_heads: int = 8
    depth: int = 2
    mamba_depth: int = 4
    patch_dropout: float = 0.0
    qk_dropout: float = 0.0
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        check_heads(self.embed_dim, self.num_heads, "SpikMambaOfficialConfig")
        check_rotary(self.embed_dim, "SpikMambaOfficialConfig")
        least = {name: getattr(self, name) for name in ("in_channels", "T", "patch_size", "depth")}
        if min(least.values()) < 1 or self.num_classes < 0:
            given = ", ".join(f"{name}={value}" for name, value in least.items())
            raise ValueError(f"SpikMambaOfficialConfig: {given} must be >= 1, num_classes={self.num_classes} >= 0.")
        if self.mixers != (self.mamba_depth > 0) or self.mamba_depth < 0:
            wanted = ">= 1" if self.mixers else "0"
            raise ValueError(
                f"SpikMambaOfficialConfig.mamba_depth is {self.mamba_depth}; expected {wanted} for {self.variant!r}."
            )
        height, width = self.input_size
        if height != width or height % self.patch_size:
            raise ValueError(
                f"SpikMambaOfficialConfig.input_size is {self.input_size}; expected a square whose side is a multiple "
                f"of patch_size={self.patch_size}."
            )
        for name in ("patch_dropout", "qk_dropout", "drop_rate", "drop_path_rate"):
            check_rate(getattr(self, name), f"SpikMambaOfficialConfig.{name} is {name}")

    @property
    def mixers(self) -> bool:
        """Whether the variant has Mamba mixers."""
        return self.variant in ("bimamba", "bissm_bisla")

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), tokens of a frame."""
        side = self.input_size[0] // self.patch_size
        return side, side


class PatchEmbed(nn.Module):
    """Frames `[T, B, C, H, W]` -> spikes of tokens `[B T, N, D]`; the neurons' time is B T."""

    def __init__(self, config: SpikMambaOfficialConfig) -> None:
        super().__init__()
        self.proj = PatchConv(config.in_channels, config.embed_dim, config.patch_size)
        self.drop = nn.Dropout3d(config.patch_dropout)
        self.proj_norm = PlaceNorm(config.grid[0] * config.grid[1])
        self.proj_lif = LIF()

    def forward(self, frames: Tensor) -> Tensor:
        """Run all frames, sample by sample."""
        maps = self.drop(self.proj(frames).permute(1, 2, 0, 3, 4))  # [B, D, T, h, w]
        tokens = maps.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)
        spikes: Tensor = self.proj_lif(self.proj_norm(tokens))
        return spikes


class MixerLayer(nn.Module):
    """A normalisation and a mixer."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, EPS)
        self.mixer = MambaMixer(dim)
        self.mixer.get_submodule("dt_proj_b").reset_parameters()  # type: ignore[operator]  # the code leaves it so
        self.mixer.streams = False  # a `Stream` keeps what the code keeps: membranes
        self.drop_path = DropPath(drop_path, axis=0)

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mixer's output, and the sum of everything before it."""
        residual = hidden if residual is None else residual + self.drop_path(hidden)
        return self.mixer(self.norm(residual)), residual


class SpikMambaOfficial(FixedFrames):
    """Event frames -> logits `[T, B, num_classes]`, whose mean over time is the code's output."""

    recomputes = True
    mixes_samples = True
    """A sample's output depends on those before it in the batch, in evaluation too."""

    def __init__(self, config: SpikMambaOfficialConfig) -> None:
        super().__init__(config)
        self.stride, self.num_features = config.patch_size, config.embed_dim
        C, N, rate = config.embed_dim, config.grid[0] * config.grid[1], config.drop_path_rate
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.empty(1, N + 1, C))
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, config.T, C))
        self.drop = nn.Dropout(config.drop_rate)
        kind = AttentionBlock if config.variant == "sla" else TwoWayBlock
        steps = max(1, config.depth - 1)
        self.blocks = nn.Sequential(
            *(
                kind(C, config.num_heads, config.grid, (config.qk_dropout, config.drop_rate, rate * i / steps))
                for i in range(config.depth)
            )
        )
        planned = [0.0, *(rate * i / (MIXERS_PLANNED - 1) for i in range(max(MIXERS_PLANNED, config.mamba_depth)))]
        self.mamba_layers = nn.ModuleList(MixerLayer(C, planned[i]) for i in range(config.mamba_depth))
        if config.mixers:
            self.drop_path = DropPath(rate, axis=0)
            self.norm_f = RMSNorm(C, EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.reset_classifier(config.num_classes)

    def features(self, frames: Tensor) -> Tensor:
        """Means over tokens: `[T, B, C]`."""
        T, B = frames.shape[:2]
        x = (self.run(self.patch_embed, frames) + self.pos_embed[:, 1:]).unflatten(0, (B, T))
        x = self.drop(x + self.temporal_pos_embedding[:, :, None]).flatten(0, 1)
        x = self._mix(self.run_all(self.blocks, x).unflatten(0, (B, T)).flatten(1, 2))
        return x.unflatten(1, (T, -1)).mean(2).transpose(0, 1)

    def _mix(self, hidden: Tensor) -> Tensor:
        """The Mamba mixers, if there are any, on `[B, T N, C]`."""
        residual: Tensor | None = None
        for layer in self.mamba_layers:
            hidden, residual = self.run(layer, hidden, residual)
        if residual is None:
            return hidden
        normed: Tensor = self.norm_f(residual + self.drop_path(hidden))
        return normed


_SLA = SpikMambaOfficialConfig("sla", num_classes=32, patch_size=4, mamba_depth=0, patch_dropout=0.25, qk_dropout=0.3)
_VARIANTS = {
    "sla_16": ("attention, 16 frames", _SLA),
    "sla_8": (
        "attention, 8 frames",
        replace(_SLA, num_classes=300, T=8, patch_dropout=0.0, qk_dropout=0.0),
    ),
    "bisla_16": ("attention both ways, 16 frames", SpikMambaOfficialConfig("bisla", patch_size=4, mamba_depth=0)),
    "bisla_8": ("attention both ways, 8 frames", SpikMambaOfficialConfig("bisla", T=8, patch_size=4, mamba_depth=0)),
    "bimamba_16": ("attention both ways and 4 Mamba layers, 16 frames", SpikMambaOfficialConfig()),
    "bimamba_8": ("attention both ways and 4 Mamba layers, 8 frames", SpikMambaOfficialConfig(T=8)),
    "bissm_bisla_16": (
        "attention both ways and a Mamba layer, 16 frames", SpikMambaOfficialConfig("bissm_bisla", mamba_depth=1)
    ),
    "bissm_bisla_8": (
        "attention both ways and a Mamba layer, 8 frames", SpikMambaOfficialConfig("bissm_bisla", T=8, mamba_depth=1)
    ),
}  # fmt: skip
for _name, (_says, _config) in _VARIANTS.items():
    register_variant(
        f"spikmamba_official_{_name}", SpikMambaOfficial, _config, f"The public code, quirks and all: {_says}.",
        paper=PAPER,
    )  # fmt: skip

DEAD = (
    "cls_token",
    r"norm\..*",
    r"sps_patch_embed\..*",
    r"block\..*",
    r"layers\.0\.blocks\.\d+\.mlp\.fc[12]_bn\..*",
    r"layers\.0\.blocks\.\d+\.to2\..*",
)
"""Entries that the code's forward never reads: a class token, a Spikformer stem and blocks, unused layers."""


def _shown(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of our configuration that names and shapes of a state dict show; empty where they show nothing."""
    patches, places, times = (
        state.get(key) for key in ("patch_embed.proj.weight", "pos_embed", "temporal_pos_embedding")
    )
    if patches is None or places is None or times is None or min(patches.ndim, places.ndim + 2, times.ndim + 2) < 5:
        return {}

    def numbers(pattern: str) -> int:
        return len({match[1] for match in (re.match(pattern, key) for key in state) if match})

    depth, mixers, side = numbers(r"layers\.0\.blocks\.(\d+)\."), numbers(r"mamba_layers\.(\d+)\."), patches.shape[-1]
    two_ways = any(re.fullmatch(r"layers\.0\.blocks\.\d+\.dim2\.weight", key) for key in state)
    one_way = "bisla" if two_ways else "sla"
    return {
        "variant": {0: one_way, 1: "bissm_bisla"}.get(mixers, "bimamba"),
        "in_channels": patches.shape[1],
        "input_size": (side * math.isqrt(places.shape[1] - 1),) * 2,
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "T": times.shape[1],
        "patch_size": side,
        "embed_dim": len(patches),
        "depth": max(1, depth),
        "mamba_depth": mixers,
    }


_GIVEN = {
    "num_classes": "num_classes",
    "T": "T",
    "embed_dim": "embed_dims",
    "num_heads": "num_heads",
    "depth": "mlla_depth",
    "mamba_depth": "mamba_depth",
    "drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate",
}
_SIZES = {"img_size": "input_size", "img_size_h": "input_size", "img_size_w": "input_size", "patch_size": "patch_size"}


def _check_sizes(config: Mapping[str, Any], shown: Mapping[str, Any]) -> None:
    """Refuse sizes of frames and patches that are not those of the state dict's shapes."""
    for key, name in _SIZES.items():
        given = config.get(key)
        sides = set(given) if isinstance(given, tuple | list) else {given}
        if given is not None and name in shown and sides != {_side(shown[name])}:
            raise ValueError(
                f"The spikmamba configuration has {key}={given}, and the shapes of the state dict show {name}="
                f"{shown[name]}. Pass the size that the model was trained with, or leave {key} out."
            )


def _side(size: Any) -> Any:
    return size[0] if isinstance(size, tuple) else size  # squares alone


def _build(config: dict[str, Any], state: dict[str, Tensor], **options: Any) -> SpikMambaOfficial:
    """Everything but the heads is read off the state dict; what was given must agree with it, or its shapes will not.

    A normalisation's count of batches, which changes nothing here, may be absent: then `state` gets one.
    """
    demand("spikmamba", config, "num_heads")
    shown, given = _shown(state), {name: config[theirs] for name, theirs in _GIVEN.items() if theirs in config}
    _check_sizes(config, shown)
    if "variant" in config:
        given["variant"] = {"bissm": "bissm_bisla"}.get(config["variant"], config["variant"])
    model = SpikMambaOfficial(configure(SpikMambaOfficialConfig(), {**shown, **given, **options}))
    for key in [key for key in state if key.endswith("_bn.running_mean")]:
        if rename(key) in model.state_dict():
            state.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return model


def rename(key: str) -> str:
    """An official name under our modules."""
    return key.removeprefix("layers.0.").replace("_bn.", "_norm.")


register_family(
    "spikmamba",
    Family(_build, rename, DEAD, "spikmamba_official_*", ("variant", *_GIVEN.values())),
)
