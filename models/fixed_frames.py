"""`FixedFrames`: a classifier of frames whose steps and places have vectors of their own: T, H and W are fixed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spikeloom.models.classifier import Classifier


class FixedFrames(Classifier):
    """A `Classifier` that takes the T, H and W of its configuration, no others.

    Args:
        config: with `input_size` and a whole number `T`.

    Raises:
        ValueError: frames without pixels.
    """

    fixed_input = True
    """Whether T and size of the input are those of the configuration alone."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        if min(config.input_size) < 1:
            raise ValueError(f"{type(self).__name__} got input_size={config.input_size}; expected sides >= 1.")
        self.config = config

    def frames(self, x: Tensor) -> Tensor:
        """As of every classifier, and of the size and the number of steps that the model was built for.

        Raises:
            ValueError: as there, or another size.
        """
        name, T, size = type(self).__name__, self.config.T, tuple(self.config.input_size)
        if x.ndim == 5 and x.shape[0] != T and x.shape[2] == self.config.in_channels:
            swapped = f" If these are [B, T={T}, C, H, W], pass x.transpose(0, 1)." if x.shape[1] == T else ""
            raise ValueError(
                f"{name} got frames {list(x.shape)} with T={x.shape[0]} steps and was built for T={T}, of which each "
                f"has a vector of its own.{swapped} Build it with T={x.shape[0]}."
            )
        frames = super().frames(x)
        if tuple(frames.shape[3:]) != size:
            raise ValueError(
                f"{name} got frames of {frames.shape[3]} x {frames.shape[4]} pixels and was built for {size[0]} x "
                f"{size[1]}, of which each token has a vector of its own. Resize them, or build it with input_size=."
            )
        return frames

    def set_steps(self, T: int | None) -> None:
        """T is fixed: each step has a vector of its own.

        Raises:
            ValueError: another T than the model has.
        """
        if T != self.config.T:
            raise ValueError(
                f"set_steps got T={T!r}, but {type(self).__name__} was built for {self.config.T} steps, of which each "
                "has a vector of its own."
            )


def frames_of_clip(clip: Tensor) -> Tensor:
    """Clips of video models, `[B, C, T, H, W]`, as frames `[T, B, C, H, W]`, a view.

    Raises:
        ValueError: other axes.
    """
    if clip.ndim != 5:
        raise ValueError(f"frames_of_clip got a tensor of shape {list(clip.shape)}; expected [B, C, T, H, W].")
    return clip.permute(2, 0, 1, 3, 4)
