"""The patch embeddings of Max-Former, MS-QKFormer and their ablations: a chain of convolutions and a shortcut 1 x 1.

    main:      C3, BN, (pool or stride), LIF ... C3, BN, (pool or stride)
    shortcut:  C1, BN, (pool or stride), from the input of one of the chain's convolutions
    u = main + shortcut,    s = LIF(u)

Paper: Fang et al. 2025, arXiv:2505.18608, with the layers and names of the authors' code (bic-L/MaxFormer, commit
6ddd4cc). Pooling (3 x 3, stride 2) comes after the normalisation, on membranes: that is what keeps high frequencies.
The addition follows a normalisation that is not pooled, of the chain's last convolution or of the shortcut, so that it
is one kernel with the neuron behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from spikeloom.spiking_attention.membrane import Pair
from spikeloom.spiking_attention.membrane_conv import MembraneConv
from spikeloom.spiking_attention.normed import ConvNorm
from spikeloom.spiking_attention.pooled_conv import PooledConv
from spikeloom.synapses import ConvNeuron

Size = Literal["same", "stride", "max", "avg"]
"""What a convolution does to the sides of the map: nothing; halve them by its stride, by max or by average pooling."""
EmbedName = Literal[
    "orig", "orig_imagenet", "max", "avg", "max_plus", "orig_later", "one_max", "one_max_first", "qk_init", "qk_stage"
]


@dataclass(frozen=True)
class Link:
    """A convolution of the chain: its name, its channels (the stage's width / part), and what it does to the sides."""

    name: str
    part: int = 1
    size: Size = "same"


@dataclass(frozen=True)
class Plan:
    """An embedding.

    main: the chain. shortcut: a convolution 1 x 1 to the stage's width; the strided one halves as often as the chain
    does beside it. source: before which convolution of the chain it begins. real: the chain reads membranes or an image
    as they are, without a neuron in front.
    """

    main: tuple[Link, ...]
    shortcut: Link
    source: int = 0
    real: bool = False

    @property
    def stride(self) -> int:
        """Pixels in along one side for one out."""
        return _stride(self.main)

    @property
    def beside(self) -> int:
        """The stride of the shortcut."""
        return _stride(self.main[self.source :])

    def reads_spikes(self, i: int) -> bool:
        """Whether convolution i of the chain reads spikes; all but the last fire."""
        return i > 0 or not self.real


def _stride(links: tuple[Link, ...]) -> int:
    return int(2 ** sum(link.size != "same" for link in links))


EMBEDS: dict[str, Plan] = {
    "orig": Plan((Link("proj", 2), Link("embed1")), Link("embed2"), 1, real=True),
    "orig_imagenet": Plan(
        (Link("embed1", 2, "stride"), Link("embed2", 1, "stride"), Link("embed3")),
        Link("embed4", 1, "stride"), 1, real=True,
    ),
    "max": Plan((Link("max_embed1", 1, "max"), Link("embed1")), Link("max_embed2", 1, "max")),
    "avg": Plan((Link("avg_embed1", 1, "avg"), Link("embed1")), Link("avg_embed2", 1, "avg")),
    "max_plus": Plan(
        (Link("proj", 8), Link("max_embed1", 4, "max"), Link("max_embed2", 2, "max"), Link("max_embed3", 1, "max")),
        Link("embed1", 1, "stride"), 2, real=True,
    ),
    "orig_later": Plan((Link("embed1"), Link("orig_embed1", 1, "stride")), Link("embed2", 1, "stride")),
    "one_max": Plan((Link("embed1"), Link("max_embed1", 1, "max")), Link("embed2", 1, "stride")),
    "one_max_first": Plan((Link("max_embed1", 1, "max"), Link("embed1")), Link("embed2", 1, "stride")),
    "qk_init": Plan(
        (Link("proj", 2, "max"), Link("proj1", 1, "max"), Link("proj2")), Link("rpe", 1, "stride"), 1, real=True
    ),
    "qk_stage": Plan((Link("proj3", 1, "max"), Link("proj4")), Link("proj_res", 1, "stride")),
}  # fmt: skip
"""`orig`, `orig_imagenet`, `max_plus`, `qk_init`: made for images and frames. `avg`: the authors' code cannot run it.

`one_max` pools at the end (CIFAR and event code), `one_max_first` at the beginning (ImageNet code); `qk_stage` is
`one_max_first` under the names of MS-QKFormer.
"""


class Embed(nn.Module):
    """A pair (s, u) `[T, B, C, H, W]` -> the pair (LIF(u'), u') `[T, B, C', H / stride, W / stride]`.

    Args:
        name: of EMBEDS. in_channels, width: C, C'.
        last: no neuron follows: the result is (None, u').
    """

    def __init__(self, name: EmbedName, in_channels: int, width: int, *, last: bool = False) -> None:
        super().__init__()
        self.plan = plan = EMBEDS[name]
        ends = len(plan.main) - 1
        sizes = (in_channels, *(width // link.part for link in plan.main))
        self.joins_main = plan.main[-1].size in ("same", "stride")
        self.convs = nn.ModuleDict()
        for i, link in enumerate(plan.main):
            stride, spikes = 2 if link.size == "stride" else 1, plan.reads_spikes(i)
            if i == ends and self.joins_main:
                self.convs[link.name] = MembraneConv(sizes[i], sizes[i + 1], 3, stride=stride, last=last, spikes=spikes)
            elif link.size == "max" or link.size == "avg":
                self.convs[link.name] = PooledConv(sizes[i], sizes[i + 1], 3, link.size, fires=i < ends, spikes=spikes)
            else:
                self.convs[link.name] = ConvNeuron(sizes[i], sizes[i + 1], stride=stride, spikes=spikes)
        source, short, spikes = sizes[plan.source], plan.shortcut, plan.reads_spikes(plan.source)
        if short.size == "max" or short.size == "avg":
            self.convs[short.name] = PooledConv(source, width, 1, short.size, fires=False, spikes=spikes)
        elif self.joins_main:
            self.convs[short.name] = ConvNorm(source, width, 1, stride=plan.beside, spikes=spikes)
        else:
            self.convs[short.name] = MembraneConv(source, width, 1, stride=plan.beside, last=last, spikes=spikes)

    def forward(self, spikes: Tensor | None, u: Tensor) -> Pair:
        """Run all time steps; which of the pair is read is a matter of the plan."""
        x = u if self.plan.real else spikes
        begin = x
        *chain, last = (self.convs[link.name] for link in self.plan.main)
        for i, conv in enumerate(chain):
            begin = x if i == self.plan.source else begin
            x = conv(x)
        begin = x if self.plan.source == len(chain) else begin
        short = self.convs[self.plan.shortcut.name]
        pair: Pair = last(x, short(begin)) if self.joins_main else short(begin, last(x))
        return pair
