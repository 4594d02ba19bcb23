"""Spikformer V2: a stem of strided convolutions and residual pairs, then the blocks of Spikformer. Our reconstruction.

    y = LIF(BN(conv 2 x 2, stride 2 (x)))                               four stages, widths D/8, D/4, D/2, D
    x = y (+) LIF(BN(conv 3 x 3 (LIF(BN(conv 3 x 3 (y))))))             c -> 4c -> c
    x = x + SSA(x);  x = x + MLP(x)                                     `depth` times, as in Spikformer
    logits[t] = W mean_tokens(x[t])
    (+): y + b, or IAND: (1 - b) y

Paper: Zhou et al. 2024, "Spikformer V2: Join the High Accuracy Club on ImageNet with an SNN Ticket", arXiv:2401.02020.
No official code exists. The stem is the regular one whose size gives the published parameter counts of two widths; what
is certain, inferred and chosen is told apart in docs/models/spikformer_v2.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from spikeloom.models.checks import check_mlp_ratio
from spikeloom.models.classifier import Classifier
from spikeloom.models.registry import Published, register_variant
from spikeloom.models.spikformer import Block, SpikformerConfig
from spikeloom.spiking_attention.layout import check_heads
from spikeloom.spiking_attention.products import Order
from spikeloom.spiking_attention.ssa import check_scale
from spikeloom.synapses import ConvNeuron

PAPER = "Zhou et al. 2024, Spikformer V2, arXiv:2401.02020; our reconstruction, no official code exists"

Join = Literal["add", "iand"]


@dataclass(frozen=True)
class SpikformerV2Config:
    """Sizes and switches.

    stages: of the stem, each with half of its input's side and twice its width; the last one has `embed_dim` channels.
    expansion: how many times wider the middle of a residual pair is. join: how the pair's spikes b meet the stream y of
    its stage: `add` makes whole numbers 0, 1, 2, `iand` keeps spikes, (1 - b) y. scale, order: of the attention, see
    `SSA`.
    """

    in_channels: int = 3
    input_size: tuple[int, int] = (224, 224)
    num_classes: int = 1000
    T: int | None = 4
    embed_dim: int = 512
    num_heads: int = 8
    depth: int = 8
    mlp_ratio: float = 4.0
    stages: int = 4
    expansion: int = 4
    join: Join = "add"
    scale: float | Literal["rsqrt_d"] = 0.125
    order: Order = "auto"

    def __post_init__(self) -> None:
        check_heads(self.embed_dim, self.num_heads, "SpikformerV2Config")
        sizes = (self.in_channels, self.depth, self.stages, self.expansion, 1 if self.T is None else self.T)
        if min(sizes) < 1 or self.num_classes < 0:
            raise ValueError(
                f"SpikformerV2Config: in_channels={self.in_channels}, depth={self.depth}, stages={self.stages}, "
                f"expansion={self.expansion}, T={self.T} must be >= 1, num_classes={self.num_classes} >= 0 (0: no "
                "classifier)."
            )
        check_mlp_ratio(self.mlp_ratio, self.embed_dim, "SpikformerV2Config")
        check_scale(self.scale, "SpikformerV2Config")
        unit = max(8, 2 ** (self.stages - 1))
        if self.embed_dim % unit:
            raise ValueError(
                f"SpikformerV2Config.embed_dim is {self.embed_dim} with stages={self.stages}; expected a multiple of "
                f"{unit}: of 8, as in Spikformer, and the width doubles from each stage to the next."
            )
        if self.join not in ("add", "iand"):
            raise ValueError(f"SpikformerV2Config.join is {self.join!r}; expected 'add' or 'iand'.")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels after each stage."""
        return tuple(self.embed_dim >> (self.stages - 1 - i) for i in range(self.stages))


class Stage(nn.Module):
    """`[T, B, C, H, W]` -> `[T, B, C', H / 2, W / 2]`: halve the side, then add (or IAND) a residual pair."""

    def __init__(self, in_channels: int, width: int, expansion: int, join: Join) -> None:
        super().__init__()
        self.down = ConvNeuron(in_channels, width, 2, stride=2, padding=0)
        self.expand = ConvNeuron(width, expansion * width, spikes=True)
        self.contract = ConvNeuron(expansion * width, width, spikes=True)
        self.iand = join == "iand"

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        y = self.down(x)
        return self.join(y, self.contract(self.expand(y)))

    def join(self, y: Tensor, branch: Tensor) -> Tensor:
        """y (+) branch, both spikes `[T, B, C, H, W]`; 0 wherever both are."""
        return (1 - branch) * y if self.iand else y + branch


class SpikformerV2(Classifier):
    """Images or frames -> logits `[T, B, num_classes]`. Our reconstruction of the paper's network."""

    def __init__(self, config: SpikformerV2Config) -> None:
        super().__init__()
        self.config = config
        self.stride = 2**config.stages
        self.num_features = config.embed_dim
        widths = (config.in_channels, *config.widths)
        self.stem = nn.Sequential(
            *(Stage(before, width, config.expansion, config.join) for before, width in pairwise(widths))
        )
        names = ("embed_dim", "num_heads", "mlp_ratio", "scale", "order")
        block = SpikformerConfig(linear=False, **{name: getattr(config, name) for name in names})
        self.blocks = nn.Sequential(*(Block(block) for _ in range(config.depth)))
        self.reset_classifier(config.num_classes)

    def features(self, frames: Tensor) -> Tensor:
        """Mean over tokens of the last block: `[T, B, D]`."""
        tokens: Tensor = self.blocks(self.stem(frames).flatten(3).transpose(2, 3))
        return tokens.mean(2)


_BASE = SpikformerV2Config()


def _register(dim: int, heads: int, depth: int, T: int, *published: Published) -> None:
    steps = "one time step" if T == 1 else f"{T} time steps"
    register_variant(
        f"spikformer_v2_{depth}_{dim}",
        SpikformerV2,
        replace(_BASE, embed_dim=dim, num_heads=heads, depth=depth, T=T),
        f"{depth} blocks of width {dim} for 224 x 224 images, {steps}; our reconstruction, no official code exists.",
        paper=PAPER,
        published=published,
    )


_PAPERS = "the paper's own network, of which ours is a reconstruction"
_register(384, 12, 8, 4, Published("ImageNet-1k", 78.80, _PAPERS))
_register(512, 8, 8, 4, Published("ImageNet-1k", 80.38, _PAPERS))
_register(512, 8, 12, 1)
_register(768, 12, 16, 1, Published("ImageNet-1k", 81.10, f"T=1 after self-supervised pre-training; {_PAPERS}"))
