"""What the classifiers of this package share: the way in for images and event frames, and the linear read-out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from spikeloom.synapses import Linear, channels_last
from spikeloom.synapses.recompute import recompute


class Classifier(nn.Module):
    """A backbone with a linear read-out at every time step: images or frames -> logits `[T, B, num_classes]`.

    A subclass has a `config` (a frozen dataclass with `in_channels`, `input_size`, `num_classes` and `T`), a `stride`
    (pixels per token along one axis), calls `self.reset_classifier(config.num_classes)` at the end of its `__init__`
    after setting `num_features`, and defines `features(frames) -> [T, B, num_features]`.

    An image `[B, C, H, W]` is shown for `config.T` steps (direct encoding). Frames `[T, B, C, H, W]` must have
    `config.T` steps; with `T=None` they may have any number, as `Stream` needs. H and W are free, up to the stride.
    """

    config: Any
    stride: int
    num_features: int
    head: nn.Module
    truncated_head = True
    """Whether a fresh classifier starts as vision transformers do, rather than as `torch.nn.Linear`."""
    recomputes = False
    """Whether `features` calls its embeddings and blocks by `run` or `run_all`."""
    recompute = False
    """Whether training keeps only the inputs of embeddings and blocks for backward, see `set_recompute`."""

    @property
    def num_classes(self) -> int:
        """The number of classes; 0: no classifier."""
        return int(self.config.num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh classifier in the place of the old one, of the model's type and device; 0 takes it away.

        Raises:
            ValueError: `num_classes` is no whole number >= 0.
        """
        head = fresh_head(self, self.num_features, num_classes)
        if self.truncated_head:
            truncated_normal(head)
        self.head, self.config = head, replace(self.config, num_classes=num_classes)

    def set_steps(self, T: int | None) -> None:
        """Show images for T steps from now on; None: only frames, of any number of steps. No weight depends on T.

        Raises:
            ValueError: T is no whole number >= 1.
        """
        if T is not None and (not isinstance(T, int) or isinstance(T, bool) or T < 1):
            raise ValueError(f"set_steps got T={T!r}; expected a whole number >= 1, or None.")
        self.config = replace(self.config, T=T)

    def set_recompute(self, recompute: bool) -> None:
        """Whether training keeps only what enters each embedding and block, and runs them again in backward.

        Results are the same; a step computes a forward pass more and needs less memory. See `synapses.recompute`.

        Raises:
            ValueError: this network has no such parts.
        """
        if recompute and not self.recomputes:
            raise ValueError(
                f"{type(self).__name__} cannot recompute its blocks in backward; expected a network with `recomputes`, "
                "such as MaxFormer, MaxResNet, QKFormer or Spikformer. Train it without."
            )
        self.recompute = recompute

    def run(self, part: nn.Module, *inputs: Any) -> Any:
        """`part(*inputs)`, recomputed in backward if `set_recompute` says so."""
        return recompute(part, *inputs) if self.recompute else part(*inputs)

    def run_all(self, parts: nn.Module, x: Tensor) -> Tensor:
        """`parts(x)` for an `nn.Sequential`, each part as in `run`."""
        if not self.recompute:
            return cast(Tensor, parts(x))
        for part in parts.children():
            x = recompute(part, x)
        return x

    def features(self, frames: Tensor) -> Tensor:
        """Checked frames `[T, B, C, H, W]` -> `[T, B, num_features]`."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `[B, C, H, W]` or frames `[T, B, C, H, W]` -> what the classifier reads, `[T, B, num_features]`."""
        return self.features(self.frames(x))

    def forward_head(self, features: Tensor) -> Tensor:
        """Features `[T, B, num_features]` -> logits `[T, B, num_classes]`."""
        logits: Tensor = self.head(features)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, C, H, W]` or frames `[T, B, C, H, W]` -> logits of every step; their mean is the decision."""
        return self.forward_head(self.forward_features(x))

    def frames(self, x: Tensor) -> Tensor:
        """`x` as frames `[T, B, C, H, W]`, channels-last in memory.

        Raises:
            ValueError: axes, channels, steps or size are not what the model was built for, or x is not floating point.
        """
        name, config = type(self).__name__, self.config
        channels, T = config.in_channels, config.T
        check_floating(x, name)
        if x.ndim not in (4, 5) or x.shape[-3] != channels:
            raise ValueError(
                f"{name} got an input of shape {list(x.shape)}; expected images [B, {channels}, H, W] or frames "
                f"[T, B, {channels}, H, W] (in_channels={channels})."
            )
        if x.ndim == 4:
            if T is None:
                raise ValueError(
                    f"{name} was built with T=None and got images {list(x.shape)}; expected frames [T, B, ...]. "
                    "Build it with T= steps to show an image for, or pass x.expand(T, *x.shape)."
                )
            x = x.expand(T, *x.shape)
        elif T is not None and x.shape[0] != T:
            swapped = " Time is the first axis here: x.transpose(0, 1)." if x.shape[1] == T else ""
            raise ValueError(
                f"{name} got frames {list(x.shape)} with T={x.shape[0]} steps and was built for T={T}.{swapped} "
                f"Build it with T={x.shape[0]}, or with T=None for any number of steps."
            )
        if x.shape[-1] % self.stride or x.shape[-2] % self.stride or 0 in x.shape:
            raise ValueError(
                f"{name} got frames of {x.shape[-2]} x {x.shape[-1]} pixels; its stem makes one token of "
                f"{self.stride} x {self.stride} pixels, so both sides must be multiples of {self.stride}, and no axis "
                "empty. Crop or pad the frames."
            )
        return channels_last(x)


def check_floating(x: Tensor, name: str) -> None:
    """Raise unless a model's input is of a floating-point type."""
    if not x.is_floating_point():
        raise ValueError(
            f"{name} got an input of {x.dtype}; expected floating point: x.float() for counts of events, "
            "x.float() / 255 for pixels in bytes."
        )


def fresh_head(model: nn.Module, features: int, classes: int) -> nn.Module:
    """A linear map to `classes`, of the type and device of the model's parameters; an identity for 0 classes.

    Raises:
        ValueError: `classes` is no whole number >= 0.
    """
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
        raise ValueError(
            f"{type(model).__name__}: num_classes is {classes!r}; expected a whole number >= 0 (0: no classifier)."
        )
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    head = Linear(features, classes) if classes else nn.Identity()
    return head.to(like.device, like.dtype).train(model.training)


def truncated_normal(module: nn.Module, std: float = 0.02) -> None:
    """Weights of a linear map from a normal distribution cut at +-2, bias 0, as vision transformers start."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
