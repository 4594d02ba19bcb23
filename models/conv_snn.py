"""A small convolutional spiking network for event frames.

    frames [T, B, C, H, W] -> stages of (convolution, batch normalisation, LIF, pooling) -> linear -> logits [T, B, K]

The usual plain design of directly trained networks (convolution, normalisation over time and batch, LIF; for example
Wu et al. 2019, "Direct Training for Spiking Neural Networks: Faster, Larger, Better", section 3, and Zheng et al. 2021,
"Going Deeper With Directly-Trained Larger Spiking Neural Networks"). Strided convolutions rather than pooling keep the
maps, and with them the time on a CPU, small. The classifier reads spikes and gives logits at every step: their mean
over time is the decision, and a loss may use either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from spikeloom.models.classifier import check_floating, fresh_head
from spikeloom.models.config import configure
from spikeloom.models.registry import register
from spikeloom.neurons import LIF
from spikeloom.synapses import AvgPool2d, Conv2d, Dropout, Flatten, NormNeuron
from spikeloom.synapses.time_axis import check_axes


@dataclass(frozen=True)
class ConvSNNConfig:
    """Stage i: widths[i] channels, kernels[i] pixels (odd), strides[i], average pooling by pools[i] (1: none).

    input_size: (H, W) of the frames, which fixes the classifier's width. dropout: before the classifier, one mask for
    all steps. tau (steps), surrogate, alpha: of every LIF layer.
    """

    in_channels: int = 2
    input_size: tuple[int, int] = (34, 34)
    num_classes: int = 10
    widths: tuple[int, ...] = (32, 64, 128)
    kernels: tuple[int, ...] = (5, 3, 3)
    strides: tuple[int, ...] = (2, 2, 2)
    pools: tuple[int, ...] = (1, 1, 1)
    dropout: float = 0.0
    tau: float = 2.0
    surrogate: str = "sigmoid"
    alpha: float = 4.0

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("widths", "kernels", "strides", "pools")}
        if len(set(lengths.values())) > 1 or not self.widths:
            raise ValueError(f"ConvSNNConfig describes {lengths} stages; expected one entry per stage in each.")
        if any(value < 1 for name in lengths for value in getattr(self, name)) or self.in_channels < 1:
            raise ValueError("ConvSNNConfig: widths, kernels, strides, pools and in_channels must be >= 1.")
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"ConvSNNConfig.kernels is {self.kernels}; expected odd sizes, which have a centre.")
        if self.num_classes < 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"ConvSNNConfig: num_classes is {self.num_classes} (expected >= 0; 0 is no classifier) "
                f"and dropout {self.dropout} (expected 0 <= dropout < 1)."
            )
        if min(self.feature_size()) < 1:
            shrink = f"strides {self.strides} and pools {self.pools}"
            raise ValueError(f"ConvSNNConfig: nothing is left of frames of {self.input_size} after {shrink}.")

    def feature_size(self) -> tuple[int, int]:
        """(H, W) after the last stage."""
        height, width = self.input_size
        for stride, pool in zip(self.strides, self.pools, strict=True):
            height, width = ((height - 1) // stride + 1) // pool, ((width - 1) // stride + 1) // pool
        return height, width


class Stage(nn.Module):
    """Convolution, batch normalisation, LIF, pooling: `[T, B, C, H, W]` -> spikes or means `[T, B, C', H', W']`."""

    def __init__(self, config: ConvSNNConfig, index: int) -> None:
        super().__init__()
        before = config.widths[index - 1] if index else config.in_channels
        width, kernel, pool = config.widths[index], config.kernels[index], config.pools[index]
        self.conv = Conv2d(before, width, kernel, stride=config.strides[index], padding=kernel // 2, bias=False)
        self.fire = NormNeuron(width, LIF(tau=config.tau, surrogate=config.surrogate, alpha=config.alpha))
        self.pool = AvgPool2d(pool) if pool > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run all time steps."""
        spikes: Tensor = self.pool(self.fire(self.conv(x)))
        return spikes


class ConvSNN(nn.Module):
    """Stages, then a linear classifier at every time step: `[T, B, C, H, W]` -> `[T, B, num_classes]`."""

    def __init__(self, config: ConvSNNConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.Sequential(*(Stage(config, index) for index in range(len(config.widths))))
        height, width = config.feature_size()
        self.num_features = config.widths[-1] * height * width
        self.flatten = Flatten()
        self.dropout = Dropout(config.dropout)
        self.head: nn.Module
        self.reset_classifier(config.num_classes)

    @property
    def num_classes(self) -> int:
        """The number of classes; 0: no classifier."""
        return self.config.num_classes

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier in the place of the old one, of the model's type and device; 0 takes it away.

        Raises:
            ValueError: `num_classes` is no whole number >= 0.
        """
        self.head = fresh_head(self, self.num_features, num_classes)
        self.config = replace(self.config, num_classes=num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Frames `[T, B, C, H, W]` -> the last stage's output, flattened: `[T, B, num_features]`."""
        check_axes(x, "ConvSNN", "T B C H W")
        check_floating(x, "ConvSNN")
        if x.shape[2:] != (self.config.in_channels, *self.config.input_size):
            raise ValueError(
                f"ConvSNN got frames of shape {list(x.shape[2:])}; it was built for "
                f"{[self.config.in_channels, *self.config.input_size]}. Build it with in_channels= and "
                "input_size= of your frames."
            )
        features: Tensor = self.flatten(self.stages(x))
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """Features `[T, B, num_features]` -> logits `[T, B, num_classes]`."""
        logits: Tensor = self.head(self.dropout(features))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Frames `[T, B, C, H, W]` -> logits of every time step `[T, B, num_classes]`."""
        return self.forward_head(self.forward_features(x))


@register
def conv_snn_tiny(**overrides: Any) -> ConvSNN:
    """Two narrow stages, for tests and first steps."""
    config = ConvSNNConfig(widths=(8, 16), kernels=(3, 3), strides=(2, 2), pools=(1, 1))
    return ConvSNN(configure(config, overrides))


@register
def conv_snn_small(**overrides: Any) -> ConvSNN:
    """Three strided stages of 32, 64 and 128 channels: 4,000 recordings in seconds on two CPU cores."""
    return ConvSNN(configure(ConvSNNConfig(), overrides))
