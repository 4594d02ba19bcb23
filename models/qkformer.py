"""QKFormer: a hierarchy of maps, QK attention on the large ones and spiking self-attention on the last.

    x = main(x) + LIF(BN(C1(x')))         patch embedding; C1 is a 1 x 1 convolution with a stride, x' lies `source`
                                          convolutions down the main path, whose layers are C3, BN, (MP,) LIF
    x = x + QKTA(x);  x = x + MLP(x)      on the tokens of all stages but the last
    x = x + SSA(x);   x = x + MLP(x)      on the tokens of the last stage
    logits[t] = W mean_tokens(x[t])

Paper: Zhou, Zhang, Zhou, Yu, Huang, Fan, Yuan, Ma, Zhou, Tian 2024, "QKFormer: Hierarchical Spiking Transformer using
Q-K Attention", arXiv:2403.16552, with the sizes of the authors' code (zhouchenlin2096/QKFormer, commit c2a00e8).
Pooling comes before the neuron. Widths double from stage to stage; x is a sum of spikes, a map of whole numbers.

Quirks of that code, and the switches:
    proj_lif     its SSA runs the last neuron over the samples of a batch as if they were time steps, and the published
                 accuracies hold with that; `batch_leak` does the same, `time` (the default here) does not.
    num_heads    its CIFAR code has 8 heads and its event code 16 whatever it is told; here the number counts.
    mlp_ratio    its DVS128 Gesture code has 4 and 2.00 M parameters; the paper prints 1.50 M, which is ratio 1.
    H and W      its SSA swaps the sides of the map, which only square maps survive; here they keep their places.
    DropPath     its rates are never applied there, so there is none here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from spikeloom.models.checks import check_mlp_ratio
from spikeloom.models.classifier import Classifier
from spikeloom.models.config import configure
from spikeloom.models.official import Family, demand, register_family
from spikeloom.models.registry import UNREAD, Published, register_variant
from spikeloom.spiking_attention import SSA, QKChannelAttention, QKTokenAttention, SpikingMLP
from spikeloom.spiking_attention.layout import check_heads
from spikeloom.spiking_attention.products import Order
from spikeloom.spiking_attention.ssa import check_scale
from spikeloom.synapses import ConvNeuron

PAPER = "Zhou et al. 2024, QKFormer, arXiv:2403.16552"
Mixer = Literal["token", "channel", "ssa"]
MIXERS = ("token", "channel", "ssa")


@dataclass(frozen=True)
class Stem:
    """The patch embeddings of one flavour.

    widths: channels after each convolution of the first embedding, in parts of the first stage's width. pools: which of
    them pool. source: after how many of them its shortcut begins. later: which convolutions of the other embeddings,
    all of two and with the shortcut from their input, pool. stages: how many there are.
    """

    widths: tuple[int, ...]
    pools: tuple[bool, ...]
    source: int
    later: tuple[bool, bool]
    stages: int


STEMS = {
    "cifar": Stem((2, 1), (False, False), 1, (False, True), 3),
    "imagenet": Stem((2, 1, 1), (True, True, False), 1, (True, False), 3),
    "dvs": Stem((8, 4, 2, 1), (False, True, True, True), 2, (False, True), 2),
}


@dataclass(frozen=True)
class QKFormerConfig:
    """Sizes and switches.

    stem: which patch embeddings, see `STEMS`; the first map has H x W ("cifar"), H/4 x W/4 ("imagenet") or H/8 x W/8
    ("dvs") tokens, every further one half as many along each side. embed_dim: width of the last stage; each stage
    before has half of the next. depths: blocks of every stage. mixers: attention of every stage; empty is QK token
    attention in all but the last, which has SSA. scale, order, proj_lif: of the SSA, see there.
    """

    in_channels: int = 3
    input_size: tuple[int, int] = (32, 32)
    num_classes: int = 10
    T: int | None = 4
    stem: Literal["cifar", "imagenet", "dvs"] = "cifar"
    embed_dim: int = 384
    num_heads: int = 8
    depths: tuple[int, ...] = (1, 1, 2)
    mixers: tuple[Mixer, ...] = ()
    mlp_ratio: float = 4.0
    scale: float | Literal["rsqrt_d"] = 0.125
    order: Order = "auto"
    proj_lif: Literal["time", "batch_leak"] = "time"

    def __post_init__(self) -> None:
        if self.stem not in STEMS or not set(self.mixers) <= set(MIXERS):
            raise ValueError(
                f"QKFormerConfig: stem={self.stem!r}, mixers={self.mixers}; expected a stem of "
                f"{', '.join(map(repr, STEMS))} and mixers of {', '.join(map(repr, MIXERS))}."
            )
        stem = STEMS[self.stem]
        if len(self.depths) != stem.stages or len(self.mixers) not in (0, stem.stages):
            raise ValueError(
                f"QKFormerConfig: depths={self.depths} and mixers={self.mixers}; the stem {self.stem!r} is of "
                f"{stem.stages} stages, so expected {stem.stages} depths, and as many mixers or ()."
            )
        part = stem.widths[0] * 2 ** (stem.stages - 1)
        if self.embed_dim < 1 or self.embed_dim % part:
            raise ValueError(
                f"QKFormerConfig.embed_dim is {self.embed_dim}; expected a multiple of {part} (the stem's)."
            )
        for width, mixer in zip(self.widths, self.stage_mixers, strict=True):
            if mixer != "channel":
                check_heads(width, self.num_heads, "QKFormerConfig (every stage's width is a dim)")
        if min(self.in_channels, *self.depths, 1 if self.T is None else self.T) < 1 or self.num_classes < 0:
            raise ValueError(
                f"QKFormerConfig: in_channels={self.in_channels}, depths={self.depths}, T={self.T} must be >= 1, "
                f"num_classes={self.num_classes} >= 0 (0: no classifier)."
            )
        check_mlp_ratio(self.mlp_ratio, self.widths[0], "QKFormerConfig")
        check_scale(self.scale, "QKFormerConfig")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every stage."""
        stages = STEMS[self.stem].stages
        return tuple(self.embed_dim >> (stages - 1 - i) for i in range(stages))

    @property
    def stage_mixers(self) -> tuple[Mixer, ...]:
        """Attention of every stage."""
        before: list[Mixer] = ["token"] * (STEMS[self.stem].stages - 1)
        return self.mixers or (*before, "ssa")


class PatchEmbed(nn.Module):
    """Convolutions and a strided shortcut around the last of them: `[T, B, C, H, W]` -> 0, 1 or 2 `[T, B, C', H', W']`.

    Args:
        widths: channels of the input and after each convolution. pools: whether each is followed by max pooling.
        source: after how many convolutions the shortcut begins.
    """

    def __init__(self, widths: tuple[int, ...], pools: tuple[bool, ...], source: int) -> None:
        super().__init__()
        self.source = source
        self.main = nn.ModuleList(
            ConvNeuron(before, width, pool="before" if pool else "none", spikes=i > 0)
            for i, (before, width, pool) in enumerate(zip(widths[:-1], widths[1:], pools, strict=True))
        )
        stride = 2 ** sum(pools[source:])
        self.shortcut = ConvNeuron(widths[source], widths[-1], 1, stride=stride, spikes=source > 0)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        for layer in self.main[: self.source]:
            x = layer(x)
        begin = x
        for layer in self.main[self.source :]:
            x = layer(x)
        out: Tensor = x + self.shortcut(begin)
        return out


class Block(nn.Module):
    """x + attention(x), then x + MLP(x), on tokens `[T, B, N, C]` of whole numbers."""

    def __init__(self, width: int, mixer: Mixer, config: QKFormerConfig) -> None:
        super().__init__()
        self.attn = mixer_of(width, mixer, config)
        self.mlp = SpikingMLP(width, int(width * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = x + self.attn(x)
        out: Tensor = x + self.mlp(x)
        return out


def mixer_of(width: int, mixer: Mixer, config: QKFormerConfig) -> nn.Module:
    """The attention of a block."""
    if mixer == "token":
        return QKTokenAttention(width, config.num_heads)
    if mixer == "channel":
        return QKChannelAttention(width)
    return SSA(width, config.num_heads, scale=config.scale, order=config.order, proj_lif=config.proj_lif)


class QKFormer(Classifier):
    """Images or frames -> logits `[T, B, num_classes]`."""

    recomputes = True

    def __init__(self, config: QKFormerConfig) -> None:
        super().__init__()
        self.config = config
        stem, widths = STEMS[config.stem], config.widths
        self.stride = 2 ** (sum(stem.pools) + sum(stem.later) * (stem.stages - 1))
        self.num_features = config.embed_dim
        first = (config.in_channels, *(widths[0] // part for part in stem.widths))
        self.embeds = nn.ModuleList([PatchEmbed(first, stem.pools, stem.source)])
        for before, width in pairwise(widths):
            self.embeds.append(PatchEmbed((before, width, width), stem.later, 0))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, mixer, config) for _ in range(depth)))
            for width, mixer, depth in zip(widths, config.stage_mixers, config.depths, strict=True)
        )
        self.reset_classifier(config.num_classes)

    def features(self, frames: Tensor) -> Tensor:
        """Mean over tokens of the last stage: `[T, B, D]`."""
        x = frames
        for embed, blocks in zip(self.embeds, self.stages, strict=True):
            x = self.run(embed, x)
            size = x.shape[3:]
            tokens = self.run_all(blocks, x.flatten(3).transpose(2, 3))  # [T, B, H W, C]
            x = tokens.transpose(2, 3).unflatten(3, size)
        return tokens.mean(2)


_CIFAR = QKFormerConfig()
_IMAGENET = QKFormerConfig(
    stem="imagenet", input_size=(224, 224), num_classes=1000, embed_dim=512, depths=(1, 2, 7), num_heads=8
)
_DVS = QKFormerConfig(
    stem="dvs", in_channels=2, input_size=(128, 128), T=16, embed_dim=256, depths=(1, 1), num_heads=16, mlp_ratio=1.0
)
_LEAK = "with the batches of its evaluation (proj_lif='batch_leak')"


def _register(name: str, says: str, config: QKFormerConfig, *published: Published) -> None:
    register_variant(name, QKFormer, config, says, paper=PAPER, published=published)


_register(
    "qkformer_cifar", "Four blocks up to width 384 for 32 x 32 images.", _CIFAR,
    Published("CIFAR-10", 96.18, _LEAK), Published("CIFAR-100", 81.15, _LEAK),
)  # fmt: skip
_register(
    "qkformer_cifar10dvs", "Two blocks up to width 256 for event frames of 128 x 128.", _DVS,
    Published("CIFAR10-DVS", 84.0, _LEAK),
)  # fmt: skip
_register(
    "qkformer_gesture", "Two blocks up to width 256 for event frames of gestures.",
    replace(_DVS, num_classes=11, mlp_ratio=4.0),
    Published(
        "DVS128 Gesture", 98.6,
        f"quoted from other work, {UNREAD}, for 1.50 M parameters where the authors' code has 2.00 M, {_LEAK}",
    ),
)  # fmt: skip
_register(
    "qkformer_10_384", "Ten blocks up to width 384 for 224 x 224 images.",
    replace(_IMAGENET, embed_dim=384, num_heads=6),
    Published("ImageNet-1k", 78.80, _LEAK),
)  # fmt: skip
_register(
    "qkformer_10_512", "Ten blocks up to width 512 for 224 x 224 images.", _IMAGENET,
    Published("ImageNet-1k", 82.04, _LEAK),
)  # fmt: skip
_register(
    "qkformer_10_768", "Ten blocks up to width 768 for 224 x 224 images.",
    replace(_IMAGENET, embed_dim=768, num_heads=12),
    Published("ImageNet-1k", 84.22, _LEAK),
    Published("ImageNet-1k", 85.25, f"at 288 x 288, {_LEAK}"),
    Published("ImageNet-1k", 85.65, f"at 384 x 384, {_LEAK}"),
)  # fmt: skip


def _build(config: dict[str, Any], state: Mapping[str, Tensor], **options: Any) -> QKFormer:
    """The flavour is read off the patch embeddings; the last neuron of SSA runs as it did when the weights learned."""
    first = {key.removeprefix("patch_embed1.").split("_")[0] for key in state if key.startswith("patch_embed1.")}
    base = _DVS if "proj3" in first else _IMAGENET if "proj2" in first else _CIFAR
    given = {"embed_dim": "embed_dims", "mlp_ratio": "mlp_ratios", "in_channels": "in_channels"}
    given |= {"num_classes": "num_classes", "T": "T"}
    ours: dict[str, Any] = {name: config[theirs] for name, theirs in given.items() if theirs in config}
    if base is _DVS:
        ours.setdefault("T", None)
    elif "depths" in config:
        ahead, depths = base.depths[:-1], config["depths"]
        if not isinstance(depths, int) or depths <= sum(ahead):
            raise ValueError(
                f"The qkformer configuration has depths={depths!r}; expected the number of all blocks, of which "
                f"{' and '.join(map(str, ahead))} go to the first stages, so at least {sum(ahead) + 1}."
            )
        ours["depths"] = (*ahead, depths - sum(ahead))
    if base is _IMAGENET:
        demand("qkformer", config, "num_heads")
        ours["num_heads"] = config["num_heads"]
    return QKFormer(configure(base, {"proj_lif": "batch_leak", **ours, **options}))


def _rename(key: str) -> str:
    key = re.sub(r"^stage(\d)\.(\d+)\.(tssa|ssa)\.", r"stage\1.\2.attn.", key)
    key = re.sub(r"^stage(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.", key).replace(".mlp.mlp", ".mlp.fc")
    return re.sub(r"^patch_embed(\d)\.proj(\d|_res|)_(?=conv|bn)", _embed, key)


def _embed(match: re.Match[str]) -> str:
    """A layer of a patch embedding: in the first they count from none; the others have proj3 (dvs: proj) and proj4."""
    embed, layer = match.groups()
    places = {"": 0, "1": 1, "2": 2, "3": 3} if embed == "1" else {"": 0, "3": 0, "4": 1}
    if layer == "_res":
        return f"embeds.{int(embed) - 1}.shortcut_"
    return f"embeds.{int(embed) - 1}.main.{places[layer]}_" if layer in places else match[0]


_ARGUMENTS = ("embed_dims", "num_heads", "depths", "mlp_ratios", "in_channels", "num_classes", "T")
register_family("qkformer", Family(_build, _rename, (), "qkformer_*", _ARGUMENTS))
