"""Spike-driven Transformer V3 (E-SpikeFormer), base models: integer spikes, membranes on the shortcut, one time step.

    x = BN(Conv(S(x)))                                             in front of each stage, the first without S
    x = x + SepConv(x);  x = x + BN(C2 S(BN(C1 S(x))))             convolutional block, the first three stages
    x = x + SepConv(x);  x = x + ESDSA(x);  x = x + MLP(x)         attention block, the last two
    logits = W S'(mean_pixels(x))                                  S': 0 to 4, not divided by 4

Paper: Yao et al. 2025, "Scaling Spike-driven Transformer with Efficient Spike Firing Approximation Training",
arXiv:2411.16061, with the sizes of `Model_Base` in the authors' code (BICLab/Spike-Driven-Transformer-V3, commit
00fcd1f). S is memoryless and fires up to four spikes, see `spiking_attention.integer`. The rates of DropPath that this
code passes are never applied there, so there is none here. Of `Model_Large` only the attention is built (`ESDSALarge`).
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
from spikeloom.models.registry import Published, register_variant
from spikeloom.spiking_attention import ESDSA, ConvBlock, IntegerMLP, SepConv
from spikeloom.spiking_attention.integer import integer_neuron
from spikeloom.spiking_attention.layout import check_heads
from spikeloom.spiking_attention.normed import ConvNorm
from spikeloom.spiking_attention.products import ORDERS, Order

PAPER = "Yao et al. 2025, Spike-driven Transformer V3, arXiv:2411.16061"


@dataclass(frozen=True)
class SDTV3Config:
    """Sizes and switches.

    embed_dims: widths e0 to e3; the five stages are e0 / 2, e0, e1 (convolutional), e2 and e3 (attention) wide, on maps
    of 1/2, 1/4, 1/8, 1/16 and 1/16 of the side. depths: blocks per stage. num_heads: of both attention stages.
    mlp_ratio: channels inside the channel mixers of all blocks per channel outside. order: of the attention's product,
    see `ESDSA`. max_spikes: of every neuron in one step, 4 ("1 x 4") or 8. T: 1 for images; the neurons have no memory,
    so more steps are more images.
    """

    in_channels: int = 3
    input_size: tuple[int, int] = (224, 224)
    num_classes: int = 1000
    T: int | None = 1
    embed_dims: tuple[int, int, int, int] = (64, 128, 256, 360)
    depths: tuple[int, int, int, int, int] = (1, 1, 2, 6, 2)
    num_heads: int = 8
    mlp_ratio: float = 4.0
    order: Order = "auto"
    max_spikes: int = 4

    def __post_init__(self) -> None:
        if self.embed_dims[0] % 2 or min(self.embed_dims) < 1:
            raise ValueError(f"SDTV3Config.embed_dims is {self.embed_dims}; expected widths >= 1, the first one even.")
        for width in self.embed_dims[2:]:
            check_heads(width, self.num_heads, "SDTV3Config.embed_dims")
        if min(self.depths) < 0 or min(self.in_channels, 1 if self.T is None else self.T) < 1 or self.num_classes < 0:
            raise ValueError(
                f"SDTV3Config: in_channels={self.in_channels} and T={self.T} must be >= 1, depths={self.depths} and "
                f"num_classes={self.num_classes} >= 0 (0: no classifier)."
            )
        check_mlp_ratio(self.mlp_ratio, min(self.embed_dims[0] // 2, *self.embed_dims[1:]), "SDTV3Config")
        if self.order not in ORDERS:
            raise ValueError(f"SDTV3Config.order is {self.order!r}; expected {', '.join(map(repr, ORDERS))}.")


class Downsample(nn.Module):
    """Integer spikes (max_spikes=0: none, for the network's input), convolution with bias, BatchNorm on maps."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, max_spikes: int) -> None:
        super().__init__()
        self.neuron = integer_neuron(max_spikes) if max_spikes else nn.Identity()
        conv = ConvNorm(in_channels, out_channels, kernel, stride=stride, bias=True)
        self.synapse, self.norm = conv.synapse, conv.norm

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        membranes: Tensor = self.norm(self.synapse(self.neuron(x)))
        return membranes


class AttentionBlock(nn.Module):
    """x + SepConv(x), x + ESDSA(x), x + MLP(x) on maps `[T, B, C, H, W]` of membranes."""

    def __init__(self, dim: int, config: SDTV3Config) -> None:
        super().__init__()
        self.sep = SepConv(dim, kernel=3, max_spikes=config.max_spikes)
        self.attn = ESDSA(dim, config.num_heads, order=config.order, max_spikes=config.max_spikes)
        self.mlp = IntegerMLP(dim, int(dim * config.mlp_ratio), max_spikes=config.max_spikes)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = x + self.sep(x)
        x = x + self.attn(x)
        return x + self.mlp(x)


class Stage(nn.Module):
    """A downsampling and its blocks, on maps `[T, B, C, H, W]` of membranes."""

    def __init__(self, down: Downsample, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        maps: Tensor = self.blocks(self.down(x))
        return maps


class SDTV3(Classifier):
    """Images or frames -> logits `[T, B, num_classes]`."""

    stride = 16

    def __init__(self, config: SDTV3Config) -> None:
        super().__init__()
        self.config = config
        e0, e1, e2, e3 = config.embed_dims
        widths = (config.in_channels, e0 // 2, e0, e1, e2, e3)
        self.num_features = e3
        self.stages = nn.Sequential()
        for i, (before, width, depth) in enumerate(zip(widths[:-1], widths[1:], config.depths, strict=True)):
            limit = config.max_spikes if i else 0
            down = Downsample(before, width, 7 if i == 0 else 3, 1 if i == 4 else 2, limit)
            blocks: list[nn.Module] = [
                ConvBlock(width, ratio=config.mlp_ratio, max_spikes=config.max_spikes)
                if i < 3
                else AttentionBlock(width, config)
                for _ in range(depth)
            ]
            self.stages.append(Stage(down, blocks))
        self.neuron = integer_neuron(config.max_spikes, norm=1.0)
        self.reset_classifier(config.num_classes)

    def features(self, frames: Tensor) -> Tensor:
        """Whole numbers from 0 to `max_spikes`, the spikes of the mean over pixels: `[T, B, e3]`."""
        spikes: Tensor = self.neuron(self.stages(frames).mean((3, 4)))
        return spikes


_IMAGENET = SDTV3Config()


def _register(letter: str, dims: tuple[int, int, int, int], *published: Published) -> None:
    says = f"Widths {'-'.join(map(str, dims))} for 224 x 224 images, one step of up to four spikes."
    config = replace(_IMAGENET, embed_dims=dims)
    register_variant(f"sdt_v3_{letter}", SDTV3, config, says, paper=PAPER, published=published)


_register("t", (24, 48, 96, 128))
_register("s", (32, 64, 128, 192))
_register("m", (48, 96, 192, 240), Published("ImageNet-1k", 78.5, "1 step of up to 4 spikes"))
_register("l", (64, 128, 256, 360), Published("ImageNet-1k", 79.8, "1 step of up to 4 spikes"))


def _build(config: dict[str, Any], state: Mapping[str, Tensor], **options: Any) -> SDTV3:
    """The official `depths` only sizes a list that nothing reads: the numbers of blocks are fixed."""
    demand("sdt_v3", config, "num_heads")
    given = {"embed_dims": "embed_dim", "mlp_ratio": "mlp_ratios"}
    names = {name: given.get(name, name) for name in (*given, "num_heads", "in_channels", "num_classes")}
    ours = {name: config[theirs] for name, theirs in names.items() if theirs in config}
    return SDTV3(configure(_IMAGENET, {**ours, **options}))


_PLACES = {
    "downsample1_1.encode": "stages.0.down",
    "downsample1_2.encode": "stages.1.down",
    "downsample2.encode": "stages.2.down",
    "downsample3.encode": "stages.3.down",
    "downsample4.encode": "stages.4.down",
    "ConvBlock1_1.0.": "stages.0.blocks.0.",
    "ConvBlock1_2.0.": "stages.1.blocks.0.",
    "ConvBlock2_1.0.": "stages.2.blocks.0.",
    "ConvBlock2_2.0.": "stages.2.blocks.1.",
    "block3.": "stages.3.blocks.",
    "block4.": "stages.4.blocks.",
}


def _rename(key: str) -> str:
    """Places of the official modules in ours, and `x_conv.0`, `x_conv.1` as the `x_conv`, `x_bn` of the convention."""
    for theirs, ours in _PLACES.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
    key = re.sub(r"(^|\.)[Cc]onv\.", r"\1sep.", key)
    key = re.sub(r"\b(pw|dw)conv(\d?)\.([01])\.", lambda m: f"{m[1]}{m[2]}_{('conv', 'bn')[int(m[3])]}.", key)
    key = re.sub(r"\b(conv|bn)([12])\.(?=[a-z])", r"conv\2_\1.", key)
    return re.sub(r"\b([qkv]|proj)_conv\.([01])\.(?=[a-z])", lambda m: f"{m[1]}_{('conv', 'bn')[int(m[2])]}.", key)


_ARGUMENTS = ("embed_dim", "num_heads", "depths", "mlp_ratios", "in_channels", "num_classes", "T")
register_family("sdt_v3", Family(_build, _rename, (), "sdt_v3_*", _ARGUMENTS))
