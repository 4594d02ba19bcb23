"""Spikformer: a convolutional stem, then blocks of spiking self-attention and MLP on a stream of whole numbers.

    x = MP(CBL(...))                      four stages, CBL = convolution 3 x 3, batch normalisation, LIF
    x = x + CBL(x)                        relative position
    x = x + SSA(x);  x = x + MLP(x)       `depth` times
    logits[t] = W mean_tokens(x[t])

Paper: Zhou, Zhu, He, Wang, Yan, Tian, Yuan 2023, "Spikformer: When Spiking Neural Network Meets Transformer",
arXiv:2209.15425, with the sizes of the authors' code (ZK-Zhou/spikformer, commit 6212689). Pooling follows the neuron.
The rates of DropPath that this code passes are never applied there, so there is none here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spikeloom.models.checks import check_mlp_ratio
from spikeloom.models.classifier import Classifier, truncated_normal
from spikeloom.models.config import configure
from spikeloom.models.official import Family, demand, register_family
from spikeloom.models.registry import UNREAD, Published, register_variant
from spikeloom.spiking_attention import SSA, SpikingMLP
from spikeloom.spiking_attention.layout import check_heads
from spikeloom.spiking_attention.products import Order
from spikeloom.spiking_attention.ssa import check_scale
from spikeloom.synapses import ConvNeuron

PAPER = "Zhou et al. 2023, Spikformer, arXiv:2209.15425"


@dataclass(frozen=True)
class SpikformerConfig:
    """Sizes and switches.

    pools: which of the four stages of the stem end in max pooling. linear: maps to Q, K and V with a bias, and all maps
    initialised as in vision transformers (the CIFAR code); otherwise as 1 x 1 convolutions without (the other two).
    scale, order: of the attention, see `SSA`. legacy_keys: also hold the parameters that the authors' checkpoints have
    and no forward uses: two layer normalisations per block, and `legacy_positions` > 0 position vectors with a last
    layer normalisation (the code for event frames).
    """

    in_channels: int = 3
    input_size: tuple[int, int] = (32, 32)
    num_classes: int = 10
    T: int | None = 4
    embed_dim: int = 384
    num_heads: int = 12
    depth: int = 4
    mlp_ratio: float = 4.0
    pools: tuple[bool, bool, bool, bool] = (False, False, True, True)
    linear: bool = True
    scale: float | Literal["rsqrt_d"] = 0.125
    order: Order = "auto"
    legacy_keys: bool = False
    legacy_positions: int = 0

    def __post_init__(self) -> None:
        check_heads(self.embed_dim, self.num_heads, "SpikformerConfig")
        if self.embed_dim % 8:
            raise ValueError(f"SpikformerConfig.embed_dim is {self.embed_dim}; expected a multiple of 8 (the stem's).")
        T = 1 if self.T is None else self.T
        if min(self.in_channels, self.depth, T) < 1 or self.num_classes < 0:
            raise ValueError(
                f"SpikformerConfig: in_channels={self.in_channels}, depth={self.depth}, T={self.T} must be >= 1, "
                f"num_classes={self.num_classes} >= 0 (0: no classifier)."
            )
        check_mlp_ratio(self.mlp_ratio, self.embed_dim, "SpikformerConfig")
        check_scale(self.scale, "SpikformerConfig")


class Stem(nn.Module):
    """Spiking patch splitting: frames `[T, B, C, H, W]` -> whole numbers `[T, B, D, H / s, W / s]`."""

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        D = config.embed_dim
        widths = (config.in_channels, D // 8, D // 4, D // 2, D)
        self.stages = nn.Sequential(
            *(
                ConvNeuron(before, width, pool="after" if pool else "none", spikes=i > 0)
                for i, (before, width, pool) in enumerate(zip(widths[:-1], widths[1:], config.pools, strict=True))
            )
        )
        self.rpe = ConvNeuron(D, D, spikes=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = self.stages(x)
        return x + self.rpe(x)


class Block(nn.Module):
    """x + SSA(x), then x + MLP(x), on tokens `[T, B, N, D]` of whole numbers."""

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        D = config.embed_dim
        if config.legacy_keys:
            self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn = SSA(D, config.num_heads, scale=config.scale, order=config.order, bias=config.linear)
        self.mlp = SpikingMLP(D, int(D * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        x = x + self.attn(x)
        return x + self.mlp(x)


class Spikformer(Classifier):
    """Images or frames -> logits `[T, B, num_classes]`."""

    recomputes = True

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        self.config = config
        self.stride = 2 ** sum(config.pools)
        self.num_features = config.embed_dim
        self.stem = Stem(config)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.depth)))
        if config.legacy_keys and config.legacy_positions:
            self.pos_embed = nn.Parameter(torch.zeros(1, config.legacy_positions, config.embed_dim))
            self.norm = nn.LayerNorm(config.embed_dim)
        if config.linear:
            self.blocks.apply(truncated_normal)
        self.reset_classifier(config.num_classes)

    def features(self, frames: Tensor) -> Tensor:
        """Mean over tokens of the last block: `[T, B, D]`."""
        x = self.run(self.stem, frames).flatten(3).transpose(2, 3)
        return self.run_all(self.blocks, x).mean(2)


_CIFAR = SpikformerConfig()
_DVS = SpikformerConfig(
    in_channels=2,
    input_size=(128, 128),
    T=16,
    embed_dim=256,
    num_heads=16,
    depth=2,
    pools=(True,) * 4,
    linear=False,
    scale=0.25,
    legacy_positions=64,
)
_SMALL = SpikformerConfig(in_channels=2, input_size=(32, 32), T=6, pools=(True, True, True, False))
_IMAGENET = SpikformerConfig(input_size=(224, 224), num_classes=1000, pools=(True,) * 4, linear=False)


def _register(
    name: str, says: str, base: SpikformerConfig, dim: int, heads: int, depth: int, *published: Published
) -> None:
    config = replace(base, embed_dim=dim, num_heads=heads, depth=depth)
    register_variant(name, Spikformer, config, says, paper=PAPER, published=published)


_register("spikformer_cifar_2_256", "Two blocks of width 256 for 32 x 32 images.", _CIFAR, 256, 8, 2)
_register(
    "spikformer_cifar_4_256", "Four blocks of width 256 for 32 x 32 images.", _CIFAR, 256, 8, 4,
    Published("CIFAR-10", 93.94, UNREAD), Published("CIFAR-100", 75.96, UNREAD),
)  # fmt: skip
_register(
    "spikformer_cifar_2_384", "Two blocks of width 384 for 32 x 32 images.", _CIFAR, 384, 12, 2,
    Published("CIFAR-10", 94.80, UNREAD), Published("CIFAR-100", 76.95, UNREAD),
)  # fmt: skip
_register(
    "spikformer_cifar_4_384", "Four blocks of width 384 for 32 x 32 images.", _CIFAR, 384, 12, 4,
    Published("CIFAR-10", 95.51, f"400 epochs; 95.19 after 300; {UNREAD}"),
    Published("CIFAR-100", 78.21, f"400 epochs; 77.86 after 300; {UNREAD}"),
)  # fmt: skip
_register(
    "spikformer_dvs_2_256", "Two blocks of width 256 for event frames of 128 x 128.", _DVS, 256, 16, 2,
    Published("CIFAR10-DVS", 80.9, UNREAD), Published("DVS128 Gesture", 98.3, UNREAD),
)  # fmt: skip
_register("spikformer_small", "One block of width 128 for small frames of events; not of the paper.", _SMALL, 128, 4, 1)
for _depth, _dim, _heads, _accuracy, _note in (
    (8, 384, 12, 70.24, UNREAD),
    (6, 512, 8, 72.46, UNREAD),
    (8, 512, 8, 73.38, UNREAD),
    (10, 512, 8, 73.68, UNREAD),
    (8, 768, 12, 74.81, ""),
):
    _register(
        f"spikformer_{_depth}_{_dim}", f"{_depth} blocks of width {_dim} for 224 x 224 images.",
        _IMAGENET, _dim, _heads, _depth, Published("ImageNet-1k", _accuracy, _note),
    )  # fmt: skip


def _build(config: dict[str, Any], state: Mapping[str, Tensor], **options: Any) -> Spikformer:
    """The flavour of the official code is read off its state dict: linear maps, or how many axes a kernel has.

    The ImageNet code takes its T and runs 4 steps whatever it was given; the event code takes none.
    """
    demand("spikformer", config, "num_heads")
    fc1 = state.get("block.0.mlp.fc1_conv.weight")
    base = _CIFAR if fc1 is None else _IMAGENET if fc1.ndim == 4 else _DVS
    given: dict[str, Any] = {"embed_dim": "embed_dims", "depth": "depths", "mlp_ratio": "mlp_ratios"}
    steps = () if base is _IMAGENET else ("T",)
    names = {name: given.get(name, name) for name in (*given, "num_heads", "in_channels", "num_classes", *steps)}
    ours = {name: config[theirs] for name, theirs in names.items() if theirs in config}
    if "pos_embed" in state:
        ours["legacy_positions"] = state["pos_embed"].shape[1]
    if "T" not in config and base is _DVS:
        ours["T"] = None
    return Spikformer(configure(base, {**ours, **options}))


def _rename(key: str) -> str:
    key = key.replace("patch_embed.rpe_", "stem.rpe_").replace("block.", "blocks.", 1)
    return re.sub(r"^patch_embed\.proj_(conv|bn)(\d?)\.", lambda m: f"stem.stages.{m[2] or 0}_{m[1]}.", key)


register_family(
    "spikformer",
    Family(
        _build,
        _rename,
        (r"block\.\d+\.norm[12]\.(weight|bias)", r"norm\.(weight|bias)", "pos_embed"),
        "spikformer_[!v]*",  # spikformer_v2_... is a network of its own
        ("embed_dims", "num_heads", "depths", "mlp_ratios", "in_channels", "num_classes", "T"),
    ),
)
