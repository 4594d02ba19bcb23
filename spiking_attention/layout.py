"""Where the channels lie: every mixer computes on tokens `[T, B, N, C]` and takes the layouts of the papers' code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Layout = Literal["TBNC", "TBCN", "TBCHW"]
LAYOUTS = ("TBNC", "TBCN", "TBCHW")
"""Tokens with channels last; channels first; channels first on a map, whose tokens are its pixels row by row."""


def check_layout(layout: str, mixer: str) -> None:
    """Raise unless `layout` is one of LAYOUTS."""
    if layout not in LAYOUTS:
        raise ValueError(f"{mixer} got layout={layout!r}; expected {', '.join(map(repr, LAYOUTS))}.")


def check_heads(dim: int, num_heads: int, mixer: str) -> None:
    """Raise unless the heads divide the channels."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(
            f"{mixer} got dim={dim} and num_heads={num_heads}; expected a number of heads that divides dim "
            f"(dim={dim} takes {', '.join(str(h) for h in range(1, dim + 1) if dim % h == 0)})."
        )


def to_tokens(x: Tensor, layout: Layout, dim: int, mixer: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """`x` as tokens `[T, B, N, C]`, a view where memory permits, and the way back for a tensor of that shape.

    Raises:
        ValueError: x has another number of axes than the layout, or other than `dim` channels.
    """
    axis = -1 if layout == "TBNC" else 2
    if x.ndim != len(layout) or x.shape[axis] != dim:
        wanted = ", ".join(f"C={dim}" if letter == "C" else letter for letter in layout)
        raise ValueError(f"{mixer} got an input of shape {list(x.shape)}; expected [{wanted}] (layout={layout!r}).")
    if layout == "TBNC":
        return x, lambda tokens: tokens
    if layout == "TBCN":
        return x.transpose(2, 3), lambda tokens: tokens.transpose(2, 3)
    size = x.shape[3:]
    return x.flatten(3).transpose(2, 3), lambda tokens: tokens.transpose(2, 3).unflatten(3, size)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """`[T, B, N, C]` -> `[T, B, h, N, d]`, channel c in head c // d; contiguous, as batched matrix products want it."""
    return x.unflatten(3, (num_heads, -1)).transpose(2, 3).contiguous()


def merge_heads(x: Tensor) -> Tensor:
    """Inverse of `split_heads`."""
    return x.transpose(2, 3).flatten(3)
