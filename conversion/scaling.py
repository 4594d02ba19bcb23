"""Layers without memory that conversion puts into a network: per-channel factors and shifts, constants."""

from __future__ import annotations

from torch import Tensor, nn


def along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """`[C]` (or `[]`) in the shape that broadcasts against `x` with the channels on `axis`."""
    if values.ndim == 0:
        return values
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.view(shape)


class Scale(nn.Module):
    """Spikes in the units of the activations: `x * factor`, factor `[]` or `[C]` along `axis` of `[B, ...]`.

    flat: x is `[B, C * ...]`, channels outermost.
    """

    def __init__(self, factor: Tensor, axis: int = 1, flat: bool = False) -> None:
        super().__init__()
        self.axis, self.flat = axis, flat
        self.factor: Tensor
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        if self.flat and self.factor.ndim:
            return (x.unflatten(1, (len(self.factor), -1)) * self.factor[:, None]).flatten(1)
        return x * along(self.factor, x, self.axis)


class Affine(nn.Module):
    """A batch normalisation with fixed statistics that no layer in front takes in: `x * weight + bias`, `[C]` each."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift the channels, axis 1."""
        return x * along(self.weight, x, 1).to(x.dtype) + along(self.bias, x, 1).to(x.dtype)


class Constant(nn.Module):
    """A tensor that the network holds, such as the mean of its images."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value: Tensor
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        """The tensor."""
        return self.value
