"""`PatchConv`: a convolution that makes a token of each patch of a frame, its weight that of a `Conv3d`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from spikeloom.synapses.time_axis import check_axes, over_time


class PatchConv(nn.Conv3d):
    """Patches of p x p pixels: `[T, B, C, H, W]` -> `[T, B, C', H / p, W / p]`.

    Parameters are those of `Conv3d(C, C', (1, p, p), stride=(1, p, p))`, as checkpoints of video models have them.

    Args:
        in_channels, out_channels: C, C'.
        patch: p.
    """

    def __init__(self, in_channels: int, out_channels: int, patch: int) -> None:
        super().__init__(in_channels, out_channels, (1, patch, patch), stride=(1, patch, patch))

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """What `to` and its kin call with what is done to each parameter: to the weight as `[C', C, p, p]`.

        Torch lays no weight of five axes out channels-last, as a whole model is for training.
        """

        def flat(value: Tensor) -> Any:
            return fn(value.squeeze(2)).unsqueeze(2) if value.ndim == 5 else fn(value)

        return super()._apply(flat, recurse)  # type: ignore[no-untyped-call]

    def forward(self, input: Tensor) -> Tensor:
        """Convolve every time step."""
        check_axes(input, "PatchConv", "T B C H W")
        weight, stride = self.weight.squeeze(2), self.stride[1:]
        return over_time(lambda frames: F.conv2d(frames, weight, self.bias, stride), input)
