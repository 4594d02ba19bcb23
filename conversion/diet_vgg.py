"""DIET-SNN's networks: a VGG of bias-free layers and DIET neurons, and the ReLU network that it is made from.

    image -> (convolution 3 x 3, neurons, dropout or 2 x 2 average pooling) ... -> (linear, neurons, dropout) ...
          -> linear -> logits of every step

The image is shown unchanged at every step (direct encoding), so the first convolution works on analogue values and all
others on spikes of 0 and 1 (pooled: multiples of 1/4). Nothing fires behind the last linear map: its outputs, summed
over all steps, are the decision. Where there is a pool it takes the place of the dropout. Dropout draws one mask per
sample for all steps.

Paper: Rathi and Roy 2021, arXiv:2008.03658 (DIET-SNN); Chowdhury, Rathi, Roy, "One Timestep is All You Need", 2021,
arXiv:2110.05929 (the same networks, pruned in time). Official code: nitin-rathi/DIET-SNN, VGG_SNN_STDB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from spikeloom.models.classifier import Classifier
from spikeloom.neurons.diet import DIET
from spikeloom.synapses import AvgPool2d, Conv2d, Dropout, Flatten, Linear

VGG9: tuple[int | str, ...] = (64, "A", 128, 256, "A", 256, 512, "A", 512, "A", 512)
VGG16: tuple[int | str, ...] = (
    *(64, 64, "A", 128, 128, "A", 256, 256, 256, "A"),
    *(512, 512, 512, "A", 512, 512, 512),
)


@dataclass(frozen=True)
class DietConfig:
    """layers: channels of each convolution, "A" for a pool behind the one in front. hidden: widths of linear layers.

    input_size: (H, W) of the images. T: steps that an image is shown for. dropout: where there is no pool. gamma:
    height of the surrogate derivative.
    """

    layers: tuple[int | str, ...] = VGG16
    hidden: tuple[int, ...] = (4096, 4096)
    num_classes: int = 10
    in_channels: int = 3
    input_size: tuple[int, int] = (32, 32)
    T: int | None = 5
    dropout: float = 0.2
    gamma: float = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "hidden", tuple(self.hidden))
        object.__setattr__(self, "input_size", tuple(self.input_size))
        pools = [i for i, layer in enumerate(self.layers) if layer == "A"]
        widths = [layer for layer in (*self.layers, *self.hidden) if layer != "A"]
        lone = [i for i in pools if i == 0 or self.layers[i - 1] == "A"]
        if lone or not self.layers or not all(type(width) is int and width >= 1 for width in widths):
            raise ValueError(
                f"DietConfig.layers is {self.layers} and hidden {self.hidden}; expected widths >= 1, and 'A' (a pool) "
                "only directly behind a convolution."
            )
        if self.num_classes < 1 or self.in_channels < 1 or (self.T is not None and self.T < 1):
            raise ValueError(
                f"DietConfig: num_classes is {self.num_classes}, in_channels {self.in_channels}, T {self.T}; expected "
                "whole numbers >= 1 (T may be None: frames of any number of steps)."
            )
        if not 0 <= self.dropout < 1 or not self.gamma > 0:
            raise ValueError(
                f"DietConfig: dropout is {self.dropout} (expected 0 <= dropout < 1), gamma {self.gamma} (expected > 0)."
            )
        if any(side < 1 or side % self.stride for side in self.input_size):
            raise ValueError(
                f"DietConfig.input_size is {self.input_size}; {len(pools)} pools halve both sides, so they must be "
                f"multiples of {self.stride}."
            )

    @property
    def stride(self) -> int:
        """Pixels per place of the last map."""
        return 2 ** self.layers.count("A")

    @property
    def flat(self) -> int:
        """Width of the flattened last map."""
        channels = [layer for layer in self.layers if isinstance(layer, int)][-1]
        return channels * (self.input_size[0] // self.stride) * (self.input_size[1] // self.stride)


class Block(nn.Module):
    """A synapse, its neurons (or, in the ReLU network, rectifiers), and what follows them: pool or dropout."""

    def __init__(self, synapse: nn.Module, fire: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.synapse = synapse
        self.fire = fire
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        y: Tensor = self.after(self.fire(self.synapse(x)))
        return y


class _Vgg(Classifier):
    """The layers of both networks; `fire` gives what stands behind each synapse but the last."""

    def __init__(self, config: DietConfig) -> None:
        super().__init__()
        self.config: DietConfig = config
        self.stride = config.stride
        self.convs = nn.Sequential(*self._convolutions())
        self.flatten = Flatten()
        self.linears = nn.Sequential(*self._linears())
        self.num_features = config.hidden[-1] if config.hidden else config.flat
        self.head = Linear(self.num_features, config.num_classes, bias=False)

    def _fire(self) -> nn.Module:
        raise NotImplementedError

    def _convolutions(self) -> Iterator[Block]:
        before, layers = self.config.in_channels, self.config.layers
        for index, width in enumerate(layers):
            if isinstance(width, int):
                pooled = layers[index + 1 : index + 2] == ("A",)
                after: nn.Module = AvgPool2d(2) if pooled else Dropout(self.config.dropout)
                yield Block(Conv2d(before, width, 3, padding=1, bias=False), self._fire(), after)
                before = width

    def _linears(self) -> Iterator[Block]:
        before = self.config.flat
        for width in self.config.hidden:
            yield Block(Linear(before, width, bias=False), self._fire(), Dropout(self.config.dropout))
            before = width

    def blocks(self) -> list[Block]:
        """All layers with neurons, from the input on."""
        return [block for part in (self.convs, self.linears) for block in part if isinstance(block, Block)]

    def features(self, frames: Tensor) -> Tensor:
        """Checked frames `[T, B, C, H, W]` -> what the last linear map reads, `[T, B, width]`."""
        if tuple(frames.shape[-2:]) != self.config.input_size:
            raise ValueError(
                f"{type(self).__name__} got frames of {list(frames.shape[-2:])} pixels and was built for "
                f"{list(self.config.input_size)}. Build it with input_size= of your images."
            )
        x: Tensor = self.linears(self.flatten(self.convs(frames)))
        return x

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh bias-free classifier in the place of the old one.

        Raises:
            ValueError: `num_classes` is no whole number >= 1.
        """
        self.config = replace(self.config, num_classes=num_classes)
        like = self.head.weight
        assert isinstance(like, Tensor)
        self.head = Linear(self.num_features, num_classes, bias=False).to(like.device, like.dtype)


class DietVGG(_Vgg):
    """The spiking network: images `[B, C, H, W]` or frames `[T, B, C, H, W]` -> logits `[T, B, K]`, to be summed."""

    def _fire(self) -> nn.Module:
        return DIET(gamma=self.config.gamma)

    def neurons(self) -> list[DIET]:
        """All layers of neurons, from the input on."""
        return [block.fire for block in self.blocks() if isinstance(block.fire, DIET)]

    def clamp_(self) -> None:
        """Bring leaks and thresholds back to their limits; call it after every step of an optimiser."""
        for neuron in self.neurons():
            neuron.clamp_()


class ReluVGG(_Vgg):
    """The same layers with ReLUs and no time: images `[B, C, H, W]` -> logits `[B, K]`.

    Its parameters have the names of those of `DietVGG`. Weights start Kaiming-normal, the last map's as torch's.
    """

    def __init__(self, config: DietConfig) -> None:
        super().__init__(replace(config, T=1))
        for block in self.blocks():
            weight = block.synapse.weight
            assert isinstance(weight, Tensor)
            nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def _fire(self) -> nn.Module:
        return nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, C, H, W]` -> logits `[B, K]`."""
        if x.ndim != 4:
            raise ValueError(f"ReluVGG got an input of shape {list(x.shape)}; expected images [B, C, H, W].")
        logits: Tensor = super().forward(x)[0]
        return logits
