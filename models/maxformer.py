"""Max-Former and MS-QKFormer: max pooling in the patch embeddings, and a token mixer of its own for every stage.

    s, u = embed(s, u)                    a new map: sums of convolutions with normalisation, some max-pooled
    s, u = mixer(s, u);  s, u = MLP(s, u)           u' = u + BN(W s ..),  s' = LIF(u');  `depths[i]` times
    logits[t] = W LIF(mean_pixels(u))[t]

Every convolution and linear map but the first reads binary spikes; additions are on the real-valued u (`membrane`). The
claim of the paper: LIF neurons are low-pass filters, so a spiking network needs what keeps high frequencies, which are
max pooling of membranes in the embeddings and depth-wise convolutions in place of attention in the early stages.

Paper: Fang, Zhou, Wang, Ren, Zeng, Li, Zhou, Xu 2025, "Spiking Neural Networks Need High-Frequency Information",
NeurIPS 2025, arXiv:2505.18608, with the sizes of the authors' code (bic-L/MaxFormer, commit 6ddd4cc). MS-QKFormer is
that paper's baseline: QKFormer with membrane shortcuts. Stages take any of `EMBEDS` and `MIXERS`, which are those of
the ablations.

Quirks: attention is scaled by 0.125 whatever the heads' width. An MLP whose hidden width is that of the stage has a
shortcut around its first map (`MembraneMLP`). The authors' ImageNet code takes the mean over time behind the classifier
and the others in front; here logits come per step, so that there is no difference. Their event and ImageNet code takes
frames `[B, T, ...]`, here time is first. The rates of DropPath that they parse reach no model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from spikeloom.models.checks import check_mlp_ratio
from spikeloom.models.classifier import Classifier
from spikeloom.models.maxformer_embed import EMBEDS, Embed, EmbedName
from spikeloom.models.registry import Published, register_variant
from spikeloom.neurons import LIF
from spikeloom.spiking_attention import (
    MembraneMLP,
    MembraneQKToken,
    MembraneSSA,
    MembraneSSAConv,
    PoolMixer,
    membrane_depthwise,
)
from spikeloom.spiking_attention.layout import check_heads
from spikeloom.spiking_attention.membrane import Pair
from spikeloom.spiking_attention.products import ORDERS, Order
from spikeloom.spiking_attention.ssa import check_scale
from spikeloom.synapses import Conv2d, Linear

PAPER = "Fang et al. 2025, Max-Former, arXiv:2505.18608"
MixerName = Literal["identity", "dwc1", "dwc3", "dwc5", "dwc7", "ssa", "ssa_dwc", "qka", "max", "avg"]
MIXERS = ("identity", "dwc1", "dwc3", "dwc5", "dwc7", "ssa", "ssa_dwc", "qka", "max", "avg")
"""None; depth-wise convolutions; spiking self-attention, alone and with one of these; QK token attention; pooling."""
ATTENTION = ("ssa", "ssa_dwc", "qka")
POOLING = ("max", "avg")


@dataclass(frozen=True)
class MaxFormerConfig:
    """Sizes and switches.

    embed_dim: width of the last stage; each stage before has half of the next. embeds, mixers, depths: one entry per
    stage, see `EMBEDS` and `MIXERS`; as many stages as entries. num_heads: of every attention. scale, order: of SSA.
    starts: which weights start from a normal distribution of 0.02: those of the classifier (the authors' CIFAR and
    event code), or of all convolutions and MLPs (their ImageNet code); all others start as torch's do.
    """

    in_channels: int = 3
    input_size: tuple[int, int] = (32, 32)
    num_classes: int = 10
    T: int | None = 4
    embed_dim: int = 384
    num_heads: int = 8
    depths: tuple[int, ...] = (1, 1, 2)
    embeds: tuple[EmbedName, ...] = ("orig", "max", "max")
    mixers: tuple[MixerName, ...] = ("identity", "dwc3", "ssa")
    mlp_ratio: float = 4.0
    scale: float | Literal["rsqrt_d"] = 0.125
    order: Order = "auto"
    starts: Literal["classifier", "convolutions"] = "classifier"

    def __post_init__(self) -> None:
        known = set(self.embeds) <= set(EMBEDS) and set(self.mixers) <= set(MIXERS)
        if not known or self.order not in ORDERS or self.starts not in ("classifier", "convolutions"):
            raise ValueError(
                f"MaxFormerConfig: embeds={self.embeds}, mixers={self.mixers}, order={self.order!r}, "
                f"starts={self.starts!r}; expected embeds of {', '.join(EMBEDS)}, mixers of {', '.join(MIXERS)}, an "
                f"order of {', '.join(ORDERS)}, starts 'classifier' or 'convolutions'."
            )
        if not len(self.depths) == len(self.embeds) == len(self.mixers) > 0:
            raise ValueError(
                f"MaxFormerConfig: depths={self.depths}, embeds={self.embeds}, mixers={self.mixers}; expected one "
                "entry per stage in each."
            )
        halvings = 2 ** (len(self.depths) - 1)
        parts = [link.part << (len(self.depths) - 1 - i) for i, e in enumerate(self.embeds) for link in EMBEDS[e].main]
        if self.embed_dim < 1 or self.embed_dim % max(*parts, halvings):
            raise ValueError(
                f"MaxFormerConfig.embed_dim is {self.embed_dim}; expected a multiple of {max(*parts, halvings)} (each "
                "stage has half the width of the next, and an embedding starts with a part of its stage's)."
            )
        for width, mixer in zip(self.widths, self.mixers, strict=True):
            if mixer in ATTENTION:
                check_heads(width, self.num_heads, "MaxFormerConfig (the stage's width is dim)")
        if min(self.in_channels, *self.depths, 1 if self.T is None else self.T) < 1 or self.num_classes < 0:
            raise ValueError(
                f"MaxFormerConfig: in_channels={self.in_channels}, depths={self.depths}, T={self.T} must be >= 1, "
                f"num_classes={self.num_classes} >= 0 (0: no classifier)."
            )
        check_mlp_ratio(self.mlp_ratio, self.widths[0], "MaxFormerConfig")
        check_scale(self.scale, "MaxFormerConfig")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every stage."""
        stages = len(self.depths)
        return tuple(self.embed_dim >> (stages - 1 - i) for i in range(stages))


def mixer_of(name: MixerName, width: int, config: MaxFormerConfig) -> nn.Module:
    """The token mixer of a block, not for "identity"."""
    if name == "max" or name == "avg":
        return PoolMixer(name)
    if name == "ssa":
        return MembraneSSA(width, config.num_heads, scale=config.scale, order=config.order)
    if name == "ssa_dwc":
        return MembraneSSAConv(width, config.num_heads, scale=config.scale, order=config.order)
    if name == "qka":
        return MembraneQKToken(width, config.num_heads)
    return membrane_depthwise(width, int(name.removeprefix("dwc")))


class Block(nn.Module):
    """Mixer, then MLP, on a pair (LIF(u), u) of maps `[T, B, C, H, W]`; in front of pooling (None, u) will do.

    Args:
        last: no neuron follows: the result is (None, u).
    """

    def __init__(self, name: MixerName, width: int, config: MaxFormerConfig, *, last: bool) -> None:
        super().__init__()
        self.mixer = None if name == "identity" else mixer_of(name, width, config)
        self.mlp = MembraneMLP(width, int(width * config.mlp_ratio), last=last)

    def forward(self, spikes: Tensor | None, u: Tensor) -> Pair:
        """Run all time steps."""
        if self.mixer is not None:
            spikes, u = self.mixer(spikes, u)
        pair: Pair = self.mlp(spikes, u)
        return pair


class MaxFormer(Classifier):
    """Images or frames -> logits `[T, B, num_classes]`."""

    recomputes = True

    def __init__(self, config: MaxFormerConfig) -> None:
        super().__init__()
        self.config = config
        plans = [EMBEDS[name] for name in config.embeds]
        self.stride = 1
        for plan in plans:
            self.stride *= plan.stride
        self.num_features = config.embed_dim
        self.input_lif = None if plans[0].real else LIF()
        self.embeds, self.stages = nn.ModuleList(), nn.ModuleList()
        before = config.in_channels
        for i, (width, mixer, depth) in enumerate(zip(config.widths, config.mixers, config.depths, strict=True)):
            pooled = mixer in POOLING  # reads membranes, as the end of the network and `real` embeddings do
            after = i + 1 == len(plans) or plans[i + 1].real
            self.embeds.append(Embed(config.embeds[i], before, width, last=pooled))
            self.stages.append(
                nn.ModuleList(
                    Block(mixer, width, config, last=after if j + 1 == depth else pooled) for j in range(depth)
                )
            )
            before = width
        self.head_lif = LIF()
        if config.starts == "convolutions":
            _start(self)
        self.reset_classifier(config.num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier in the place of the old one; 0 takes it away. It starts as `starts` says."""
        super().reset_classifier(num_classes)
        if self.config.starts == "convolutions" and isinstance(self.head, nn.Linear):
            self.head.reset_parameters()

    def features(self, frames: Tensor) -> Tensor:
        """Spikes of the neurons on the mean over space of the stream: `[T, B, D]`."""
        u = frames
        spikes: Tensor | None = None if self.input_lif is None else self.input_lif(u)
        for embed, blocks in zip(self.embeds, self.stages, strict=True):
            spikes, u = self.run(embed, spikes, u)
            for block in blocks.children():
                spikes, u = self.run(block, spikes, u)
        fired: Tensor = self.head_lif(u.mean((3, 4)))
        return fired


def _start(model: nn.Module) -> None:
    """Weights from a normal distribution of 0.02 and biases 0, in convolutions and in MLPs, which are some of 1 x 1."""
    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, Conv2d)]
    for module in model.modules():
        if isinstance(module, MembraneMLP):
            layers += [module.fc1.synapse, module.fc2.synapse]
    for layer in layers:
        assert isinstance(layer, Conv2d | Linear)
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


CIFAR = MaxFormerConfig()
DVS = MaxFormerConfig(
    in_channels=2,
    input_size=(128, 128),
    T=16,
    embed_dim=256,
    num_heads=16,
    depths=(1, 1),
    embeds=("max_plus", "max"),
    mixers=("dwc3", "ssa"),
    mlp_ratio=1.0,
)
IMAGENET = MaxFormerConfig(
    input_size=(224, 224),
    num_classes=1000,
    num_heads=6,
    depths=(1, 2, 7),
    embeds=("orig_imagenet", "max", "max"),
    mixers=("dwc7", "dwc5", "ssa"),
    starts="convolutions",
)
QK_CIFAR = replace(CIFAR, embeds=("orig", "one_max", "one_max"), mixers=("qka", "qka", "ssa"))
QK_DVS = replace(DVS, embeds=("max_plus", "one_max"), mixers=("qka", "ssa"))
QK_IMAGENET = replace(IMAGENET, embeds=("qk_init", "qk_stage", "qk_stage"), mixers=("qka", "qka", "ssa"))
"""The networks of the paper, for its flavours of data; QK: MS-QKFormer."""
_BEST = "best epoch on the test set"
_LOG = "best epoch on the test set; the last of the authors' log has"


def _register(name: str, says: str, config: MaxFormerConfig, *published: Published) -> None:
    register_variant(name, MaxFormer, config, says, paper=PAPER, published=published)


_register(
    "maxformer_cifar_4_384", "Four blocks up to width 384 for 32 x 32 images.", CIFAR,
    Published("CIFAR-10", 97.04, f"{_LOG} 96.79"), Published("CIFAR-100", 82.65, f"{_LOG} 82.44"),
)  # fmt: skip
_register(
    "maxformer_dvs_2_256", "Two blocks up to width 256 for event frames of 128 x 128.", DVS,
    Published("CIFAR10-DVS", 84.2, f"{_LOG} 82.3"), Published("DVS128 Gesture", 98.6, f"{_LOG} 96.53"),
)  # fmt: skip
_register(
    "ms_qkformer_cifar_4_384", "QKFormer with membrane shortcuts for 32 x 32 images.", QK_CIFAR,
    Published("CIFAR-10", 96.84, f"{_BEST}; for 6.74 M parameters where this has 6.71 M"),
    Published("CIFAR-100", 81.57, _BEST),
)  # fmt: skip
_register(
    "ms_qkformer_dvs_2_256", "QKFormer with membrane shortcuts for event frames of 128 x 128.", QK_DVS,
    Published("CIFAR10-DVS", 82.3, f"{_BEST}; the published code cannot run it"),
    Published("DVS128 Gesture", 98.6, f"{_BEST}; the published code cannot run it"),
)  # fmt: skip
_PUBLISHED = {
    384: (Published("ImageNet-1k", 77.82, f"{_LOG} 77.49"),),
    512: (
        Published("ImageNet-1k", 79.86, _BEST),
        Published("ImageNet-1k", 75.47, f"with T=1; {_LOG} 75.21"),
    ),
    768: (
        Published("ImageNet-1k", 82.39, f"{_LOG} 82.27"),
        Published("ImageNet-1k", 78.60, f"with T=1; {_LOG} 78.60"),
    ),
}
_PUBLISHED_QK = {
    384: (Published("ImageNet-1k", 76.48, _BEST),),
    512: (),
    768: (Published("ImageNet-1k", 77.78, f"with T=1; {_BEST}"),),
}
for _dim in (384, 512, 768):
    _register(
        f"maxformer_10_{_dim}", f"Ten blocks up to width {_dim} for 224 x 224 images.",
        replace(IMAGENET, embed_dim=_dim, num_heads=_dim // 64), *_PUBLISHED[_dim],
    )  # fmt: skip
    _register(
        f"ms_qkformer_10_{_dim}", f"QKFormer with membrane shortcuts, up to width {_dim}, for 224 x 224 images.",
        replace(QK_IMAGENET, embed_dim=_dim, num_heads=_dim // 64), *_PUBLISHED_QK[_dim],
    )  # fmt: skip
