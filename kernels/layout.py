"""How a `[T, *neurons]` tensor and its parameters lie in memory, as kernels see it.

Neurons are independent lanes, numbered in memory order. In memory a dense tensor is `[outer, T, inner]`: the neuron
axes slower than time, time, and the neuron axes faster than time. Contiguous and channels-last tensors have
`outer = 1`; a batch-first tensor seen time-first has `outer = B`. No dense tensor needs a copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from spikeloom.kernels.program import Program

Sizes = Sequence[int]


def dense_strides(shape: Sizes, strides: Sizes) -> tuple[int, ...]:
    """Strides of a gapless tensor with the axis order of `strides`; expanded axes (stride 0) become the slowest."""
    result = [1] * len(shape)
    step = 1
    place = [0 if n == 1 else s or float("inf") for n, s in zip(shape, strides, strict=True)]
    for axis in sorted(range(len(shape)), key=lambda a: (place[a], -a)):
        result[axis] = step
        step *= shape[axis]
    return tuple(result)


def empty_dense(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised gapless tensor with the shape and axis order of `like`."""
    if like.is_contiguous():
        return torch.empty(like.shape, dtype=dtype, device=like.device)
    return torch.empty_strided(like.shape, dense_strides(like.shape, like.stride()), dtype=dtype, device=like.device)


def empty_slab(like: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised gapless tensor for one time step: the shape and axis order of `like` without its axis 0."""
    if like.is_contiguous():
        return torch.empty(like.shape[1:], dtype=dtype, device=like.device)
    strides = dense_strides(like.shape[1:], like.stride()[1:])
    return torch.empty_strided(like.shape[1:], strides, dtype=dtype, device=like.device)


def in_order(tensor: Tensor, strides: Sizes) -> Tensor:
    """`tensor` with these strides (those of axes of size 1 do not count), copied only where it lies otherwise."""
    if tensor.stride() == tuple(strides):
        return tensor
    if all(n == 1 or a == b for n, a, b in zip(tensor.shape, tensor.stride(), strides, strict=True)):
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


@dataclass(frozen=True)
class Lanes:
    """Memory view `[outer, T, inner]` of a dense `[T, *neurons]` tensor; `axes` are the neuron axes, slowest first."""

    outer: int
    steps: int
    inner: int
    axes: tuple[int, ...]

    @property
    def count(self) -> int:
        return self.outer * self.inner


@lru_cache(maxsize=4096)
def lanes_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> Lanes:
    """Lanes of a dense tensor with time on axis 0."""
    order = sorted(range(1, len(shape)), key=lambda a: (-strides[a], a) if shape[a] != 1 else (0, a))
    if shape[0] == 1:
        return Lanes(1, 1, math.prod(shape[1:]), tuple(order))
    inner = math.prod(shape[a] for a in order if strides[a] < strides[0])
    return Lanes(math.prod(shape[1:]) // max(inner, 1), shape[0], inner, tuple(order))


@dataclass(frozen=True)
class ParamMap:
    """Where lane `l` finds its parameter: entry `(l // repeat) % count` of `count` values in memory order.

    `axes` and `expanded` say how the values are laid out from the caller's tensor: broadcast to shape `expanded`
    (neuron axes), then permuted to memory order `axes`. `direct`: a contiguous tensor already lies so.
    """

    count: int
    repeat: int
    expanded: tuple[int, ...]
    axes: tuple[int, ...]
    direct: bool

    def values(self, param: Tensor, dtype: torch.dtype) -> Tensor:
        """`param` as `count` gapless values in memory order (no copy where it already is)."""
        if self.direct and param.dtype == dtype and param.is_contiguous():
            return param
        if self.count == 1:
            return param.to(dtype)
        padded = param.reshape((1,) * (len(self.expanded) - param.dim()) + tuple(param.shape)).expand(self.expanded)
        return padded.permute([a - 1 for a in self.axes]).to(dtype).contiguous()

    def gradient(self, flat: Tensor, like: Tensor) -> Tensor:
        """A gradient of `count` values in memory order, back in the shape and dtype of the parameter `like`."""
        if self.count == 1:
            return flat.reshape(like.shape).to(like.dtype)
        ordered = flat.reshape([self.expanded[a - 1] for a in self.axes])
        back = ordered.permute([self.axes.index(a) for a in range(1, len(self.axes) + 1)])
        return back.sum_to_size((1,) * (back.dim() - like.dim()) + tuple(like.shape)).reshape(like.shape).to(like.dtype)


@lru_cache(maxsize=4096)
def param_map(param_shape: tuple[int, ...], shape: tuple[int, ...], axes: tuple[int, ...]) -> ParamMap:
    """Map a parameter that broadcasts against `shape[1:]` onto the lanes of a `[T, *neurons]` tensor.

    Raises:
        ValueError: the parameter does not broadcast against the neuron axes.
    """
    neurons = shape[1:]
    if math.prod(param_shape) == 1:
        return ParamMap(1, 1, (1,) * len(neurons), axes, True)
    padded = (1,) * (len(neurons) - len(param_shape)) + tuple(param_shape)
    if len(padded) != len(neurons) or any(p not in (1, n) for p, n in zip(padded, neurons, strict=True)):
        raise ValueError(
            f"a parameter of shape {list(param_shape)} does not broadcast against the neuron axes "
            f"{list(neurons)} of an input of shape {list(shape)}; a value per channel of a [T, B, C, H, W] "
            f"input has shape [C, 1, 1]"
        )
    places = [i for i, a in enumerate(axes) if padded[a - 1] != 1]
    first, last = places[0], places[-1]
    span = axes[first : last + 1]
    expanded = tuple(neurons[a - 1] if a in span else 1 for a in range(1, len(shape)))
    direct = expanded == padded and [axes[i] for i in places] == sorted(axes[i] for i in places)
    repeat = math.prod(neurons[a - 1] for a in axes[last + 1 :])
    return ParamMap(math.prod(expanded), repeat, expanded, axes, direct)


def param_maps(
    program: Program, kinds: str, params: Sequence[Sizes], shape: tuple[int, ...], axes: tuple[int, ...]
) -> list[ParamMap]:
    """`param_map` of every tensor parameter of a program.

    kinds: a letter per parameter of the program, `t` for a tensor. params: the shapes of the tensors.

    Raises:
        ValueError: one does not broadcast; names it and the program.
    """
    maps: list[ParamMap] = []
    try:
        for param in params:
            maps.append(param_map(tuple(param), shape, axes))
    except ValueError as error:
        names = [name for name, kind in zip(program.params, kinds, strict=True) if kind == "t"]
        raise misfit(program.name, names[len(maps)], error) from error
    return maps


def misfit(program: str, name: str, error: ValueError) -> ValueError:
    """The error of `param_map` with the names that it does not know."""
    return ValueError(str(error).replace("a parameter", f"{program}: parameter {name}", 1))
