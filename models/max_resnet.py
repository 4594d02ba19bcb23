"""Max-ResNet: MS-ResNet with a max pooling of membranes in every block that halves the map.

    s, u = LIF(v), v = BN(C3 x)                                    no pooling
    s, u = u' + id,  u' = BN(C3 LIF(BN(C3 s)))                     a block
    s, u = u' + id,  u' = BN(C3 LIF(P(BN(C3 s))))                  the first of every stage but the first, P: 3 x 3, /2
    id   = u, or BN(C1 u) where the width or the size changes
    logits[t] = W mean_pixels(LIF(u))[t]

Paper: Fang et al. 2025, "Spiking Neural Networks Need High-Frequency Information", NeurIPS 2025, arXiv:2505.18608, with
the sizes of the authors' code (bic-L/MaxFormer, commit 6ddd4cc), which has three stages of 3, 3 and 2 blocks. The
network of four stages is not in that code: `max_resnet18_2222` is our reconstruction, with the widths of ResNet-18. It
has 11,220,132 parameters with 100 classes, and the paper prints 11.22 M.

Quirks: the shortcuts 1 x 1 read the membranes u as they are, so they multiply and are no accumulations of spikes. The
neuron comes before the mean over pixels, other than in Max-Former. Convolutions 3 x 3 have stride 1; pooling halves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from spikeloom.models.by_order import Entries, named, of_conv, of_norm
from spikeloom.models.classifier import Classifier
from spikeloom.models.config import configure
from spikeloom.models.official import Family, register_family
from spikeloom.models.registry import Published, register_variant
from spikeloom.neurons import LIF
from spikeloom.spiking_attention.membrane import Pair
from spikeloom.spiking_attention.membrane_conv import MembraneConv
from spikeloom.spiking_attention.normed import ConvNorm
from spikeloom.spiking_attention.pooled_conv import PooledConv
from spikeloom.synapses import Conv2d, ConvNeuron, NormNeuron

PAPER = "Fang et al. 2025, Max-Former, arXiv:2505.18608"


@dataclass(frozen=True)
class MaxResNetConfig:
    """Sizes.

    stem_width: channels behind the first convolution. widths, depths: channels and blocks of every stage; each but
    the first halves the sides of the map.
    """

    in_channels: int = 3
    input_size: tuple[int, int] = (32, 32)
    num_classes: int = 10
    T: int | None = 4
    stem_width: int = 64
    widths: tuple[int, ...] = (128, 256, 512)
    depths: tuple[int, ...] = (3, 3, 2)

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.depths) > 0:
            raise ValueError(
                f"MaxResNetConfig: widths={self.widths}, depths={self.depths}; expected one entry per stage in each."
            )
        sizes = (self.in_channels, self.stem_width, *self.widths, *self.depths, 1 if self.T is None else self.T)
        if min(sizes) < 1 or self.num_classes < 0:
            raise ValueError(
                f"MaxResNetConfig: in_channels={self.in_channels}, stem_width={self.stem_width}, widths={self.widths}, "
                f"depths={self.depths}, T={self.T} must be >= 1, num_classes={self.num_classes} >= 0 "
                "(0: no classifier)."
            )


class Stem(nn.Module):
    """Convolution 3 x 3, BatchNorm, LIF: frames `[T, B, C, H, W]` -> the pair (LIF(u), u)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.synapse = Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.fire = NormNeuron(width, LIF(), emit=True)

    def forward(self, x: Tensor) -> Pair:
        """Run all time steps."""
        spikes, u = self.fire(self.synapse(x))
        return spikes, u


class Block(nn.Module):
    """Two convolutions 3 x 3 and the shortcut on a pair (LIF(u), u) of maps `[T, B, C, H, W]`.

    Args:
        in_channels, width: C before and after.
        halves: with max pooling behind the first convolution, and the shortcut's stride of 2.
    """

    def __init__(self, in_channels: int, width: int, *, halves: bool) -> None:
        super().__init__()
        if halves:
            self.conv1: nn.Module = PooledConv(in_channels, width, 3, "max", fires=True, spikes=True)
        else:
            self.conv1 = ConvNeuron(in_channels, width, spikes=True)
        self.conv2 = MembraneConv(width, width)
        changed = halves or in_channels != width
        self.shortcut = ConvNorm(in_channels, width, 1, stride=1 + halves) if changed else None

    def forward(self, spikes: Tensor, u: Tensor) -> Pair:
        """Run all time steps."""
        pair: Pair = self.conv2(self.conv1(spikes), u if self.shortcut is None else self.shortcut(u))
        return pair


class MaxResNet(Classifier):
    """Images or frames -> logits `[T, B, num_classes]`."""

    truncated_head, recomputes = False, True

    def __init__(self, config: MaxResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stride = 2 ** (len(config.widths) - 1)
        self.num_features = config.widths[-1]
        self.stem = Stem(config.in_channels, config.stem_width)
        self.stages = nn.ModuleList()
        before = config.stem_width
        for s, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            blocks = nn.ModuleList()
            for i in range(depth):
                blocks.append(Block(before, width, halves=s > 0 and i == 0))
                before = width
            self.stages.append(blocks)
        self.reset_classifier(config.num_classes)

    def features(self, frames: Tensor) -> Tensor:
        """Mean over pixels of the last spikes: `[T, B, D]`."""
        spikes, u = self.run(self.stem, frames)
        for blocks in self.stages:
            for block in blocks.children():
                spikes, u = self.run(block, spikes, u)
        rates: Tensor = spikes.mean((3, 4))
        return rates


RESNET18 = MaxResNetConfig()
register_variant(
    "max_resnet18", MaxResNet, RESNET18, "Residual network of 3, 3 and 2 blocks for 32 x 32 images.", paper=PAPER,
    published=(Published("CIFAR-10", 97.17), Published("CIFAR-100", 83.06)),
)  # fmt: skip
register_variant(
    "max_resnet18_2222", MaxResNet, replace(RESNET18, widths=(64, 128, 256, 512), depths=(2, 2, 2, 2)),
    "Residual network of four stages of 2 blocks for 32 x 32 images, our reconstruction.", paper=PAPER,
    published=(
        Published("CIFAR-10", 96.81, "a network that is not in the published code, here reconstructed"),
        Published("CIFAR-100", 81.54, "a network that is not in the published code, here reconstructed"),
    ),
)  # fmt: skip


def entries(config: MaxResNetConfig) -> Entries:
    """Names and shapes of the official state dict of a network, in its order."""
    before = config.stem_width
    found = of_conv("conv1", before, config.in_channels, 3, 3) | of_norm("bn1", before)
    for s, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        for i in range(depth):
            block = f"layer{s + 1}.{i}."
            found |= of_conv(f"{block}conv1", width, before, 3, 3) | of_norm(f"{block}bn1", width)
            found |= of_conv(f"{block}conv2", width, width, 3, 3) | of_norm(f"{block}bn2", width)
            if before != width or (s > 0 and i == 0):
                found |= of_conv(f"{block}downsample.1", width, before, 1, 1) | of_norm(f"{block}downsample.2", width)
            before = width
    return found | of_conv("fc1", config.num_classes, before, bias=True) if config.num_classes else found


def _shown(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of our configuration that the names and shapes of a state dict show; empty for other names."""
    stem, head = state.get("conv1.weight"), state.get("fc1.weight")
    widths: list[int] = []
    depths: list[int] = []
    while (first := state.get(f"layer{len(widths) + 1}.0.conv1.weight")) is not None:
        found = [re.match(rf"layer{len(widths) + 1}\.(\d+)\.", key) for key in state]
        depths.append(len({match[1] for match in found if match}))
        widths.append(first.shape[0])
    if stem is None or not widths:
        return {}
    return {
        "stem_width": stem.shape[0],
        "in_channels": stem.shape[1],
        "widths": tuple(widths),
        "depths": tuple(depths),
        "num_classes": 0 if head is None else head.shape[0],
    }


def _build(config: dict[str, Any], state: dict[str, Tensor], **options: Any) -> MaxResNet:
    """By name if the names are the code's, else by the order of its network; then `state` gets the names."""
    given: dict[str, Any] = {name: config[name] for name in ("num_classes", "T") if name in config}
    shown = _shown(state)
    by_name = configure(RESNET18, {**shown, **given, **options}) if shown else None
    by_order = configure(RESNET18, {**given, **options})
    taken = named(state, None if by_name is None else entries(by_name), {"CIFAR": entries(by_order)}, "max_resnet")
    return MaxResNet(by_order if taken is not None or by_name is None else by_name)


def _rename(key: str) -> str:
    key = re.sub(r"^(conv|bn)1\.", r"stem_\1.", key)
    key = re.sub(r"^layer(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.", key)
    key = re.sub(r"\.(conv|bn)([12])\.", r".conv\2_\1.", key)
    key = key.replace(".downsample.1.", ".shortcut_conv.").replace(".downsample.2.", ".shortcut_bn.")
    return re.sub(r"^fc1\.", "head.", key)


register_family("max_resnet", Family(_build, _rename, (), "max_resnet*", ("num_classes", "T")))
