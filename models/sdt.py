"""Spike-driven Transformer: a convolutional stem, then blocks of spike-driven attention and MLP on a membrane stream.

    x = MP(CBL(...))                      three stages, CBL = convolution 3 x 3, batch normalisation, LIF
    f = MP(BN(conv(x)))                   real-valued
    u = f + BN(conv(LIF(f)))              relative position
    u = u + SDSA(LIF(u));  u = u + MLP(LIF(u))     `depth` times
    logits[t] = W LIF(mean_tokens(u))[t]

Every convolution and linear map but the first reads binary spikes; additions are on the real-valued u (`membrane`).

Paper: Yao, Hu, Zhou, Yuan, Tian, Xu, Li 2023, "Spike-driven Transformer", NeurIPS 2023, arXiv:2307.01694, with the
sizes of the authors' code (BICLab/Spike-Driven-Transformer, commit 3faa822). Each neuron stands behind the addition in
front of it: a block's first one ends the block before (or the stem), so neurons have other names than in that code.

Quirks: `dvs` pools over tokens and channels (`SDSA`). The rates of DropPath that the authors' code passes are never
applied there, so there is none here. `legacy_keys` holds the weights `talking_heads`, which no forward reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from spikeloom.models.checks import check_mlp_ratio
from spikeloom.models.classifier import Classifier
from spikeloom.models.config import configure
from spikeloom.models.official import Family, demand, register_family
from spikeloom.models.registry import UNREAD, Published, register_variant
from spikeloom.neurons import LIF
from spikeloom.spiking_attention import SDSA, MembraneMLP
from spikeloom.spiking_attention.layout import check_heads
from spikeloom.spiking_attention.membrane import Pair
from spikeloom.spiking_attention.normed import ConvNorm
from spikeloom.synapses import Conv2d, ConvNeuron, Linear, MaxPool2d, NormNeuron, SpikeConv2d

PAPER = "Yao et al. 2023, Spike-driven Transformer, arXiv:2307.01694"


@dataclass(frozen=True)
class SDTConfig:
    """Sizes and switches.

    pools: which of the four stages of the stem end in max pooling; the authors write them as digits, "0011". dvs: the
    pooling of the event-camera models inside the attention, see `SDSA`; num_heads matters there only. legacy_keys: also
    hold the weights `talking_heads` that the authors' checkpoints have and no forward uses.
    """

    in_channels: int = 3
    input_size: tuple[int, int] = (32, 32)
    num_classes: int = 10
    T: int | None = 4
    embed_dim: int = 512
    num_heads: int = 8
    depth: int = 2
    mlp_ratio: float = 4.0
    pools: tuple[bool, bool, bool, bool] = (False, False, True, True)
    dvs: bool = False
    legacy_keys: bool = False

    def __post_init__(self) -> None:
        check_heads(self.embed_dim, self.num_heads, "SDTConfig")
        if self.embed_dim % 8:
            raise ValueError(f"SDTConfig.embed_dim is {self.embed_dim}; expected a multiple of 8 (the stem's).")
        if min(self.in_channels, self.depth, 1 if self.T is None else self.T) < 1 or self.num_classes < 0:
            raise ValueError(
                f"SDTConfig: in_channels={self.in_channels}, depth={self.depth}, T={self.T} must be >= 1, "
                f"num_classes={self.num_classes} >= 0 (0: no classifier)."
            )
        check_mlp_ratio(self.mlp_ratio, self.embed_dim, "SDTConfig")


class RelativePosition(nn.Module):
    """u = f + BN(conv 3 x 3 (s)), s = LIF(f): the pair (s, f) -> the pair (LIF(u), u), maps `[T, B, D, H, W]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.synapse = SpikeConv2d(dim, dim, 3, padding=1, bias=False)
        self.fire = NormNeuron(dim, LIF(), emit=True)

    def forward(self, spikes: Tensor, f: Tensor) -> Pair:
        """Run all time steps."""
        fired, u = self.fire(self.synapse(spikes), f)
        return fired, u


class Stem(nn.Module):
    """Frames `[T, B, C, H, W]` -> the stream of the blocks as a pair (LIF(u), u), maps `[T, B, D, H / s, W / s]`."""

    def __init__(self, config: SDTConfig) -> None:
        super().__init__()
        D = config.embed_dim
        widths = (config.in_channels, D // 8, D // 4, D // 2)
        self.stages = nn.Sequential(
            *(
                ConvNeuron(before, width, pool="after" if pool else "none", spikes=i > 0)
                for i, (before, width, pool) in enumerate(zip(widths[:-1], widths[1:], config.pools[:3], strict=True))
            )
        )
        self.embed = ConvNorm(D // 2, D, spikes=True)
        self.pool = MaxPool2d(3, 2, 1) if config.pools[3] else nn.Identity()
        self.embed_lif = LIF()
        self.rpe = RelativePosition(D)

    def forward(self, x: Tensor) -> Pair:
        """Run all time steps."""
        f = self.embed(self.stages(x), self.pool)
        pair: Pair = self.rpe(self.embed_lif(f), f)
        return pair


class Block(nn.Module):
    """u + SDSA, then u + MLP, on a pair (LIF(u), u) of maps `[T, B, D, H, W]`; the `last` gives (None, u)."""

    def __init__(self, config: SDTConfig, last: bool) -> None:
        super().__init__()
        D, heads = config.embed_dim, config.num_heads
        if config.legacy_keys:
            self.talking_heads = nn.Conv1d(heads, heads, 1, bias=False)
        self.attn = SDSA(D, heads, dvs=config.dvs)
        self.mlp = MembraneMLP(D, int(D * config.mlp_ratio), last=last)

    def forward(self, spikes: Tensor, u: Tensor) -> Pair:
        """Run all time steps."""
        pair: Pair = self.mlp(*self.attn(spikes, u))
        return pair


class SpikeDrivenTransformer(Classifier):
    """Images or frames -> logits `[T, B, num_classes]`."""

    truncated_head = False

    def __init__(self, config: SDTConfig) -> None:
        super().__init__()
        self.config = config
        self.stride = 2 ** sum(config.pools)
        self.num_features = config.embed_dim
        self.stem = Stem(config)
        self.blocks = nn.ModuleList(Block(config, last=i + 1 == config.depth) for i in range(config.depth))
        self.head_lif = LIF()
        self.apply(_start)
        self.reset_classifier(config.num_classes)

    def features(self, frames: Tensor) -> Tensor:
        """Spikes of the neurons on the mean over space of the stream: `[T, B, D]`."""
        spikes, u = self.stem(frames)
        for block in self.blocks:
            spikes, u = block(spikes, u)
        fired: Tensor = self.head_lif(u.mean((3, 4)))
        return fired


def _start(module: nn.Module) -> None:
    """Initial weights of convolutions (1 x 1 ones are linear maps here): a normal distribution of 0.02, biases 0."""
    if isinstance(module, Conv2d | Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_IMAGENET = SDTConfig(input_size=(224, 224), num_classes=1000, pools=(True,) * 4)
_CIFAR = SDTConfig()
_DVS = SDTConfig(
    in_channels=2, input_size=(128, 128), T=16, embed_dim=256, num_heads=8, pools=(True,) * 4, dvs=True
)  # fmt: skip


def _register(name: str, says: str, config: SDTConfig, *published: Published) -> None:
    register_variant(name, SpikeDrivenTransformer, config, says, paper=PAPER, published=published)


for _depth, _dim, _accuracy, _note in (
    (8, 384, 72.28, ""),
    (6, 512, 74.11, ""),
    (8, 512, 74.57, ""),
    (10, 512, 74.66, ""),
    (8, 768, 77.07, "evaluated at 288 x 288"),
):
    _register(
        f"sdt_{_depth}_{_dim}", f"{_depth} blocks of width {_dim} for 224 x 224 images.",
        replace(_IMAGENET, embed_dim=_dim, depth=_depth), Published("ImageNet-1k", _accuracy, _note),
    )  # fmt: skip
_register("sdt_cifar_2_256", "Two blocks of width 256 for 32 x 32 images.", replace(_CIFAR, embed_dim=256))
_register(
    "sdt_cifar_2_512", "Two blocks of width 512 for 32 x 32 images.", _CIFAR,
    Published("CIFAR-10", 95.6, UNREAD), Published("CIFAR-100", 78.4, UNREAD),
)  # fmt: skip
_register(
    "sdt_dvs_2_256", "Two blocks of width 256 for event frames of 128 x 128.", _DVS,
    Published("CIFAR10-DVS", 80.0, UNREAD),
    Published("DVS128 Gesture", 99.3, f"no pooling in the first stage of the stem; {UNREAD}"),
)  # fmt: skip


def _build(config: dict[str, Any], state: Mapping[str, Tensor], **options: Any) -> SpikeDrivenTransformer:
    """The constructor arguments of the official class; its options that no shape shows are demanded or checked."""
    pools, mode = config.get("pooling_stat"), config.get("spike_mode", "lif")
    if not (isinstance(pools, str) and re.fullmatch("[01]{4}", pools)):
        raise ValueError(
            f"The sdt configuration has pooling_stat={pools!r}; expected four digits 0 or 1, one per stage of the "
            "stem: '1111' for ImageNet, '0111' for DVS128 Gesture, '0011' for CIFAR and CIFAR10-DVS (64 x 64)."
        )
    if mode != "lif":
        raise ValueError(f"The sdt configuration has spike_mode={mode!r}; only 'lif' is built here.")
    heads = state.get("block.0.attn.talking_heads.weight")
    demand("sdt", config, "dvs_mode")
    if heads is not None and config.setdefault("num_heads", len(heads)) != len(heads):
        raise ValueError(
            f"The sdt configuration has num_heads={config['num_heads']}; the state dict is of {len(heads)} heads "
            f"(talking_heads {list(heads.shape)})."
        )
    demand("sdt", config, "num_heads")
    given = {"embed_dim": "embed_dims", "depth": "depths", "mlp_ratio": "mlp_ratios", "dvs": "dvs_mode"}
    names = {name: given.get(name, name) for name in (*given, "num_heads", "in_channels", "num_classes", "T")}
    ours: dict[str, Any] = {name: config[theirs] for name, theirs in names.items() if theirs in config}
    T = 4 if config.get("in_channels", 3) == 3 else None  # an image is shown for 4 steps, frames bring their own
    ours = {"T": T, "pools": tuple(digit == "1" for digit in pools), **ours}
    return SpikeDrivenTransformer(configure(SDTConfig(), {**ours, **options}))


def _rename(key: str) -> str:
    key = key.replace("block.", "blocks.", 1).replace(".attn.talking_heads.", ".talking_heads.")
    key = key.replace("patch_embed.rpe_", "stem.rpe_")
    key = re.sub(r"^patch_embed\.proj_(conv|bn)3\.", r"stem.embed_\1.", key)
    return re.sub(r"^patch_embed\.proj_(conv|bn)(\d?)\.", lambda m: f"stem.stages.{m[2] or 0}_{m[1]}.", key)


_ARGUMENTS = ("embed_dims", "num_heads", "depths", "mlp_ratios", "in_channels", "num_classes", "T")
_DEAD = (r"(block\.\d+\.attn\.)?talking_heads\.weight",)
register_family(
    "sdt",
    Family(_build, _rename, _DEAD, "sdt_[!v]*", (*_ARGUMENTS, "pooling_stat", "spike_mode", "dvs_mode", "TET")),
)
